// Cards of hits: thumbnails that load when they come into view, how sure the model is, which way the hit moved.

import { thumbnailUrl } from "./api.js";
import { described, element, percent, plural } from "./dom.js";

// `before` is the card of the same hit in the grid that this one replaces: its image is there already.
export function card(hit, rank, { isMarked, onOpen, onMark, onUnfold, before, isCopy = false }) {
  const moved = hit.rank_before === null || hit.rank_before === undefined ? 0 : hit.rank_before - rank;
  const label = [described(hit), score(hit), moved ? way(moved) : "", isCopy ? "near copy" : ""];
  const open = element("button", { type: "button", className: "open", onclick: () => onOpen(hit),
    "aria-label": label.filter(Boolean).join(", ") },
  element("span", { className: "frame" }, before?.dataset.revision === hit.revision ? before.querySelector("img") : thumbnail(hit)),
  element("span", { className: "label" }, element("span", { className: "name", title: hit.name }, described(hit)),
    score(hit) && element("span", { className: hit.probability > 0.5 ? "sure high" : "sure" }, score(hit))));
  const tick = element("button", { type: "button", className: "tick", "aria-pressed": String(isMarked), tabIndex: -1,
    "aria-label": `Mark ${described(hit)}`, onclick: () => onMark(hit) }, "✓");
  const made = element("li", { className: `card${isMarked ? " is-marked" : ""}${isCopy ? " is-copy" : ""}`, draggable: true,
    ondragstart: (event) => event.dataTransfer.setData("application/x-dualfuse-id", hit.id) },
  open, tick, badges(hit, moved, () => onUnfold(made)));
  made.dataset.id = hit.id;
  made.dataset.revision = hit.revision;
  return made;
}

const score = (hit) => {
  if (typeof hit.probability === "number") return percent(hit.probability);
  return typeof hit.cosine === "number" ? hit.cosine.toFixed(3) : null;
};
const way = (moved) => `moved ${moved > 0 ? "up" : "down"} by ${Math.abs(moved)}`;

function thumbnail(hit) {
  const image = element("img", { loading: "lazy", decoding: "async", alt: described(hit), width: 256, height: 256,
    draggable: false, onload: () => image.classList.toggle("fills", isNearlySquare(image)),
    onerror: () => image.closest(".frame")?.classList.add("broken") });
  image.srcset = `${thumbnailUrl(hit.id, 256, hit.revision)} 1x, ${thumbnailUrl(hit.id, 512, hit.revision)} 2x`;
  image.src = thumbnailUrl(hit.id, 256, hit.revision);
  return image;
}

const isNearlySquare = ({ naturalWidth: width, naturalHeight: height }) => Math.max(width / height, height / width) < 1.25;

function badges(hit, moved, unfold) {
  const made = element("span", { className: "badges" });
  if (moved) {
    made.append(element("span", { className: `badge ${moved > 0 ? "up" : "down"}`, "aria-hidden": "true",
      title: `${way(moved)}: rank ${hit.rank_before + 1} before re-ranking` }, `${moved > 0 ? "▲" : "▼"} ${Math.abs(moved)}`));
  }
  if (hit.copies) {
    made.append(element("button", { type: "button", className: "badge fold", "aria-expanded": "false", onclick: unfold },
      `+ ${plural(hit.copies, "near copy", "near copies")}`));
  }
  return made;
}

export function showMarked(made, isMarked) {
  made.classList.toggle("is-marked", isMarked);
  made.querySelector(".tick").setAttribute("aria-pressed", String(isMarked));
}

const shown = (grid) => [...grid.children].filter((each) => !each.hidden);

// The card that a key leads to: by one in a row, by a row up and down, to the ends.
export function neighbour(grid, current, key) {
  const cards = shown(grid), at = cards.indexOf(current);
  if (key === "Home" || at < 0) return cards[0];
  if (key === "End") return cards.at(-1);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  return cards[at + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key]] ?? cards[at];
}

// Returns a function that slides the cards which stay from where they are now to their new places.
export function slide(grid) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return () => {};
  const isNear = (box) => box.bottom > -200 && box.top < innerHeight + 200;
  const places = new Map(shown(grid).map((each) => [each.dataset.id, each.getBoundingClientRect()]));
  return () => {
    for (const each of shown(grid)) {
      const from = places.get(each.dataset.id), to = each.getBoundingClientRect();
      if (!from || !isNear(from) || !isNear(to) || (from.left === to.left && from.top === to.top)) continue;
      each.animate([{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }],
        { duration: 260, easing: "cubic-bezier(.2, .8, .3, 1)" });
    }
  };
}
