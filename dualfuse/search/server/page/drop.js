// Images that are dropped anywhere on the page, pasted, or chosen as a file.

import { $ } from "./dom.js";

const ID = "application/x-dualfuse-id"; // a card that is dragged

// `useFile(file)` and `useId(id)` are called with what came.
export function start(useFile, useId) {
  let depth = 0;
  const types = (event) => [...(event.dataTransfer?.types ?? [])];
  const isImage = (event) => types(event).includes("Files") || types(event).includes(ID);
  const end = () => { depth = 0; $("drop").hidden = true; };
  addEventListener("dragenter", (event) => {
    if (!isImage(event)) return;
    depth += 1;
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => { if (isImage(event) && --depth <= 0) end(); });
  addEventListener("dragend", end);
  addEventListener("dragover", (event) => { if (isImage(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!isImage(event)) return;
    event.preventDefault();
    end();
    const id = event.dataTransfer.getData(ID), files = [...event.dataTransfer.files];
    if (id) useId(id);
    else if (files.length) useFile(files.find((each) => each.type.startsWith("image/")) ?? files[0]);
  });
  addEventListener("paste", (event) => {
    const image = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!image) return;
    event.preventDefault();
    useFile(image);
  });
  $("attach").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files.length) useFile($("file").files[0]);
    $("file").value = "";
  });
}
