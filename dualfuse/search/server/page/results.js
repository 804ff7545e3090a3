// The grid of hits, its further pages, and what is written where hits would be noise or are missing.

import * as api from "./api.js";
import { $, element, number, percent, plural } from "./dom.js";
import { card, showMarked, slide } from "./grid.js";
import * as marked from "./marked.js";

const ENOUGH = 10; // re-ranked hits that tell whether anything is likely
const LIKELY = 0.1; // below, nothing is likely: the nearest images are shown on request
let hits = [], cursor = "", asked = null, isLoading = false, actions = null;
let view = { sure: 0, anyway: false };

// `actions` are what cards and messages do: open, mark, and changes of the query.
export const start = (given) => { actions = given; observer.observe($("more")); };
export const find = (id) => hits.flatMap((hit) => [hit, ...(hit.folded ?? [])]).find((hit) => hit.id === id);
export const stale = () => $("grid").classList.add("stale");

// The hit before or after another one, among those that are seen.
export function beside(hit, step) {
  const ids = [...$("grid").children].filter((each) => !each.hidden).map((each) => each.dataset.id);
  return find(ids[ids.indexOf(hit.id) + step]);
}

export function show(answer, { path, body, sure, anyway }) {
  const before = new Map([...$("grid").children].map((each) => [each.dataset.id, each])), finish = slide($("grid"));
  [hits, cursor, asked, view] = [answer.hits, sure ? "" : answer.cursor, { path, body }, { sure, anyway }];
  $("grid").classList.remove("stale");
  $("grid").replaceChildren();
  $("status").textContent = summary(answer);
  $("rerank-more").hidden = !answer.budget_exceeded; // repeated, it continues: the service keeps what it has read
  addCards(hits, 0, before);
  finish();
}

function summary(answer) {
  const parts = [plural(answer.total ?? answer.index.count, "image")];
  if (answer.timing) parts.push(`${number(Math.max(1, Math.round(answer.timing.total_ms)))} ms`);
  if (answer.reranked) parts.push(`best ${number(answer.reranked)} re-ranked`);
  if (answer.budget_exceeded) parts.push("re-ranking stopped at its time budget");
  if (answer.truncated) parts.push("the query was too long: its end was ignored");
  if (answer.exact === false) parts.push("approximate");
  return parts.join(" · ");
}

function addCards(some, start, before = new Map()) {
  $("grid").append(...some.map((hit, index) => made(hit, start + index, { before: before.get(hit.id) })));
  threshold();
  observer.unobserve($("more")); // a short page leaves its end in view: observed again, it is reported again
  observer.observe($("more"));
}

const made = (hit, rank, more) => card(hit, rank, { isMarked: marked.has(hit.id), onOpen: actions.open,
  onMark: actions.mark, onUnfold: (li) => unfold(li, hit, rank), ...more });

// Near copies appear behind the hit that they were folded into, and go again.
function unfold(li, hit, rank) {
  const badge = li.querySelector(".fold"), isOpen = badge.getAttribute("aria-expanded") === "true";
  badge.setAttribute("aria-expanded", String(!isOpen));
  const ids = new Set(hit.folded.map((each) => each.id));
  if (isOpen) [...$("grid").querySelectorAll(".is-copy")].filter((each) => ids.has(each.dataset.id)).forEach((each) => each.remove());
  else li.after(...hit.folded.map((each) => made({ ...each, rank_before: null }, rank, { isCopy: true })));
}

const observer = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) nextPage();
}, { rootMargin: "900px" });

async function nextPage() {
  if (!cursor || isLoading || $("grid").classList.contains("stale")) return;
  isLoading = true;
  const { path, body } = asked;
  try {
    const answer = await api.query(path, { ...body, cursor }, { isPage: true });
    if (asked.body !== body) return;
    cursor = answer.cursor;
    hits.push(...answer.hits);
    addCards(answer.hits, hits.length - answer.hits.length);
  } catch (error) {
    if (error.name === "AbortError" || asked.body !== body) return;
    if (error.status === 409) actions.again();
    else moreFailed(error, cursor);
    cursor = "";
  } finally {
    isLoading = false;
  }
}

function moreFailed(error, from) {
  const again = () => { $("more-failed").hidden = true; cursor = from; nextPage(); };
  $("more-failed").replaceChildren(`More images could not be loaded. ${error.message} `,
    element("button", { type: "button", className: "button", onclick: again }, "Try again"));
  $("more-failed").hidden = false;
}

// ---- how sure hits are ----

const looked = () => hits.filter((hit) => typeof hit.probability === "number");
const isSure = (hit) => !view.sure || (hit.probability ?? 0) >= view.sure / 100;

export function setSure(sure) {
  view = { ...view, sure };
  threshold();
}

// Hides hits that are not sure enough, at once and without a request, and counts those that are.
function threshold() {
  const known = looked(), kept = hits.filter(isSure), best = Math.max(0, ...known.map((hit) => hit.probability));
  const isNoise = !view.sure && !view.anyway && known.length >= Math.min(ENOUGH, hits.length || 1) && best < LIKELY;
  const hidden = new Set(hits.filter((hit) => isNoise || !isSure(hit)).flatMap((hit) => [hit, ...(hit.folded ?? [])])
    .map((hit) => hit.id));
  for (const each of $("grid").children) each.hidden = hidden.has(each.dataset.id);
  $("kept").textContent = view.sure ? `${kept.length} of ${known.length}` : "";
  $("more-failed").hidden = true;
  const more = $("rerank-more").hidden ? "" : ` Only ${plural(known.length, "image")} could be re-ranked in time.`;
  if (!hits.length) {
    const [label, act] = actions.widen();
    message("Nothing here", label ? "No image of the collection passes the filters." : "The collection has no images to show.",
      ...(label ? [[label, act]] : []));
  } else if (isNoise) {
    message("Nothing is likely", `None of the ${plural(known.length, "most similar image")} is likely to show this: the best `
      + `one has ${percent(best)}.`, ["Show the nearest images", actions.showAnyway]);
  } else if (!kept.length) {
    message("Nothing is that sure", known.length ? `No image matches with at least ${view.sure} %. The best one has `
      + `${percent(best)}.${more}` : "These images have not been re-ranked yet.", ["Show all of them", actions.showAll]);
  } else $("empty").hidden = true;
}

// ---- messages ----

export function message(title, text, ...buttons) {
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
  $("empty-actions").replaceChildren(...buttons.map(([label, act]) =>
    element("button", { type: "button", className: "go", onclick: act }, label)));
  $("empty").hidden = false;
}

export function failed(error, again) {
  [hits, cursor] = [[], ""];
  $("grid").classList.remove("stale");
  $("grid").replaceChildren();
  $("status").textContent = "";
  $("rerank-more").hidden = true;
  const isQuery = error.status >= 400 && error.status < 500 && error.status !== 429; // the same again would fail again
  message(error.status === 429 ? "Many people are searching" : "This did not work", error.message,
    isQuery ? ["Start again", actions.restart] : ["Try again", again]);
}

export function mark(id) {
  for (const each of $("grid").children) if (each.dataset.id === id || id === undefined) showMarked(each, marked.has(each.dataset.id));
}
