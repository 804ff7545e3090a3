// Elements from plain values. Text from the collection is only ever text content.

export const $ = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// A small round button with a cross.
export const cross = (label, onclick) =>
  element("button", { type: "button", className: "icon", "aria-label": label, onclick }, "✕");

export const percent = (probability) => {
  const value = 100 * probability;
  if (value > 99 && value < 100) return "> 99 %";
  return value > 0 && value < 1 ? "< 1 %" : `${Math.round(value)} %`;
};

export const number = (value) => value.toLocaleString("en");
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export const bytes = (size) =>
  size < 1e6 ? `${number(Math.ceil(size / 1000))} kB` : `${(size / 1e6).toFixed(1)} MB`;

// What a person calls a hit: its caption, else its file name without the ending.
export const fileName = (hit) => hit.name.split("/").pop();
export const described = (hit) => hit.caption || fileName(hit).replace(/(.)\.[a-z0-9]{2,4}$/i, "$1");
