// Calls of the API. Every failure becomes an ApiError with a message for people.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let running = null; // the query that is under way; a newer one cancels it

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service cannot be reached. Check that it is running and that you are connected.");
  }
  let answer = null;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error; // else not JSON: a proxy answered
  }
  if (response.ok && answer) return answer;
  throw new ApiError(response.status, sentence(answer?.error?.message ?? `The service answered ${response.status}.`));
}

// Messages of the API begin in lower case, for logs and programs.
const sentence = (message) => message.charAt(0).toUpperCase() + message.slice(1) + (/[.!?]$/.test(message) ? "" : ".");

const json = (body) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

export const info = () => call("/v1/info");
export const fields = async () => (await call("/v1/fields")).fields;
export const explain = (image, text) => call("/v1/explain", json({ ...image, text }));

// A new query cancels the one before; a further page of hits is cancelled with its query.
export function query(path, body, { isPage = false } = {}) {
  if (!isPage) {
    running?.abort();
    running = new AbortController();
  }
  return call(path, { ...json(body), signal: running?.signal });
}

// With the revision of a hit the browser keeps the image for good; without it, it asks whether the image has changed.
const version = (start, revision) => (revision ? `${start}v=${revision}` : "");
const path = (id) => `/v1/images/${encodeURIComponent(id)}`;
export const imageUrl = (id, revision = "") => path(id) + version("?", revision);
export const thumbnailUrl = (id, width, revision = "") => `${path(id)}/thumbnail?w=${width}${version("&", revision)}`;

export function useToken(token) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `dualfuse_token=${encodeURIComponent(token)}; Path=/; SameSite=Strict; Max-Age=2592000${secure}`;
}
