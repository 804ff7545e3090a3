// Filter chips, one per field of the collection, with the values that it has.

import { element, number } from "./dom.js";

export function chips(fields, where, onChange) {
  return fields.filter((field) => field.type === "text" && field.choices.length > 1)
    .map((field) => chip(field, where[field.name] ?? [], (values) => onChange(field.name, values)));
}

function chip(field, chosen, onChange) {
  const label = chosen.length ? `${title(field.name)}: ${short(chosen)}` : title(field.name);
  const menu = element("div", { className: "menu" });
  const find = element("input", { type: "search", placeholder: "Find a value", "aria-label": `Find a value of ${field.name}` });
  if (field.choices.length > 8) menu.append(find);
  const options = field.choices.map(({ value, count }) => {
    const box = element("input", { type: "checkbox", checked: chosen.includes(value),
      onchange: () => onChange(box.checked ? [...chosen, value] : chosen.filter((each) => each !== value)) });
    return element("label", {}, box, element("span", {}, value === "" ? "(top folder)" : value), element("span", {}, number(count)));
  });
  menu.append(...options);
  find.addEventListener("input", () => options.forEach((option) => {
    option.hidden = !option.textContent.toLowerCase().includes(find.value.toLowerCase());
  }));
  const made = element("details", { className: chosen.length ? "chip active" : "chip", name: "filter" },
    element("summary", {}, label), menu);
  made.dataset.field = field.name;
  return made;
}

const title = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const short = (values) => (values.length > 1 ? `${values[0] || "(top folder)"} +${values.length - 1}` : values[0] || "(top folder)");
