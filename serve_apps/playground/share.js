// The storyboard as a link, as a file and as a GIF; and back.
import { byId, counted, download, el, say, showError } from "./dom.js";
import { encodeGif } from "./gif.js";
import { fromFile, fromFragment, LINK_CHARS, toDocument, toFragment } from "./link.js";
import { decoded, drawFrame, smallCopy } from "./images.js";
import { replay } from "./replay.js";
import { begin, changed, nameOf, state, work } from "./state.js";

const GIF_MIN_PX = 288, GIF_MAX_PX = 512, LAST_FRAME = 2;
const show = (...nodes) => { byId("shared").replaceChildren(...nodes); byId("gif-made").replaceChildren(); };
const address = (fragment) => `${location.origin}${location.pathname}#${fragment}`;

async function link() {
  const { board, current } = state;
  let text = address(await toFragment(toDocument(board, current, { link: true })));
  let note = "It holds the source image, the actions, seeds and picks, none of the predicted images: whoever opens it replays the steps on this server, and the same seeds give the same images.";
  if (text.length > LINK_CHARS) {
    const source = await smallCopy(board.get(0).image, LINK_CHARS / 2);
    text = source && address(await toFragment(toDocument(board, current, { link: true, source })));
    note = "The source image does not fit into a link: this one holds a smaller copy, so the replayed images can differ. A file holds everything.";
  }
  if (!text || text.length > LINK_CHARS) throw new Error("This storyboard is too large for a link; save it as a file.");
  const field = el("input", { type: "text", readonly: true, value: text, "aria-label": "Link to this storyboard", onfocus: (event) => event.target.select() });
  show(field, el("p", { class: "hint", text: note }));
  try {
    await navigator.clipboard.writeText(text); // only over https or on this machine
    say("The link is copied.");
    field.before(el("p", { class: "done", text: "Copied." }));
  } catch { field.focus(); }
}

function save() {
  const text = JSON.stringify(toDocument(state.board, state.current));
  download(new Blob([text], { type: "application/json" }), "storyboard.json");
  show(el("p", { class: "done", text: "Saved as storyboard.json, every image in it." }));
  say("Saved as storyboard.json.");
}

async function gif(signal) {
  const path = state.board.path(state.current).filter(({ image }) => image);
  const seconds = Number(byId("gif-seconds").value) || 1, hasCaptions = byId("gif-captions").checked;
  const side = (await decoded(path[0].image)).naturalWidth;
  // A small image is enlarged by a whole number, so that its pixels stay square.
  const size = side < GIF_MIN_PX ? side * Math.ceil(GIF_MIN_PX / side) : Math.min(side, GIF_MAX_PX);
  const frames = [];
  for (const [place, { image, action }] of path.entries()) {
    const { data, width, height } = await drawFrame(image, size, hasCaptions ? action || "source" : null);
    const pause = place === path.length - 1 && path.length > 1 ? LAST_FRAME : 1;
    frames.push({ data, width, height, delay_cs: Math.round(100 * seconds * pause) });
    await new Promise((then) => setTimeout(then)); // the page stays alive
    signal.throwIfAborted();
  }
  const blob = new Blob([encodeGif({ width: frames[0].width, height: frames[0].height, frames })], { type: "image/gif" });
  download(blob, "storyboard.gif");
  const url = URL.createObjectURL(blob);
  const summary = `${counted(frames.length, "frame")}, ${Math.ceil(blob.size / 1000)} kB: from the source to “${nameOf(state.current)}”.`;
  byId("gif-made").replaceChildren(el("img", { src: url, alt: "The storyboard as a GIF", class: "gif", onload: () => URL.revokeObjectURL(url) }), el("p", { class: "done", text: `Saved as storyboard.gif: ${summary}` }));
  say(`Saved as storyboard.gif: ${summary}`);
}

function open({ board, current, copy }) {
  show();
  begin(board, { current, isCopy: copy });
  const waiting = board.waiting().length;
  say(waiting ? `A storyboard of ${counted(board.all.length - 1, "step")}. Replay makes its images.` : "The storyboard is open.");
}

async function again(signal) {
  const { board } = state;
  await replay(board, { signal, onFrame: (frame, isSame) => {
    if (isSame === false) state.differing.push(nameOf(frame.id));
    say(`${board.waiting().length} left to replay.`);
    changed();
  } });
  say("All steps are replayed.");
}

export async function openAddress() {
  if (!location.hash.startsWith("#s=")) return;
  try { open(await fromFragment(location.hash)); } catch (error) { showError(error.message); }
}

export function wireShare() {
  byId("link").addEventListener("click", () => work("link", link));
  byId("save").addEventListener("click", save);
  byId("gif").addEventListener("submit", (event) => { event.preventDefault(); work("gif", gif); });
  byId("replay").addEventListener("click", () => work("replay", again));
  document.querySelectorAll(".open-file").forEach((input) => input.addEventListener("change", async () => {
    const file = input.files[0];
    input.value = "";
    if (!file) return;
    showError("");
    try { open(await fromFile(file)); } catch (error) { showError(error.message); }
  }));
  window.addEventListener("hashchange", openAddress);
}

export function drawShare() {
  const { board, busy } = state, waiting = board ? board.waiting().length : 0;
  for (const id of ["link", "save", "gif-button", "replay"]) byId(id).disabled = busy !== null;
  byId("replay-box").hidden = !waiting && !(board && state.differing.length);
  if (byId("replay-box").hidden) return;
  byId("replay").hidden = !waiting;
  byId("replay").textContent = busy?.what === "replay" ? `Replaying, ${waiting} left…` : `Replay ${counted(waiting, "step")}`;
  byId("replay-note").textContent = !state.differing.length
    ? state.isCopy ? "This link holds a smaller copy of the source image: what comes out can differ from what was shared."
      : "The link says how each step was made; this server makes the images again: same seed, same image."
    : `Not the images that were shared: ${state.differing.join("; ")}. Another model, or another version of it, is served here.`;
}
