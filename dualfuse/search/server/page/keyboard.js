// Keys: / writes a query, arrows move, Enter opens, e explains, x marks, Esc leaves.

import * as details from "./details.js";
import { $ } from "./dom.js";
import { neighbour } from "./grid.js";
import * as results from "./results.js";

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

// `does` has open(hit, focusWords), step(by), mark(hit) and clear().
export function start(does) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if ($("keys").open || $("login").open) return;
    if (closeFilter(event)) return;
    if (event.target === $("text")) return inBox(event, does);
    if (event.target.matches("input:not([type=checkbox], [type=range]), textarea")) return;
    if (event.key === "/") return void focusBox(event);
    if (event.key === "?") return $("keys").showModal();
    if (details.isOpen()) inDetails(event, does);
    else inGrid(event, does);
  });
}

function focusBox(event) {
  event.preventDefault();
  if (details.isOpen()) details.close();
  $("text").focus();
  $("text").select();
}

function closeFilter(event) {
  const open = document.querySelector(".chip[open]");
  if (event.key !== "Escape" || !open) return false;
  open.open = false;
  open.querySelector("summary").focus();
  return true;
}

function inBox(event, does) {
  if (event.key === "Escape") does.clear();
  else if (event.key === "ArrowDown") {
    event.preventDefault();
    $("grid").querySelector(".card:not([hidden]) .open")?.focus();
  }
}

function inDetails(event, does) {
  if (event.target.closest("#words") && event.key.startsWith("Arrow")) return moveWord(event);
  if (event.key === "x" && !$("mark").hidden) does.mark(details.hit());
  else if (event.key === "e") $("words").querySelector("button")?.focus();
  else if (event.key === "ArrowLeft") does.step(-1);
  else if (event.key === "ArrowRight") does.step(1);
}

function moveWord(event) {
  event.preventDefault();
  const forward = event.key === "ArrowRight" || event.key === "ArrowDown";
  const word = event.target.closest("button");
  (forward ? word?.nextElementSibling : word?.previousElementSibling)?.focus();
}

function inGrid(event, does) {
  const focused = document.activeElement?.closest(".card");
  const hit = focused && results.find(focused.dataset.id);
  if (!hit) return;
  if (event.key === "x") does.mark(hit);
  else if (event.key === "e") does.open(hit, true);
  else if (event.key === "Escape") focusBox(event);
  else if (MOVES.includes(event.key)) {
    event.preventDefault();
    neighbour($("grid"), focused, event.key)?.querySelector(".open").focus();
  }
}
