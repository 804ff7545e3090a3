// Light, dark, or as the system has it; remembered by this browser.

import { $ } from "./dom.js";
import { browser } from "./storage.js";

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const LABELS = { auto: "Colours: as the system", light: "Colours: light", dark: "Colours: dark" };

export function set(theme) {
  const known = theme in NEXT ? theme : "auto";
  document.documentElement.dataset.theme = known;
  browser.set("theme", known);
  const button = $("theme");
  if (!button) return;
  button.title = LABELS[known];
  button.setAttribute("aria-label", `${LABELS[known]}; switch to ${NEXT[known] === "auto" ? "the system's" : NEXT[known]}`);
}

export function start() {
  set(browser.get("theme") ?? "auto");
  $("theme")?.addEventListener("click", () => set(NEXT[document.documentElement.dataset.theme]));
}
