// What the page shows, as one value that lives in the URL; an uploaded image alone does not fit there.

export const empty = () => ({
  text: "", id: "", not: [], where: {}, rerank: null, collapse: false, probability: 0,
});

export function read(search = location.search) {
  const query = new URLSearchParams(search), state = empty();
  state.text = query.get("q") ?? "";
  state.id = query.get("like") ?? "";
  state.not = query.getAll("not").map((id) => ({ id }));
  state.collapse = query.get("fold") === "1";
  state.rerank = query.has("rerank") ? query.get("rerank") === "1" : null;
  state.probability = Math.min(99, Math.max(0, Number(query.get("sure")) || 0));
  for (const [name, value] of query) {
    if (!name.startsWith("f.")) continue;
    try {
      (state.where[name.slice(2)] ??= []).push(JSON.parse(value));
    } catch {
      // a URL that someone edited: the filter is ignored
    }
  }
  return state;
}

export function write(state, { push = true } = {}) {
  const query = new URLSearchParams();
  if (state.text) query.set("q", state.text);
  if (state.id) query.set("like", state.id);
  for (const each of state.not) query.append("not", each.id);
  if (state.collapse) query.set("fold", "1");
  if (state.rerank !== null) query.set("rerank", state.rerank ? "1" : "0");
  if (state.probability) query.set("sure", String(state.probability));
  for (const [name, values] of Object.entries(state.where)) {
    for (const value of values) query.append(`f.${name}`, JSON.stringify(value));
  }
  const url = query.size ? `?${query}` : location.pathname;
  if (url === (location.search || location.pathname)) return;
  history[push ? "pushState" : "replaceState"](null, "", url);
}

// "a red car -truck" is the text "a red car" and the negative word "truck".
export function splitText(text) {
  const words = text.split(/\s+/).filter(Boolean);
  const negative = words.filter((word) => /^-\p{L}/u.test(word)).map((word) => word.slice(1));
  return { text: words.filter((word) => !/^-\p{L}/u.test(word)).join(" "), negative };
}
