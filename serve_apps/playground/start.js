// The source image: dropped, picked, pasted, or one of the toy world's where a nano model is served.
import { byId, el, imageElement, say, showError } from "./dom.js";
import { get } from "./api.js";
import { readImage } from "./images.js";
import { begin, modelsFor, readModels, side, state } from "./state.js";
import { Storyboard } from "./tree.js";

export async function take(blob, suggestions = []) {
  showError("");
  try {
    if (!side()) await readModels().catch(() => {}); // as it is, if the server does not say: it scales by itself
    begin(new Storyboard(await readImage(blob, side())), { suggestions });
    say("The source image is there. Type an action.");
    // Where fingers type, the keyboard would cover half of the page unasked.
    if (!matchMedia("(pointer: coarse)").matches) byId("action").focus({ preventScroll: true });
  } catch (error) { showError(error.message); }
}

const firstImage = (files) => [...(files || [])].find((file) => file.type.startsWith("image/")) || files?.[0];

export function wireStart() {
  const drop = byId("drop");
  byId("file").addEventListener("change", (event) => {
    if (event.target.files[0]) take(event.target.files[0]);
    event.target.value = "";
  });
  // The whole page takes a drop, so that no image replaces the page by a near miss.
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const file = firstImage(event.dataTransfer?.files);
    if (file) take(file);
    else showError("What was dropped is no file; save the image first, or copy and paste it.");
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  byId("new").addEventListener("click", () => {
    begin(null);
    byId("file").focus();
  });
}

export function drawStart() {
  byId("start").hidden = state.board !== null;
  byId("work").hidden = byId("story").hidden = state.board === null;
}

let offered = false;
// Images the model knows; other models have never seen this world.
export async function offerSamples() {
  if (offered || !modelsFor("fdm").some((model) => model.side_px <= 48)) return;
  offered = true;
  let samples;
  try { samples = (await get("playground/samples")).data; } catch { return; }
  byId("samples").replaceChildren(...samples.map(({ url, actions }, place) =>
    el("button", { type: "button", class: "sample", onclick: async () => {
      try { await take(await (await fetch(url)).blob(), actions); } catch { showError("The sample cannot be read."); }
    } }, imageElement(url, `Sample ${place + 1}: objects on a table`))));
  byId("sample-box").hidden = false;
}
