// Storage of the browser that may be full or switched off: what cannot be kept lasts until the page is left.

const PREFIX = "dualfuse.";

function of(kind) {
  const storage = () => globalThis[kind]; // reading the property raises an error where storage is off
  return {
    get(name) {
      try {
        return storage().getItem(PREFIX + name);
      } catch {
        return null;
      }
    },
    set(name, value) {
      try {
        storage().setItem(PREFIX + name, value);
      } catch {
        // full or off
      }
    },
    // Removes the oldest of the entries whose names begin so, until at most `count` are left.
    keep(start, count) {
      try {
        const names = Object.keys(storage()).filter((name) => name.startsWith(PREFIX + start)).sort();
        for (const name of names.slice(0, Math.max(0, names.length - count))) storage().removeItem(name);
      } catch {
        // off
      }
    },
  };
}

export const tab = of("sessionStorage");
export const browser = of("localStorage");
