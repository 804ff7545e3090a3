// Filter chips, one per field of the collection: values to tick, a beginning to type, ranges of numbers and dates.

import { element, number } from "./dom.js";

const FEW = 8; // choices that need no box to find one
const TITLES = { time: "Date", size: "Size", folder: "Folder", name: "Name" };
const ORDER = ["folder", "name", "time", "size"];
const KILOBYTE = 1000, DAY = 86_400;

// Returns chips; each has `element` and `update(condition)`. `onChange(name, condition)` has null for no condition.
export function chips(fields, onChange) {
  const position = (field) => (ORDER.indexOf(field.name) + 1 || ORDER.length + 1);
  return fields.filter(isUseful).sort((one, other) => position(one) - position(other))
    .map((field) => chip(field, (condition) => onChange(field.name, condition)));
}

const isUseful = (field) => (field.type === "number" ? field.min < field.max
  : (field.choices?.length ?? 0) > 1 || field.complete === false);
export const title = (name) => TITLES[name] ?? name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

function chip(field, onChange) {
  const summary = element("summary", {}), menu = element("div", { className: "menu" });
  const made = element("details", { className: "chip", name: "filter" }, summary, menu);
  made.dataset.field = field.name;
  const parts = field.type === "number" ? [range(field, onChange)] : values(field, onChange);
  const clear = element("button", { type: "button", className: "button clear", onclick: () => onChange(null) }, "Any");
  menu.append(...parts.map((part) => part.element), clear);
  const update = (condition) => {
    const text = condition ? describe(field, condition) : "";
    summary.textContent = text ? `${title(field.name)}: ${text}` : title(field.name);
    made.classList.toggle("active", Boolean(text));
    clear.disabled = !text;
    for (const part of parts) part.update(condition);
  };
  update(null);
  return { name: field.name, element: made, update };
}

// ---- texts ----

function values(field, onChange) {
  let chosen = [];
  const boxes = field.choices.map(({ value, count }) => {
    const box = element("input", { type: "checkbox", onchange: () => {
      const next = box.checked ? [...chosen, value] : chosen.filter((each) => each !== value);
      onChange(next.length ? next : null);
    } });
    const label = element("label", {}, box, element("span", {}, named(value)), element("span", {}, number(count)));
    return { value, box, label };
  });
  const list = { element: element("div", { className: "choices" }, ...boxes.map((each) => each.label)),
    update: (condition) => {
      chosen = Array.isArray(condition) ? condition : [];
      for (const each of boxes) each.box.checked = chosen.includes(each.value);
    } };
  if (boxes.length <= FEW && field.complete !== false) return [list];
  return [beginning(field, boxes, onChange), list];
}

// Finds a value in the list, or filters by how the field begins.
function beginning(field, boxes, onChange) {
  const apply = () => find.value && onChange({ $prefix: find.value });
  const find = element("input", { type: "search", placeholder: "Begins with…", "aria-label": `${title(field.name)} begins with`,
    oninput: () => {
      const wanted = find.value.toLowerCase();
      for (const each of boxes) each.label.hidden = !named(each.value).toLowerCase().includes(wanted);
    },
    onkeydown: (event) => { if (event.key === "Enter") { event.preventDefault(); apply(); } } });
  const made = element("div", { className: "find" }, find, element("button", { type: "button", className: "button", onclick: apply }, "Apply"));
  return { element: made, update: (condition) => { find.value = condition?.$prefix ?? (document.activeElement === find ? find.value : ""); } };
}

const named = (value) => (value === "" ? "(top folder)" : value);

// ---- numbers and dates ----

const isDate = (field) => field.name === "time" || field.type === "time";
const isSize = (field) => field.name === "size";

function range(field, onChange) {
  const input = (label, bound) => element("input", isDate(field)
    ? { type: "date", "aria-label": `${title(field.name)} ${label}` }
    : { type: "number", step: "any", "aria-label": `${title(field.name)} ${label}`, placeholder: short(field, bound) });
  const from = input("from", field.min), to = input("to", field.max);
  const changed = () => {
    const condition = {};
    if (from.value) condition.$gte = toBound(field, from.value);
    if (to.value) condition[isDate(field) ? "$lt" : "$lte"] = toBound(field, to.value, true);
    onChange(Object.keys(condition).length ? condition : null);
  };
  for (const each of [from, to]) each.addEventListener("change", changed);
  const unit = isSize(field) ? " (kB)" : "";
  const made = element("div", { className: "range" }, element("label", {}, `From${unit}`, from), element("label", {}, `To${unit}`, to));
  return { element: made, update: (condition) => {
    from.value = toInput(field, condition?.$gte);
    to.value = toInput(field, condition?.$lte ?? condition?.$lt, true);
  } };
}

// A date stands for its whole day: `to` ends when the next day begins.
function toBound(field, value, isEnd = false) {
  if (!isDate(field)) return Number(value) * (isSize(field) ? KILOBYTE : 1);
  const [year, month, day] = value.split("-").map(Number);
  return new Date(year, month - 1, day + (isEnd ? 1 : 0)).getTime() / 1000;
}

function toInput(field, bound, isEnd = false) {
  if (typeof bound !== "number") return "";
  if (!isDate(field)) return String(bound / (isSize(field) ? KILOBYTE : 1));
  const date = new Date(1000 * (bound - (isEnd ? DAY / 2 : 0)));
  return [date.getFullYear(), date.getMonth() + 1, date.getDate()].map((part) => String(part).padStart(2, "0")).join("-");
}

const short = (field, bound) => (isSize(field) ? String(Math.round(bound / KILOBYTE)) : String(Number(bound.toPrecision(6))));

function describe(field, condition) {
  if (Array.isArray(condition)) return named(condition[0]) + (condition.length > 1 ? ` +${condition.length - 1}` : "");
  if (condition.$prefix) return `${condition.$prefix}…`;
  const unit = isSize(field) ? " kB" : "";
  const from = toInput(field, condition.$gte), to = toInput(field, condition.$lte ?? condition.$lt, true);
  if (from && to) return `${from} – ${to}${unit}`;
  return from ? `from ${from}${unit}` : to ? `to ${to}${unit}` : "set";
}

// A click elsewhere closes an open filter.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll(".chip[open]")) if (!open.contains(event.target)) open.open = false;
});
