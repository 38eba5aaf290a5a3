// The current frame, and the form that asks for the next.
import { byId, el, imageElement, number, percent, say } from "./dom.js";
import { drawCandidates, drawProgress, drawSteps, empty } from "./candidates.js";
import { compare, isComparing } from "./compare.js";
import { SETTINGS } from "./link.js";
import { predict, rollout } from "./predict.js";
import { changed, frame, modelsFor, nameOf, state, work } from "./state.js";

const INTEGERS = ["best_of", "num_beams", "top_k"];
const ROLLOUT_ONLY = ["num_beams"];
const actionsTyped = () => byId("action").value.split("\n").map((line) => line.trim()).filter(Boolean);

// The fields that are filled in; an Error names one that is no number in its range.
function settings(forRollout) {
  const values = {};
  for (const name of [...SETTINGS, "seed"]) {
    const input = byId(`set-${name}`);
    if (!input.validity.valid) throw new Error(`${input.labels[0].firstChild.textContent.trim()}: ${input.validationMessage}`);
    if (input.value === "" || (ROLLOUT_ONLY.includes(name) && !forRollout)) continue;
    const value = Number(input.value);
    values[name] = INTEGERS.includes(name) || name === "seed" ? Math.round(value) : value;
  }
  return values;
}

const onlySettings = ({ seed: _, model: __, ...rest }) => rest;

async function go(signal) {
  const actions = actionsTyped(), now = frame(), chosen = settings(actions.length > 1);
  if (!actions.length) throw new Error("Type an action first: what should happen in the image?");
  if (!now.image) throw new Error("This step is not replayed yet: replay the storyboard, or continue from another step.");
  if (isComparing()) {
    if (actions.length > 1) throw new Error("One action at a time is compared: leave the others out.");
    await goCompare(now, actions[0], chosen, signal);
    return;
  }
  if (!byId("model").hidden && byId("model").value) chosen.model = byId("model").value;
  if (actions.length > 1) await goMany(now, actions, chosen, signal);
  else await goOne(now, actions[0], chosen, signal);
  byId("action").value = "";
  drawButton();
}

async function goOne(now, action, chosen, signal) {
  const onPreview = drawProgress(now.image, action, chosen.best_of ?? 8), start = performance.now();
  try {
    const answer = await predict(now.image, action, chosen, { onPreview, signal });
    const via = { kind: "edit", seed: answer.seed, best_of: answer.best_of, model: answer.model, settings: onlySettings(chosen) };
    drawCandidates(now.id, action, answer, via, (performance.now() - start) / 1000);
  } catch (error) { empty(); throw error; }
}

// The action stays in its box: it may be compared again.
async function goCompare(now, action, chosen, signal) {
  empty();
  try { await compare(now.image, action, chosen, signal); } catch (error) { empty(); throw error; }
}

async function goMany(now, actions, chosen, signal) {
  const { onStep, onEnd } = drawSteps(actions);
  let answer;
  try { answer = await rollout(now.image, actions, chosen, { onStep, signal }); } catch (error) { empty(); throw error; }
  onEnd(answer);
  const board = state.board, group = Math.max(0, ...board.all.map(({ via }) => via?.group ?? 0)) + 1;
  const common = { kind: "rollout", group, actions, seed: answer.seed, best_of: answer.best_of, model: answer.model, settings: onlySettings(chosen) };
  let parent = now.id;
  answer.steps.forEach(({ image, verification }, step) => {
    parent = board.add(parent, { action: actions[step], image, verification, via: { ...common, step } }).id;
  });
  state.current = parent;
  changed();
  say(`${answer.steps.length} steps are in the storyboard.`);
}

function drawButton() {
  const count = actionsTyped().length;
  byId("go").textContent = isComparing() ? "Compare" : count > 1 ? `Roll out ${count} actions` : "Predict";
}

// As if typed and sent: what is predicted is seen in the box while it is.
export function predictNow(action) {
  byId("action").value = action;
  drawButton();
  byId("step").requestSubmit();
}

export function wireStep() {
  const field = byId("action");
  byId("step").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.board) work("predict", go);
  });
  byId("stop").addEventListener("click", () => {
    state.busy?.stop();
    say("Stopped.");
  });
  field.addEventListener("input", drawButton);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("step").requestSubmit();
  });
  byId("line").addEventListener("click", () => {
    field.value = `${field.value.replace(/\n+$/, "")}\n`;
    field.rows = Math.min(8, field.value.split("\n").length + 1);
    field.focus();
  });
  empty();
}

let shown = null;
export function drawStep() {
  byId("go").hidden = state.busy !== null;
  byId("stop").hidden = state.busy === null;
  const models = modelsFor("fdm");
  byId("model-field").hidden = byId("model").hidden = models.length < 2 || isComparing();
  drawButton();
  if (byId("model").options.length !== models.length) {
    byId("model").replaceChildren(...models.map(({ id }) => el("option", { value: id, text: id })));
  }
  const now = frame();
  if (!now || (shown?.now === now && shown.image === now.image)) return;
  shown = { now, image: now.image };
  const { mean_logprob: mean, unchanged_share: unchanged } = now.verification;
  const facts = typeof mean === "number" ? `${percent(Math.exp(mean))} per token, mean ${number(mean)}, unchanged ${percent(unchanged)}` : "";
  byId("now").replaceChildren(
    el("div", { class: "shot" }, now.image ? imageElement(now.image, nameOf(now.id)) : el("span", { class: "hint", text: "not replayed yet" })),
    el("figcaption", {}, el("b", { text: nameOf(now.id) }), facts ? el("span", { class: "hint", text: facts }) : null));
  drawSuggestions();
}

// What can be done in an example; it is known of the example alone, not of what comes after.
function drawSuggestions() {
  const actions = state.current === 0 ? state.suggestions : [];
  byId("suggestions").hidden = !actions.length;
  byId("suggestions").replaceChildren(el("span", { class: "hint", text: "Try:" }), ...actions.map((text) =>
    el("button", { type: "button", class: "chip", text, onclick: () => predictNow(text) })));
}
