// The page: state in, search, hits out. Typing searches by the text tower alone; Enter also re-ranks.

import * as api from "./api.js";
import * as details from "./details.js";
import { $, element, number, percent } from "./dom.js";
import { chips } from "./filters.js";
import { card, neighbour } from "./grid.js";
import { download, marked, toCsv, toJson } from "./marked.js";
import { empty, read, splitText, write } from "./state.js";

const PAGE = 40, TYPING = 180, RERANKED = 32;
let state = read(), info = null, fields = [], file = null;
let hits = [], cursor = "", body = null, isLoading = false, opened = null, timer = 0;

// ---- searching ----

function request(rerank) {
  const { text, negative } = splitText(state.text);
  const made = { top: PAGE, where: state.where, collapse: state.collapse, rerank: 0,
    not: [...negative.map((word) => ({ text: word })), ...state.not.map(({ id }) => ({ id }))] };
  if (text) made.text = text;
  if (state.id) made.id = state.id;
  if (rerank && text && wantsRerank()) made.rerank = Math.max(RERANKED, info.rerank);
  return made;
}

const wantsRerank = () => info.can_match && (state.rerank ?? true);
const hasQuery = () => splitText(state.text).text || state.id || file;

async function run({ rerank = true, push = true } = {}) {
  clearTimeout(timer);
  write(state, { push });
  render();
  if (!hasQuery()) return welcome();
  body = request(rerank);
  $("grid").classList.add("stale");
  try {
    const answer = await api.search(body, file);
    hits = answer.hits;
    cursor = answer.cursor;
    show(answer);
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
  }
}

async function nextPage() {
  if (!cursor || isLoading) return;
  isLoading = true;
  try {
    const answer = await api.search({ ...body, cursor }, file, { page: true });
    cursor = answer.cursor;
    hits.push(...answer.hits);
    addCards(answer.hits, hits.length - answer.hits.length);
  } catch (error) {
    cursor = "";
    if (error.status === 409) run({ push: false });
  } finally {
    isLoading = false;
  }
}

// ---- what is seen ----

function show(answer) {
  $("grid").classList.remove("stale");
  $("grid").replaceChildren();
  addCards(hits, 0);
  const { total_ms: milliseconds } = answer.timing;
  const parts = [`${number(answer.index.count)} images`, `${Math.max(1, Math.round(milliseconds))} ms`];
  if (answer.reranked) parts.push(`first ${answer.reranked} re-ranked`);
  if (answer.budget_exceeded) parts.push("re-ranking stopped at its time budget");
  if (answer.truncated) parts.push("the query was too long: its end was ignored");
  $("status").textContent = parts.join(" · ");
  update();
}

function addCards(some, start) {
  $("grid").append(...some.map((hit, index) =>
    card(hit, start + index, { isMarked: marked.has(hit.id), onOpen: openDetails, onMark: toggleMark })));
  update();
}

// The slider hides hits that are not sure enough, at once and without a request.
function update() {
  const isSure = (hit) => !state.probability || (hit.probability ?? 0) >= state.probability / 100;
  const cards = [...$("grid").children];
  hits.forEach((hit, index) => { if (cards[index]) cards[index].hidden = !isSure(hit); });
  const judged = hits.filter((hit) => hit.probability !== null);
  $("probability-slider").hidden = !judged.length && !state.probability;
  const kept = hits.filter(isSure).length;
  $("kept").textContent = state.probability ? `${kept} of ${hits.length}` : "";
  if (!hits.length) return message("Nothing here", "No image of the collection passes the filters.", ["Remove the filters", clearFilters]);
  if (!kept) {
    const best = judged.length ? `The most likely one has ${percent(Math.max(...judged.map((hit) => hit.probability)))}.` : "Press Enter to re-rank.";
    return message("Nothing is likely", `No image matches with at least ${state.probability} %. ${best}`, ["Show them anyway", () => setProbability(0)]);
  }
  $("empty").hidden = true;
}

