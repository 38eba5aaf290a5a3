// The source image: an example of the server's, or one that is dropped, picked or pasted.
import { byId, el, imageElement, say, showError } from "./dom.js";
import { get, getBlob } from "./api.js";
import { readImage } from "./images.js";
import { begin, readModels, side, state } from "./state.js";
import { predictNow } from "./step.js";
import { Storyboard } from "./tree.js";

// Begin with an image. Of an example the first action is predicted at once; the others are offered below the box.
export async function take(blob, actions = []) {
  showError("");
  try {
    if (!side()) await readModels().catch(() => {}); // as it is, if the server does not say: it scales by itself
    begin(new Storyboard(await readImage(blob, side())), { suggestions: actions });
    // Where fingers type, the keyboard would cover half of the page unasked.
    if (!matchMedia("(pointer: coarse)").matches) byId("action").focus({ preventScroll: true });
    if (actions.length) predictNow(actions[0]);
    else say("The source image is there. Type an action.");
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
    (byId("examples").querySelector("button") || byId("file")).focus();
  });
}

export function drawStart() {
  byId("start").hidden = state.board !== null;
  byId("work").hidden = byId("story").hidden = state.board === null;
}

// The server's examples, once they can be read: a key may be needed first.
export async function offerExamples() {
  if (!byId("example-box").hidden) return;
  let examples;
  try { examples = (await get("v1/examples")).data; } catch { return; } // an older server, or one without any
  if (!Array.isArray(examples) || !examples.length) return;
  byId("examples").replaceChildren(...examples.map((example) => el("li", {}, card(example))));
  byId("example-box").hidden = false;
  byId("drop-title").textContent = "Or drop, paste or pick an image of your own";
  byId("start").classList.add("has-examples");
}

function card({ id, thumbnail, actions }) {
  const [action] = actions, name = id.replace(/\.\w+$/, "").replaceAll(/[-_]+/g, " ");
  return el("button", {
    type: "button", class: "example", title: name,
    "aria-label": action ? `${name}: predict “${action}”` : `${name}: start with this image`,
    onclick: async () => {
      try { await take(await getBlob(`v1/examples/${encodeURIComponent(id)}`), actions); } catch (error) { showError(error.message); }
    },
  }, el("span", { class: "shot" }, imageElement(thumbnail, "")), el("span", { class: "caption", text: action || name }));
}
