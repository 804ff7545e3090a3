// Calls of the API. Every failure becomes an ApiError with a message for people.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let running = null; // the search that is under way; a newer one cancels it

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service cannot be reached. Is it still running?");
  }
  if (response.ok) return response.json();
  let message = `The service answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not JSON: a proxy answered
  }
  throw new ApiError(response.status, message);
}

const json = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const info = () => call("/v1/info");
export const fields = async () => (await call("/v1/fields")).fields;
export const explain = (id, text, image) => call("/v1/explain", json({ id, text, ...(image ? { image } : {}) }));

export async function search(body, file, { page = false } = {}) {
  if (!page) {
    running?.abort();
    running = new AbortController();
  }
  const signal = running?.signal;
  if (!file) return call("/v1/search", { ...json(body), signal });
  const form = new FormData();
  form.set("request", JSON.stringify(body));
  form.set("image", file, "query");
  return call("/v1/search", { method: "POST", body: form, signal });
}

export const imageUrl = (id) => `/v1/images/${encodeURIComponent(id)}`;
export const thumbnailUrl = (id, width) => `${imageUrl(id)}/thumbnail?w=${width}`;

export function useToken(token) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `dualfuse_token=${encodeURIComponent(token)}; Path=/; SameSite=Strict; Max-Age=2592000${secure}`;
}
