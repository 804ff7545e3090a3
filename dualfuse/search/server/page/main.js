// The page: state in, query, hits out. Typing searches by the text tower alone; Enter also re-ranks.

import * as api from "./api.js";
import * as controls from "./controls.js";
import * as details from "./details.js";
import { $ } from "./dom.js";
import * as drop from "./drop.js";
import * as keyboard from "./keyboard.js";
import * as marked from "./marked.js";
import { PAGE, canRerank, hasQuery, knowsAlone, request, splitText } from "./query.js";
import * as results from "./results.js";
import { empty, read, write } from "./state.js";
import * as theme from "./theme.js";
import * as uploads from "./uploads.js";

const TYPING = 180; // milliseconds without a key after which a typed query is sent
let state = read(), info = null, timer = 0;
let isDraft = false; // the last entry of the history is a query that someone is typing

// ---- queries ----

async function run({ typed = false, push = true } = {}) {
  clearTimeout(timer);
  write(state, { push: push && !isDraft });
  isDraft = typed;
  controls.render(state, info, does);
  await search(typed);
}

async function search(typed) {
  const image = uploads.get(state.upload), asked = state;
  notice(state.upload && !image ? "The image of this query stayed in the tab where it was added. Add it again." : "");
  const body = request(image ? state : { ...state, upload: "" }, info, { image, typed });
  const path = body ? "/v1/search" : "/v1/browse";
  const sent = body ?? { where: state.where, top: PAGE };
  results.stale();
  try {
    const answer = await api.query(path, sent);
    const canSure = body && (knowsAlone(asked, info) || (!typed && canRerank(asked, info)));
    results.show(answer, { path, body: sent, sure: canSure ? state.sure : 0, anyway: state.anyway || !canSure });
    $("title").textContent = body ? "Search results" : "All images";
    reopen();
    await follow(answer.index);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) return login();
    results.failed(error, again);
  }
}

const again = () => run({ push: false });

// Filters and counts of a new index.
async function follow(index) {
  if (index.version === info.index.version) return;
  info = { ...info, index };
  await loadFields();
}

async function loadFields() {
  controls.setFields(await api.fields(), setFilter, () => change({ where: {} }));
  controls.render(state, info, does);
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// ---- what people do ----

const change = (changes) => {
  state = { ...state, anyway: false, show: "", ...changes };
  return run();
};

function setFilter(name, condition) {
  const where = { ...state.where, [name]: condition };
  if (!condition) delete where[name];
  return change({ where });
}

function widen() {
  if (Object.keys(state.where).length) return ["Remove the filters", () => change({ where: {} })];
  return [];
}

// The slider moves over the hits that are there; released, it looks at more of them.
function setSure(sure) {
  state = { ...state, sure, rerank: state.rerank || (sure > 0 && !knowsAlone(state, info)) };
  controls.renderSure(sure);
  $("rerank").checked = state.rerank;
  write(state, { push: false });
  results.setSure(sure);
}

async function useFile(file) {
  try {
    const upload = await uploads.add(file);
    if (details.isOpen()) details.close();
    await change({ upload, id: "" });
  } catch (error) {
    notice(error.message);
  }
}

const clear = () => change({ text: "", id: "", upload: "", not: [] });

function toggleMark(hit) {
  marked.toggle(hit);
  results.mark(hit.id);
  if (details.hit()?.id === hit.id) details.showMarked(marked.has(hit.id));
  controls.renderMarked();
}

// ---- details, which are a part of the state ----

function openDetails(hit, focusWords = false) {
  if (state.show !== hit.id) {
    state = { ...state, show: hit.id };
    write(state, { push: !details.isOpen() });
  }
  showDetails(hit, focusWords);
}

function showDetails(hit, focusWords = false) {
  details.open(hit, {
    text: info.can_match ? splitText(state.text).text : "", isMarked: marked.has(hit.id), focusWords, onCopy: openDetails,
    hasPrevious: Boolean(results.beside(hit, -1)), hasNext: Boolean(results.beside(hit, 1)),
  });
}

function lookAtImage() {
  const known = results.find(state.id);
  if (known) return openDetails(known);
  const url = state.upload ? uploads.get(state.upload) : api.imageUrl(state.id);
  showDetails({ id: "", url, name: "Image of the query", caption: "" });
}

function step(by) {
  const next = results.beside(details.hit(), by);
  if (next) openDetails(next);
}

// After a reload or the back button: as the URL has it.
function reopen() {
  const hit = state.show && results.find(state.show);
  if (hit) showDetails(hit);
  else if (details.isOpen() && details.hit()?.id) details.close();
}

function fromDetails(changes) {
  details.close();
  change(changes);
  $("results").focus();
}

const does = { change, lookAtImage, open: openDetails, mark: toggleMark, step, clear };

$("details").addEventListener("close", () => {
  if (!state.show) return;
  state = { ...state, show: "" };
  write(state, { push: false });
});
$("similar").addEventListener("click", () => fromDetails({ id: details.hit().id, upload: "", text: "" }));
$("not-this").addEventListener("click", () => {
  const { id } = details.hit();
  fromDetails({ not: [...state.not.filter((each) => each !== id), id].slice(-8) });
});
$("mark").addEventListener("click", () => toggleMark(details.hit()));
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));

// ---- the controls ----

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  change({ text: $("text").value.trim() });
});
$("text").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const text = $("text").value, wasDraft = isDraft;
    state = { ...state, text, anyway: false, show: "" };
    run({ typed: hasQuery(state), push: !wasDraft });
  }, TYPING);
});
$("rerank-more").addEventListener("click", again);
$("clear").addEventListener("click", () => { clear(); $("text").focus(); });
$("rerank").addEventListener("change", () => {
  const rerank = $("rerank").checked;
  change({ rerank, sure: rerank || knowsAlone(state, info) ? state.sure : 0 });
});
$("fold").addEventListener("change", () => change({ fold: $("fold").checked }));
$("probability").addEventListener("input", () => setSure(Number($("probability").value)));
$("probability").addEventListener("change", again);
$("unmark").addEventListener("click", () => { marked.clear(); results.mark(); controls.renderMarked(); });
$("as-csv").addEventListener("click", () => marked.download("marked.csv", "text/csv", marked.toCsv()));
$("as-json").addEventListener("click", () => marked.download("marked.json", "application/json", marked.toJson()));
$("help").addEventListener("click", () => $("keys").showModal());
addEventListener("popstate", () => {
  state = read();
  isDraft = false;
  run({ push: false });
});

// ---- start ----

const login = () => { if (!$("login").open) $("login").showModal(); };

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.useToken($("token").value.trim());
  try {
    await start();
    $("login").close();
  } catch (error) {
    $("login-error").textContent = error.status === 401 ? "This token is not the right one." : error.message;
  }
});

async function start() {
  info = await api.info();
  document.title = `Search ${info.index.count.toLocaleString("en")} images – dualfuse`;
  await loadFields();
  await run({ push: false });
}

function tryStart() {
  start().catch((error) => {
    if (error.status === 401) return login();
    if (error.status === 503) setTimeout(tryStart, 1500);
    results.message(error.status === 503 ? "Warming up" : "This did not work", error.message,
      ...(error.status === 503 ? [] : [["Try again", tryStart]]));
  });
}

theme.start();
drop.start(useFile, (id) => change({ id, upload: "" }));
keyboard.start(does);
results.start({ open: openDetails, mark: toggleMark, again, widen, restart: () => change(empty()),
  showAnyway: () => change({ anyway: true }), showAll: () => { setSure(0); again(); } });
tryStart();
