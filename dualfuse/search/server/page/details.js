// Details of a hit: the image, what each word looks at, its fields, and what can be done with it.

import { explain, imageUrl } from "./api.js";
import { $, element, number, percent } from "./dom.js";

let maps = [];
let current = null;

export function open(hit, text, canExplain, isMarked, focusWords = false) {
  current = hit;
  $("details-title").textContent = hit.name.split("/").pop();
  $("details-caption").textContent = hit.caption;
  $("details-image").src = imageUrl(hit.id);
  $("details-image").alt = hit.caption || hit.name;
  $("open").href = imageUrl(hit.id);
  $("details-scores").replaceChildren(
    ...(hit.probability === null ? [] : [element("strong", {}, percent(hit.probability)), "match · "]),
    `cosine ${hit.cosine.toFixed(3)}`);
  showMarked(isMarked);
  showFields(hit);
  $("heat").hidden = true;
  $("explain").hidden = !(canExplain && text);
  if (!$("details").open) $("details").showModal();
  if (canExplain && text) showWords(hit, text, focusWords);
}

export const showMarked = (isMarked) => {
  $("mark").textContent = isMarked ? "Unmark" : "Mark";
};

function showFields(hit) {
  const rows = [["Name", hit.name], ...Object.entries(hit.fields)];
  if (hit.size !== null) rows.push(["Size", hit.size < 1e6 ? `${number(Math.ceil(hit.size / 1000))} kB` : `${(hit.size / 1e6).toFixed(1)} MB`]);
  if (hit.time !== null) rows.push(["Changed", new Date(1000 * hit.time).toLocaleDateString()]);
  $("fields").tBodies[0].replaceChildren(...rows.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, String(value ?? "")))));
}

async function showWords(hit, text, focusWords) {
  $("words").replaceChildren(element("span", { className: "quiet" }, "Looking at the image…"));
  let answer;
  try {
    answer = await explain(hit.id, text);
  } catch (error) {
    if (current === hit) $("words").replaceChildren(element("span", { className: "quiet" }, error.message));
    return;
  }
  if (current !== hit) return;
  maps = answer.words.map((word) => word.map);
  $("words").replaceChildren(...answer.words.map((word, index) => wordButton(word, index, answer)));
  draw(0);
  if (focusWords) $("words").firstElementChild?.focus();
}

function wordButton(word, index, answer) {
  const label = index ? word.word : "everything";
  const note = index ? word.probability_without : answer.probability;
  const said = index ? `without ${word.word}: ` : "";
  const show = () => draw(index);
  return element("button", { type: "button", onmouseenter: show, onfocus: show, onclick: show, "aria-pressed": "false" },
    label, note === null ? null : element("small", { title: `${said}${percent(note)}` }, index ? `without: ${percent(note)}` : percent(note)));
}

function draw(index) {
  [...$("words").children].forEach((button, each) => button.setAttribute("aria-pressed", String(each === index)));
  const map = maps[index], image = $("details-image"), canvas = $("heat");
  if (!map || !image.naturalWidth) return;
  const box = image.getBoundingClientRect(), stage = canvas.parentElement.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
  canvas.style.left = `${box.left - stage.left + (box.width - width) / 2}px`;
  canvas.style.top = `${box.top - stage.top + (box.height - height) / 2}px`;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const small = new OffscreenCanvas(map[0].length, map.length), paint = small.getContext("2d");
  const pixels = paint.createImageData(small.width, small.height);
  map.flat().forEach((heat, at) => pixels.data.set([255, 90, 0, Math.round(235 * heat ** 1.3)], 4 * at));
  paint.putImageData(pixels, 0, 0);
  [canvas.width, canvas.height] = [Math.round(width), Math.round(height)];
  const target = canvas.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.clearRect(0, 0, canvas.width, canvas.height);
  target.drawImage(small, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
}

$("details-image").addEventListener("load", () => maps.length && !$("explain").hidden && draw(0));
$("details").addEventListener("close", () => {
  current = null;
  maps = [];
  $("details-image").removeAttribute("src");
});
