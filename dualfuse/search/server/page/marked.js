// The marked hits, kept in this tab, and their download as CSV or JSON.

import { tab } from "./storage.js";

const COLUMNS = ["name", "id", "caption", "probability", "cosine", "match", "size", "time"];

const marked = new Map(load().map((hit) => [hit.id, hit]));

export const has = (id) => marked.has(id);
export const count = () => marked.size;

export function toggle(hit) {
  if (!marked.delete(hit.id)) marked.set(hit.id, record(hit));
  save();
}

export function clear() {
  marked.clear();
  save();
}

export const toJson = () => JSON.stringify([...marked.values()].map(flat), null, 2);

export function toCsv() {
  const records = [...marked.values()].map(flat);
  const columns = [...new Set(records.flatMap(Object.keys))];
  return [columns, ...records.map((each) => columns.map((column) => each[column]))]
    .map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const record = (hit) => ({ ...Object.fromEntries(COLUMNS.map((name) => [name, hit[name] ?? null])), fields: hit.fields });
// A field of the owner never replaces the id, the name or a score.
const flat = ({ fields, ...rest }) =>
  ({ ...rest, ...Object.fromEntries(Object.entries(fields ?? {}).filter(([name]) => !(name in rest))) });

// A cell that begins like a formula would be run by a spreadsheet: an apostrophe makes it text.
function cell(value) {
  const text = String(value ?? "");
  const safe = typeof value === "string" && /^[\s]*[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n']/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function load() {
  try {
    const hits = JSON.parse(tab.get("marked") ?? "[]");
    return Array.isArray(hits) ? hits.filter((hit) => typeof hit?.id === "string") : [];
  } catch {
    return [];
  }
}

const save = () => tab.set("marked", JSON.stringify([...marked.values()]));
