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

export const percent = (probability) => {
  const value = 100 * probability;
  if (value > 99 && value < 100) return "> 99 %";
  return value > 0 && value < 1 ? "< 1 %" : `${Math.round(value)} %`;
};

export const number = (value) => value.toLocaleString("en");
