// One item: the instruction, the input, what the models made of it, and the choice of the best and the worst.
import { vote } from "./api.js";
import { byId, el, say, showError, showProse, showView } from "./dom.js";
import { openZoom } from "./zoom.js";

const NAMES = ["best", "worst"];
const MISSING = { best: "Choose the best one.", worst: "Choose the worst one." };
const BADGES = { "": "", best: "✓ Best", worst: "✗ Worst", both: "Best and worst?" };
let current = null;  // { study, progress, shownAt, images, advance }
let busy = false;

const load = (src, alt) => new Promise((resolve, reject) => {
  const image = new Image();
  image.alt = alt;
  image.draggable = false;
  image.onload = () => {
    // Images of a small model are shown with their pixels, not blurred.
    image.classList.toggle("sharp", image.naturalWidth <= 128);
    resolve(image);
  };
  image.onerror = () => reject(new Error("An image could not be loaded: please load the page again."));
  image.src = src;
});

const label = (index) => `Model ${index + 1}`;
const choice = (name) => {
  const checked = byId(name).querySelector("input:checked");
  return checked ? Number(checked.value) : null;
};

// All images are there before the page changes: no slot is empty, nothing moves.
export async function showItem(study, progress, advance) {
  const { question, done, total } = progress;
  const [source, ...images] = await Promise.all([
    load(question.source, "Input image"),
    ...question.candidates.map((src, index) => load(src, `Image of model ${index + 1}`)),
  ]);
  const pages = [["Input", source.src], ...images.map((image, index) => [label(index), image.src])];
  byId("action").textContent = question.action;
  byId("source").querySelector(".shot").replaceChildren(source);
  byId("source").querySelector(".shot").onclick = () => openZoom(pages, 0);
  byId("candidates").replaceChildren(...images.map((image, index) => figure(image, index, pages)));
  for (const name of NAMES) byId(name).querySelector(".options").replaceChildren(...images.map((_, index) => option(name, index)));
  for (const node of document.querySelectorAll(".keys .last")) node.textContent = String(Math.min(images.length, 9));
  showProse(byId("instructions"), study.instructions);
  byId("count").textContent = `${done + 1} of ${total}`;
  byId("bar").max = total;
  byId("bar").value = done;
  byId("foot-code").textContent = progress.code;
  current = { study, progress, advance, count: images.length, shownAt: performance.now() };
  mark();
  showView("item", byId("action"));
  say(`Item ${done + 1} of ${total}`);
  // The next images come while this one is looked at.
  if (progress.upcoming) for (const src of [progress.upcoming.source, ...progress.upcoming.candidates]) new Image().src = src;
}

const figure = (image, index, pages) =>
  el("figure", { class: "shot-box" },
    el("button", { type: "button", class: "shot", "aria-label": `Enlarge model ${index + 1}`, onclick: () => openZoom(pages, index + 1) }, image),
    el("figcaption", {}, el("span", { text: label(index) }), el("span", { class: "badge", "aria-hidden": "true" })));

const option = (name, index) =>
  el("label", { class: "option" },
    el("input", { type: "radio", name, value: String(index), "aria-label": label(index), onchange: mark }),
    el("span", { "aria-hidden": "true", text: String(index + 1) }));

// Shows at the images what is chosen, and below what is missing.
function mark() {
  const chosen = { best: choice("best"), worst: choice("worst") };
  [...byId("candidates").children].forEach((node, index) => {
    const roles = NAMES.filter((name) => chosen[name] === index);
    const role = roles.length === 2 ? "both" : roles[0] || "";
    node.dataset.choice = role;
    node.querySelector(".badge").textContent = BADGES[role];
  });
  const text = problem(chosen);
  byId("missing").textContent = text;
  byId("missing").classList.toggle("wrong", chosen.best !== null && chosen.best === chosen.worst);
  byId("submit").dataset.complete = text ? "no" : "yes";
}

function problem({ best, worst }) {
  if (best === null && worst === null) return "Choose the best and the worst one.";
  for (const name of NAMES) if ((name === "best" ? best : worst) === null) return MISSING[name];
  return best === worst ? "The best and the worst must be two different models." : "";
}

async function submit() {
  if (busy || !current) return;
  const chosen = { best: choice("best"), worst: choice("worst") };
  const text = problem(chosen);
  if (text) {
    showError(text);
    const empty = NAMES.find((name) => chosen[name] === null) || "worst";
    (byId(empty).querySelector("input:checked") || byId(empty).querySelector("input")).focus();
    return;
  }
  const { study, progress, shownAt, advance } = current;
  busy = true;
  byId("submit").disabled = true;
  byId("submit").textContent = "Saving …";
  try {
    const seconds = Math.min((performance.now() - shownAt) / 1000, 600_000);
    const next = await vote(progress.code, { study_id: study.study_id, item_id: progress.question.item_id, ...chosen, seconds });
    showError("");
    await advance(next);
  } catch (error) {
    // Where the person is must be asked for, which may fail as well.
    try { await advance(null, error); } catch (second) { showError(second.message); }
  } finally {
    busy = false;
    byId("submit").disabled = false;
    byId("submit").textContent = "Save and continue";
  }
}

function pressed(event) {
  // With Shift, Windows makes an arrow of a digit of the number pad, and hides that Shift is held.
  const isArrow = event.code.startsWith("Numpad") && !event.shiftKey && !/^[1-9]$/.test(event.key);
  const digit = isArrow ? null : /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  const isElsewhere = byId("item").hidden || byId("zoom").open || event.ctrlKey || event.altKey || event.metaKey;
  if (isElsewhere || !current) return;
  if (digit && Number(digit[1]) <= current.count) {
    const input = byId(event.shiftKey ? "worst" : "best").querySelectorAll("input")[Number(digit[1]) - 1];
    input.checked = true;
    input.focus({ preventScroll: true });
    mark();
    event.preventDefault();
  } else if (event.key === "Enter" && !event.target.closest("button, summary, a")) {
    event.preventDefault();
    submit();
  }
}

export function wireItem() {
  byId("item").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  document.addEventListener("keydown", pressed);
  // Beside the images there is room for it; on a phone it opens by a tap.
  byId("criteria").open = matchMedia("(min-width: 900px)").matches;
}
