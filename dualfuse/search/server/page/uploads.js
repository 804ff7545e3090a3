// Images that someone drops, pastes or chooses. They stay in this tab: a reload and the back button find them again.

import { tab } from "./storage.js";

const SMALL = 400_000; // bytes; a larger image is scaled down, because models read far smaller ones
const SIDE = 1024;
const KEPT = 6;
const images = new Map(); // data URLs by key

// Returns the key of an image file; raises an Error for people if the file is not an image.
export async function add(file) {
  if (!file?.type.startsWith("image/")) throw new Error("This file is not an image. Drop a JPEG, PNG, WebP or GIF.");
  const url = await dataUrl(file.size > SMALL ? await smaller(file) : file);
  const key = newKey();
  images.set(key, url);
  tab.keep("upload.", KEPT - 1);
  tab.set(`upload.${key}`, url);
  return key;
}

// Returns the data URL of an image; empty if this tab does not have it.
export const get = (key) => (key ? images.get(key) ?? tab.get(`upload.${key}`) ?? "" : "");

// Keys are in the order of time, so that the oldest images go first; the random part keeps tabs apart.
const newKey = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

async function smaller(file) {
  try {
    const bitmap = await createImageBitmap(file), scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
    const paint = canvas.getContext("2d");
    paint.fillStyle = "#fff"; // behind transparent parts
    paint.fillRect(0, 0, canvas.width, canvas.height);
    paint.imageSmoothingQuality = "high";
    paint.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
  } catch {
    return file; // a format that the browser cannot decode; the service may
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The image could not be read."));
    reader.readAsDataURL(blob);
  });
}
