// The marked hits, and their download as CSV or JSON.

export const marked = new Map();

const COLUMNS = ["name", "id", "caption", "probability", "cosine", "match"];

export function toJson() {
  return JSON.stringify([...marked.values()].map(record), null, 2);
}

export function toCsv() {
  const records = [...marked.values()].map(record);
  const columns = [...new Set(records.flatMap(Object.keys))];
  return [columns, ...records.map((each) => columns.map((column) => each[column]))]
    .map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

const record = (hit) => ({ ...Object.fromEntries(COLUMNS.map((name) => [name, hit[name]])), ...hit.fields });

// A cell that begins like a formula would be run by a spreadsheet: an apostrophe makes it text.
function cell(value) {
  const text = String(value ?? "");
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
