// A map of patches, drawn over the image of the details: what a word does not look at is darkened, in any colours.

import { $ } from "./dom.js";

const COLOR = [8, 10, 20], DARKEST = 180;
let shown = null;

export function clear() {
  shown = null;
  $("heat").hidden = true;
}

// `map` has rows of numbers from 0 to 1; `what` names what the map belongs to.
export function show(map, what) {
  shown = { map, what };
  draw();
}

function draw() {
  const image = $("details-image"), canvas = $("heat");
  if (!shown?.map?.length || !image.naturalWidth) return;
  const { map, what } = shown;
  place(canvas, image);
  const small = new OffscreenCanvas(map[0].length, map.length), paint = small.getContext("2d");
  const pixels = paint.createImageData(small.width, small.height);
  map.flat().forEach((value, at) => pixels.data.set([...COLOR, Math.round(DARKEST * (1 - value) ** 1.2)], 4 * at));
  paint.putImageData(pixels, 0, 0);
  const target = canvas.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.clearRect(0, 0, canvas.width, canvas.height);
  target.drawImage(small, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `Where ${what} looks: strongest ${strongest(map)}`);
  canvas.hidden = false;
}

// Covers the image itself, which is centred in its box.
function place(canvas, image) {
  const box = image.getBoundingClientRect(), stage = canvas.parentElement.getBoundingClientRect();
  const padding = 2 * parseFloat(getComputedStyle(image).paddingLeft);
  const scale = Math.min((box.width - padding) / image.naturalWidth, (box.height - padding) / image.naturalHeight);
  const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
  canvas.style.left = `${box.left - stage.left + (box.width - width) / 2}px`;
  canvas.style.top = `${box.top - stage.top + (box.height - height) / 2}px`;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width)), Math.max(1, Math.round(height))];
}

// In words, for those who do not see the map.
function strongest(map) {
  const values = map.flat(), at = values.indexOf(Math.max(...values)), columns = map[0].length;
  const third = (position, count) => Math.min(2, Math.floor((3 * (position + 0.5)) / count));
  const row = ["upper", "middle", "lower"][third(Math.floor(at / columns), map.length)];
  const column = ["left", "centre", "right"][third(at % columns, columns)];
  return row === "middle" && column === "centre" ? "in the centre" : `at the ${row} ${column}`;
}

$("details-image").addEventListener("load", draw);
addEventListener("resize", () => { if (!$("heat").hidden) draw(); });