function message(title, text, ...actions) {
  const art = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  art.setAttribute("viewBox", "0 0 132 96");
  art.setAttribute("class", "art");
  art.setAttribute("aria-hidden", "true");
  for (const [name, attributes] of [["rect", { x: 26, y: 4, width: 96, height: 68, rx: 12, class: "frame-a" }],
    ["rect", { x: 8, y: 20, width: 96, height: 68, rx: 12, class: "frame-b" }], ["circle", { cx: 36, cy: 44, r: 7, class: "dot" }],
    ["path", { d: "m20 78 24-22 16 14 14-12 20 20", class: "hill" }]]) {
    const part = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
    art.append(part);
  }
  $("empty").replaceChildren(art, element("h2", {}, title), element("p", {}, text),
    ...actions.map(([label, act]) => element("button", { type: "button", className: "go", onclick: act }, label)));
  $("empty").hidden = false;
}

function welcome() {
  hits = [];
  cursor = "";
  $("grid").replaceChildren();
  $("grid").classList.remove("stale");
  $("probability-slider").hidden = true;
  $("status").textContent = "";
  message(`Search ${number(info.index.count)} images`, info.can_match
    ? "Describe what you are looking for, or drop or paste an image. Enter re-ranks by looking at image and words together."
    : "Describe what you are looking for, or drop or paste an image.");
}

function failed(error) {
  $("grid").classList.remove("stale");
  if (error.status === 401) return login();
  hits = [];
  $("grid").replaceChildren();
  $("status").textContent = "";
  message(error.status === 429 ? "Many people are searching" : "This did not work", error.message, ["Try again", () => run({ push: false })]);
}

// The controls, from the state.
function render() {
  if (document.activeElement !== $("text") || splitText($("text").value).text !== splitText(state.text).text) $("text").value = state.text;
  $("rerank").checked = wantsRerank();
  $("rerank-switch").hidden = !info.can_match;
  $("collapse").checked = state.collapse;
  $("probability").value = state.probability;
  $("sure").textContent = `${state.probability} %`;
  const openField = document.querySelector(".chip[open]")?.dataset.field;
  $("filters").replaceChildren(...chips(fields, state.where, setFilter));
  if (openField) [...$("filters").children].filter((each) => each.dataset.field === openField).forEach((each) => { each.open = true; });
  $("negatives").replaceChildren(element("span", { className: "quiet" }, "Not like:"), ...state.not.map(({ id }) =>
    element("span", { className: "pill" }, element("img", { src: api.thumbnailUrl(id, 64), alt: "an image that hits should not resemble" }),
      element("button", { type: "button", className: "icon", "aria-label": "Remove this image from the query", onclick: () => change({ not: state.not.filter((each) => each.id !== id) }) }, "✕"))));
  $("negatives").hidden = !state.not.length;
  const source = file ? URL.createObjectURL(file) : state.id ? api.thumbnailUrl(state.id, 64) : "";
  $("query-image").hidden = !source;
  $("query-image").replaceChildren(...(source ? [element("img", { src: source, alt: "the image of the query" }),
    element("button", { type: "button", className: "icon", "aria-label": "Remove the image from the query", onclick: () => { file = null; change({ id: "" }); } }, "✕")] : []));
  renderMarked();
}

function renderMarked() {
  $("marked").hidden = !marked.size;
  $("marked-count").textContent = `${number(marked.size)} marked`;
}

// ---- what people do ----

const change = (changes) => { state = { ...state, ...changes }; return run(); };
const setFilter = (name, values) => {
  const where = { ...state.where, [name]: values };
  if (!values.length) delete where[name];
  return change({ where });
};
const clearFilters = () => change({ where: {}, not: [] });

function setProbability(value) {
  state.probability = value;
  $("probability").value = value;
  $("sure").textContent = `${value} %`;
  write(state, { push: false });
  update();
}

function useFile(chosen) {
  if (!chosen?.type.startsWith("image/")) return;
  file = chosen;
  change({ id: "" });
}

function toggleMark(hit) {
  if (!marked.delete(hit.id)) marked.set(hit.id, hit);
  const found = $("grid").querySelector(`[data-id="${hit.id}"]`);
  found?.classList.toggle("is-marked", marked.has(hit.id));
  found?.querySelector(".tick").setAttribute("aria-pressed", String(marked.has(hit.id)));
  if (opened === hit) details.showMarked(marked.has(hit.id));
  renderMarked();
}

