// A storyboard as text. A file holds every image. A link holds the source and how each frame was made (action, seed, which
// candidate): the server's answers repeat by seed, so whoever opens it makes the images again.
import { Storyboard } from "./tree.js";

export const LINK_CHARS = 16_000;
const FORMAT = "wm-storyboard", VERSION = 1, MAX_FRAMES = 500, MAX_CHARS = 4_000, MAX_BYTES = 200_000_000;
const IMAGE_URL = /^data:image\/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+$/;
const NUMBERS = ["seed", "best_of", "index", "group", "step"];

// link: with the source's image alone. source: another copy of that image (then nothing can be checked by its sum).
export function toDocument(board, current, { link = false, source = null } = {}) {
  const number = new Map(board.all.map((frame, place) => [frame.id, place]));
  const frames = board.all.map((frame) => {
    const entry = { parent: frame.parent === null ? null : number.get(frame.parent), action: frame.action, via: frame.via };
    if (!source && frame.sum) entry.sum = frame.sum;
    if (frame.parent === null) return { image: source || frame.image };
    return link ? entry : { ...entry, image: frame.image, verification: frame.verification };
  });
  return { format: FORMAT, version: VERSION, ...(source ? { copy: true } : {}), current: number.get(current), frames };
}

// {board, current, copy}; an Error in words for what is no storyboard. The text may be anybody's.
export function fromDocument(value) {
  const need = (right, what) => { if (!right) throw new Error(`This is no storyboard of this page: ${what}.`); };
  need(value && typeof value === "object" && value.format === FORMAT, `its format is not ${FORMAT}`);
  need(value.version === VERSION, `its version is not ${VERSION}`);
  const frames = value.frames;
  need(Array.isArray(frames) && frames.length && frames.length <= MAX_FRAMES, `expected 1 to ${MAX_FRAMES} frames`);
  need(isImage(frames[0]?.image), "its source is no image");
  const board = new Storyboard(frames[0].image);
  frames.slice(1).forEach((frame, place) => {
    const name = `frame ${place + 1}`;
    need(frame && Number.isInteger(frame.parent) && frame.parent >= 0 && frame.parent <= place, `${name} has no parent before it`);
    need(isAction(frame.action), `${name} has no action`);
    need(frame.image === undefined || frame.image === null || isImage(frame.image), `${name} is no image`);
    need(frame.sum === undefined || /^[0-9a-f]{8}$/.test(frame.sum), `the sum of ${name} is not one`);
    board.frames.set(place + 1, {
      id: place + 1, parent: frame.parent, action: frame.action, image: frame.image || null, sum: frame.sum || null,
      verification: verification(frame.verification), via: via(frame.via, need, name),
    });
  });
  board.next = frames.length;
  const current = Number.isInteger(value.current) && board.get(value.current) ? value.current : 0;
  return { board, current, copy: value.copy === true };
}

const isImage = (value) => typeof value === "string" && IMAGE_URL.test(value);
const isAction = (value) => typeof value === "string" && value !== "" && value.length <= MAX_CHARS;

function via(value, need, name) {
  need(value && ["edit", "rollout"].includes(value.kind), `${name} does not say how it was made`);
  const fields = { kind: value.kind, settings: {} };
  for (const key of NUMBERS) {
    if (value[key] === undefined || value[key] === null) continue;
    need(Number.isInteger(value[key]) && value[key] >= 0, `${key} of ${name} is no number`);
    fields[key] = value[key];
  }
  need(Number.isInteger(fields.seed), `${name} has no seed`);
  if (value.actions !== undefined) {
    need(Array.isArray(value.actions) && value.actions.length <= MAX_FRAMES && value.actions.every(isAction), `the actions of ${name} are none`);
    fields.actions = value.actions;
  }
  if (typeof value.model === "string") fields.model = value.model.slice(0, 200);
  for (const [name, setting] of Object.entries(value.settings || {})) {
    const key = RENAMED[name] ?? name;
    if (SETTINGS.includes(key) && typeof setting === "number") fields.settings[key] = setting;
  }
  return fields;
}

// The fields of a request that the form sets.
export const SETTINGS = ["best_of", "num_beams", "min_gain_nats", "temperature", "top_p", "top_k", "guidance_scale", "image_guidance_scale"];
// Their names in storyboards of earlier versions.
const RENAMED = { beam: "num_beams", margin: "min_gain_nats", guidance: "guidance_scale", guidance_image: "image_guidance_scale" };

function verification(value) {
  const fields = {};
  for (const key of ["logprob", "mean_logprob", "tokens", "rank", "seed", "index", "unchanged_share"]) {
    if (typeof value?.[key] === "number") fields[key] = value[key];
  }
  return fields;
}

// "s=..." for the part of an address after #: JSON, deflated, in base64 with - and _.
export async function toFragment(document) {
  const packed = await through(new Blob([JSON.stringify(document)]), new CompressionStream("deflate-raw"));
  let text = "";
  for (let at = 0; at < packed.length; at += 8192) text += String.fromCharCode(...packed.subarray(at, at + 8192));
  return `s=${btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
}

export async function fromFragment(fragment) {
  const text = fragment.replace(/^#?s=/, "").replaceAll("-", "+").replaceAll("_", "/");
  let value;
  try {
    const packed = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    value = JSON.parse(new TextDecoder().decode(await through(new Blob([packed]), new DecompressionStream("deflate-raw"), 4_000_000)));
  } catch { throw new Error("The link is damaged: it may have been cut off on its way."); }
  return fromDocument(value);
}

export async function fromFile(file) {
  if (file.size > MAX_BYTES) throw new Error(`This file has ${Math.round(file.size / 1e6)} MB; at most ${MAX_BYTES / 1e6} are read.`);
  let value;
  try { value = JSON.parse(await file.text()); } catch { throw new Error(`“${file.name}” is no storyboard: it is no JSON.`); }
  return fromDocument(value);
}

// The bytes of a blob sent through a stream, at most so many: a link of a few bytes may unfold to gigabytes.
async function through(blob, transform, maxBytes = Infinity) {
  const reader = blob.stream().pipeThrough(transform).getReader(), parts = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
    if (length > maxBytes) { await reader.cancel(); throw new Error("too large"); }
  }
  const bytes = new Uint8Array(length);
  parts.reduce((at, part) => { bytes.set(part, at); return at + part.length; }, 0);
  return bytes;
}
