// From what the page shows to a request of the API.

export const PAGE = 40;
const SURE = 96; // candidates that are looked at when only sure hits are wanted

// `a red car -truck -"traffic light"` is the text "a red car" and the negatives "truck" and "traffic light".
export function splitText(text) {
  const negative = [];
  const rest = text.replace(/(^|\s)-(?:"([^"]*)"|([\p{L}\p{N}]\S*))/gu, (_, space, quoted, word) => {
    const phrase = (quoted ?? word).trim();
    if (phrase) negative.push(phrase);
    return space;
  });
  return { text: rest.split(/\s+/).filter(Boolean).join(" "), negative };
}

// The same text without one of its negatives.
export function withoutNegative(text, phrase) {
  const quoted = ` ${text} `.replace(` -"${phrase}" `, " ").replace(` -${phrase} `, " ");
  return quoted.trim();
}

export const hasQuery = (state) => Boolean(splitText(state.text).text || state.id || state.upload);
export const canRerank = (state, info) => info.can_match && state.rerank && Boolean(splitText(state.text).text);

// A calibrated model knows the probability of hits that were not re-ranked, too, if a text is all that is asked for.
const isAllText = ({ text, id, upload, not }) => {
  const split = splitText(text);
  return Boolean(split.text) && !split.negative.length && !id && !upload && !not.length;
};
export const knowsAlone = (state, info) => info.calibrated === true && isAllText(state);
export const hasProbability = (state, info) => knowsAlone(state, info) || (info.can_match && Boolean(splitText(state.text).text));

// Returns null if nothing is asked for. While someone types, the text tower answers alone.
export function request(state, info, { image = "", typed = false } = {}) {
  if (!hasQuery(state)) return null;
  const { text, negative } = splitText(state.text);
  const reranks = canRerank(state, info) && !typed;
  const top = state.sure && (reranks || (knowsAlone(state, info) && !typed)) ? SURE : PAGE;
  const body = {
    top, where: state.where, collapse: state.fold,
    rerank: reranks ? Math.min(info.limits.rerank, Math.max(top, info.rerank)) : 0,
    not: [...negative.map((phrase) => ({ text: phrase })), ...state.not.map((id) => ({ id }))],
  };
  if (text) body.text = text;
  if (state.id) body.id = state.id;
  if (image) body.image = image;
  return body;
}
