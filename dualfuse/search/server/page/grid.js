// The grid of hits: cards with thumbnails that load when they come into view.

import { thumbnailUrl } from "./api.js";
import { element, percent } from "./dom.js";

export function card(hit, rank, { isMarked, onOpen, onMark }) {
  const name = hit.name.split("/").pop();
  const described = hit.caption || name;
  const sure = hit.probability === null ? hit.cosine.toFixed(3) : percent(hit.probability);
  const moved = hit.rank_before === null ? 0 : hit.rank_before - rank;
  const badges = element("span", { className: "badges" });
  if (moved) {
    const way = moved > 0 ? "up" : "down";
    badges.append(element("span", { className: `badge ${way}`, title: `rank ${hit.rank_before + 1} before re-ranking` },
      `${moved > 0 ? "▲" : "▼"} ${Math.abs(moved)}`));
  }
  if (hit.copies) badges.append(element("span", { className: "badge" }, `+${hit.copies} near ${hit.copies > 1 ? "copies" : "copy"}`));
  const image = element("img", { src: thumbnailUrl(hit.id, 256), loading: "lazy", decoding: "async", alt: described, width: 256, height: 256 });
  const open = element("button", { type: "button", onclick: () => onOpen(hit), "aria-label": `${described}, ${sure}` },
    element("span", { className: "frame" }, image),
    element("span", { className: "label" },
      element("span", { className: "name", title: hit.name }, described),
      element("span", { className: hit.probability > 0.5 ? "sure high" : "sure" }, sure)));
  const tick = element("button", { type: "button", className: "tick", "aria-pressed": String(isMarked), onclick: () => onMark(hit),
    "aria-label": `Mark ${described}`, tabIndex: -1 }, "✓");
  const made = element("li", { className: isMarked ? "card is-marked" : "card" }, open, tick, badges);
  made.dataset.id = hit.id;
  return made;
}

// Arrow keys: by one in a row, by a row up and down.
export function neighbour(grid, current, key) {
  const cards = [...grid.children];
  const at = cards.indexOf(current);
  if (at < 0) return cards[0];
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  return cards[at + step] ?? cards[at];
}
