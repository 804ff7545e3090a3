// The controls above the grid, from the state: the box, the filters, what hits should not resemble, switches, marks.

import { thumbnailUrl } from "./api.js";
import { $, cross, element, number } from "./dom.js";
import { chips } from "./filters.js";
import * as marked from "./marked.js";
import { hasProbability, splitText, withoutNegative } from "./query.js";
import * as uploads from "./uploads.js";

let filters = [], shownImage = "";

// Builds the filters of a collection; `onChange(name, condition)` is called when one changes.
export function setFields(fields, onChange, onClear) {
  filters = chips(fields, onChange);
  $("filters").replaceChildren(...filters.map((each) => each.element),
    element("button", { type: "button", id: "no-filters", className: "text-button", onclick: onClear }, "Clear filters"));
}

// `does` has change(changes) of the state, and lookAtImage() of the query.
export function render(state, info, does) {
  const { text, negative } = splitText(state.text);
  if ($("text").value !== state.text) $("text").value = state.text;
  for (const each of filters) each.update(state.where[each.name]);
  if ($("no-filters")) $("no-filters").hidden = !Object.keys(state.where).length;
  $("rerank").checked = state.rerank;
  $("rerank-switch").hidden = !(info.can_match && text);
  $("fold").checked = state.fold;
  $("probability-slider").hidden = !hasProbability(state, info);
  renderSure(state.sure);
  renderImage(state, does);
  renderNegatives(state, negative, does);
  $("clear").hidden = !(state.text || state.id || state.upload);
  renderMarked();
}

export function renderSure(sure) {
  $("probability").value = sure;
  $("sure").textContent = `${sure} %`;
  $("probability").setAttribute("aria-valuetext", `at least ${sure} % sure`);
}

function renderImage(state, does) {
  const source = state.upload ? uploads.get(state.upload) : state.id ? thumbnailUrl(state.id, 128) : "";
  $("query-image").hidden = !source;
  if (shownImage === source) return;
  shownImage = source;
  $("query-image").replaceChildren(...(source ? [
    element("button", { type: "button", className: "bare", title: "Look at the image", "aria-label": "Look at the image of the query",
      onclick: does.lookAtImage }, element("img", { src: source, alt: "" })),
    cross("Remove the image from the query", () => does.change({ id: "", upload: "" }))] : []));
}

function renderNegatives(state, negative, does) {
  const pills = [
    ...negative.map((phrase) => element("li", { className: "pill" }, phrase,
      cross(`Remove “${phrase}”`, () => does.change({ text: withoutNegative(state.text, phrase) })))),
    ...state.not.map((id) => element("li", { className: "pill" },
      element("img", { src: thumbnailUrl(id, 64), alt: "an image that hits should not resemble" }),
      cross("Remove this image from the query", () => does.change({ not: state.not.filter((each) => each !== id) })))),
  ];
  $("negatives").hidden = !pills.length;
  $("negatives-list").replaceChildren(...pills);
}

export function renderMarked() {
  $("marked").hidden = !marked.count();
  $("marked-count").textContent = `${number(marked.count())} marked`;
}
