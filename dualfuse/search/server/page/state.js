// What the page shows, as one value that lives in the URL. Of an uploaded image only the key is there (uploads.js).

export const empty = () => ({
  text: "", id: "", upload: "", not: [], where: {}, rerank: true, fold: true, sure: 0, anyway: false, show: "",
});

export function read(search = location.search) {
  const query = new URLSearchParams(search), state = empty();
  state.text = query.get("q") ?? "";
  state.id = query.get("like") ?? "";
  state.upload = query.get("image") ?? "";
  state.not = query.getAll("not").filter(Boolean);
  state.rerank = query.get("rerank") !== "0";
  state.fold = query.get("fold") !== "0";
  state.anyway = query.get("anyway") === "1";
  state.sure = Math.min(99, Math.max(0, Math.round(Number(query.get("sure"))) || 0));
  state.show = query.get("show") ?? "";
  for (const [name, value] of query) {
    if (!name.startsWith("f.")) continue;
    const condition = parse(value);
    if (condition) state.where[name.slice(2)] = condition;
  }
  return state;
}

// Puts the state into the URL: as a new entry of the history, or in place of the current one.
export function write(state, { push = true } = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of [["q", state.text], ["like", state.id], ["image", state.upload]]) {
    if (value) query.set(name, value);
  }
  for (const id of state.not) query.append("not", id);
  for (const [name, condition] of Object.entries(state.where)) query.set(`f.${name}`, JSON.stringify(condition));
  if (!state.rerank) query.set("rerank", "0");
  if (!state.fold) query.set("fold", "0");
  if (state.sure) query.set("sure", String(state.sure));
  if (state.anyway) query.set("anyway", "1");
  if (state.show) query.set("show", state.show);
  const url = query.size ? `?${query}` : location.pathname;
  if (url === (location.search || location.pathname)) return;
  history[push ? "pushState" : "replaceState"](null, "", url);
}

// A condition of `where`: a list of values, or operators; anything else, such as an edited URL, is ignored.
function parse(value) {
  try {
    const condition = JSON.parse(value);
    if (Array.isArray(condition)) return condition.length ? condition : null;
    return condition && typeof condition === "object" && Object.keys(condition).length ? condition : null;
  } catch {
    return null;
  }
}
