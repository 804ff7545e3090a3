// Details of a hit: the image, what each word looks at, its fields, its near copies, and what can be done with it.

import { explain, imageUrl, thumbnailUrl } from "./api.js";
import { $, bytes, described, element, fileName, percent } from "./dom.js";
import * as heat from "./heat.js";

let current = null; // the hit, or the uploaded image of the query

export const isOpen = () => $("details").open;
export const hit = () => (isOpen() ? current : null);

// `text` is what the image is explained for: empty, nothing is explained.
export function open(hit, { text, isMarked, focusWords = false, onCopy, hasPrevious, hasNext }) {
  current = hit;
  heat.clear();
  $("details-title").textContent = fileName(hit);
  $("details-caption").textContent = hit.caption;
  $("details-image").src = hit.url ?? imageUrl(hit.id, hit.revision);
  $("details-image").alt = described(hit);
  $("open").href = hit.url ?? imageUrl(hit.id, hit.revision);
  for (const id of ["open", "similar", "not-this", "mark", "fields"]) $(id).hidden = Boolean(hit.url);
  showScores(hit);
  showMarked(isMarked);
  showFields(hit);
  showCopies(hit, onCopy);
  [$("previous").disabled, $("next").disabled] = [!hasPrevious, !hasNext];
  $("explain").hidden = !text;
  if (!$("details").open) $("details").showModal();
  if (text) showWords(hit, text, focusWords);
}

export const close = () => $("details").close();

export const showMarked = (isMarked) => {
  $("mark").textContent = isMarked ? "Unmark" : "Mark";
  $("mark").setAttribute("aria-pressed", String(isMarked));
};

function showScores(hit) {
  const parts = [];
  if (typeof hit.probability === "number") parts.push(element("strong", {}, percent(hit.probability)), "sure");
  if (typeof hit.cosine === "number") parts.push(`${parts.length ? " · " : ""}cosine ${hit.cosine.toFixed(3)}`);
  $("details-scores").replaceChildren(...parts);
}

function showFields(hit) {
  const rows = [["Name", hit.name], ...Object.entries(hit.fields ?? {}).filter(([, value]) => value !== null)];
  if (typeof hit.size === "number") rows.push(["Size", bytes(hit.size)]);
  if (typeof hit.time === "number") rows.push(["Changed", new Date(1000 * hit.time).toLocaleString()]);
  $("fields").tBodies[0].replaceChildren(...rows.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, String(value ?? "")))));
}

function showCopies(hit, onCopy) {
  const copies = hit.folded ?? [];
  $("copies").hidden = !copies.length;
  $("copies-list").replaceChildren(...copies.map((copy) => element("li", {}, element("button",
    { type: "button", onclick: () => onCopy(copy), title: copy.name },
    element("img", { src: thumbnailUrl(copy.id, 128, copy.revision), alt: described(copy), width: 72, height: 72 })))));
}

async function showWords(hit, text, focusWords) {
  const note = (message) => $("words").replaceChildren(element("span", { className: "quiet" }, message));
  note("Looking at the image…");
  $("words-hint").hidden = true;
  try {
    const answer = await explain(hit.url ? { image: hit.url } : { id: hit.id }, text);
    if (current !== hit || !isOpen()) return;
    $("words").replaceChildren(...answer.words.map((word, index) => wordButton(word, index, answer)));
    $("words-hint").hidden = false;
    press(0, answer.words[0]);
    if (focusWords) $("words").firstElementChild?.focus();
  } catch (error) {
    if (current === hit) note(error.message);
  }
}

// The first map stands for the whole text.
function wordButton(word, index, answer) {
  const probability = index ? word.probability_without : answer.probability;
  const show = () => press(index, word);
  const note = typeof probability !== "number" ? null
    : element("small", {}, index ? `without: ${percent(probability)}` : percent(probability));
  return element("button", { type: "button", onmouseenter: show, onfocus: show, onclick: show, "aria-pressed": "false" },
    index ? word.word : "everything", note);
}

function press(index, word) {
  [...$("words").children].forEach((button, each) => button.setAttribute("aria-pressed", String(each === index)));
  heat.show(word.map, index ? `“${word.word}”` : "the text");
}

$("details").addEventListener("close", () => {
  heat.clear();
  $("details-image").removeAttribute("src");
});
$("details-close").addEventListener("click", close);
$("details").addEventListener("click", (event) => { if (event.target === $("details")) close(); });