function openDetails(hit, focusWords = false) {
  opened = hit;
  details.open(hit, splitText(state.text).text, info.can_match, marked.has(hit.id), focusWords === true);
}

function close(then) {
  $("details").close();
  then();
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  change({ text: $("text").value });
});
$("text").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    state.text = $("text").value;
    run({ rerank: false, push: false });
  }, TYPING);
});
$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { useFile($("file").files[0]); $("file").value = ""; });
$("rerank").addEventListener("change", () => change({ rerank: $("rerank").checked }));
$("collapse").addEventListener("change", () => change({ collapse: $("collapse").checked }));
$("probability").addEventListener("input", () => setProbability(Number($("probability").value)));
$("details-close").addEventListener("click", () => $("details").close());
$("details").addEventListener("click", (event) => { if (event.target === $("details")) $("details").close(); });
$("similar").addEventListener("click", () => close(() => { file = null; change({ id: opened.id, text: "" }); }));
$("not-this").addEventListener("click", () => close(() => change({ not: [...state.not.filter((each) => each.id !== opened.id), { id: opened.id }] })));
$("mark").addEventListener("click", () => toggleMark(opened));
$("unmark").addEventListener("click", () => { marked.clear(); run({ push: false }); });
$("as-csv").addEventListener("click", () => download("marked.csv", "text/csv", toCsv()));
$("as-json").addEventListener("click", () => download("marked.json", "application/json", toJson()));
$("help").addEventListener("click", () => $("keys").showModal());
$("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
  setTheme(isDark ? "light" : "dark");
});

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=checkbox], [type=range]), textarea");
  const focused = document.activeElement?.closest(".card");
  const hit = focused && hits.find((each) => each.id === focused.dataset.id);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && isTyping && event.target === $("text")) { $("text").value = ""; file = null; change({ text: "", id: "" }); return; }
  if (event.key === "ArrowDown" && event.target === $("text")) return void (event.preventDefault(), $("grid").querySelector(".card:not([hidden]) button")?.focus());
  if (isTyping) return;
  if (event.key === "/") return void (event.preventDefault(), $("details").open && $("details").close(), $("text").focus(), $("text").select());
  if (event.key === "x" && ($("details").open ? opened : hit)) return toggleMark($("details").open ? opened : hit);
  if (event.key === "e" && hit && !$("details").open) return openDetails(hit, true);
  if (event.key.startsWith("Arrow") && focused && !$("details").open) {
    event.preventDefault();
    neighbour($("grid"), focused, event.key)?.querySelector("button").focus();
  }
});

// A dropped or pasted image.
let depth = 0;
const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => { if (hasFile(event)) { depth += 1; $("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (hasFile(event) && --depth <= 0) { depth = 0; $("drop").hidden = true; } });
addEventListener("dragover", (event) => { if (hasFile(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  useFile([...event.dataTransfer.files].find((each) => each.type.startsWith("image/")));
});
addEventListener("paste", (event) => {
  const image = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (image) { event.preventDefault(); useFile(image); }
});
addEventListener("popstate", () => { state = read(); file = null; run({ push: false }); });
document.addEventListener("click", (event) => {
  for (const chip of document.querySelectorAll(".chip[open]")) if (!chip.contains(event.target)) chip.open = false;
});
new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) nextPage(); }, { rootMargin: "900px" }).observe($("more"));

// ---- start ----

function login() {
  if (!$("login").open) $("login").showModal();
}
$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.useToken($("token").value.trim());
  try {
    await start();
    $("login").close();
  } catch (error) {
    $("login-error").textContent = error.message;
  }
});

async function start() {
  info = await api.info();
  fields = await api.fields();
  await run({ push: false });
}

setTheme(localStorage.getItem("theme") ?? "auto");
state = { ...empty(), ...state };
start().catch(async (error) => {
  if (error.status === 401) return login();
  message(error.status === 503 ? "Warming up" : "This did not work", error.message);
  if (error.status === 503) setTimeout(() => location.reload(), 2000);
});
