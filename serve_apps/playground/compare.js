// Two models' predictions of one action, side by side and blind: the person chooses, then the names are told.
import { ask, get, Refused } from "./api.js";
import { byId, counted, el, imageElement, reveal, say } from "./dom.js";
import { changed, modelsFor, state, work } from "./state.js";

const PERSON = "wm-participant"; // a random code of this tab's choices, which says nothing else about anybody
const CHOICES = [["left", "← Left is better"], ["no_difference", "No difference"], ["right", "Right is better →"]];
const KEYS = { ArrowLeft: "left", ArrowRight: "right", 0: "no_difference" };

const ENDED = [404, 409, 410];
const HINT = byId("action-hint").textContent; // of the other mode

const tally = new Map(); // name of a model, or no_difference → choices of this page
let names = []; // models that may be compared; none: the server keeps no choices
let pending = null; // {id, action, board, sides, versus, revealed}: the images in sight, which wait for a choice
let again = null; // {action} of the comparison that was chosen last

const person = {
  get: () => { try { return sessionStorage.getItem(PERSON) || undefined; } catch { return undefined; } },
  set: (code) => { try { sessionStorage.setItem(PERSON, code); } catch { /* private window: each choice is somebody's */ } },
  forget: () => { try { sessionStorage.removeItem(PERSON); } catch { /* as above */ } },
};

export const isComparing = () => names.length > 1 && byId("mode-compare").checked;

// Whether the server compares; one model alone leaves nothing to compare, and is not asked about.
export async function readComparisons() {
  names = [];
  if (modelsFor("fdm").length > 1) {
    try { names = (await get("v1/wm/comparisons")).models || []; } catch (error) { if (error.status !== 404) throw error; }
  }
  changed();
}

async function request(body, signal) {
  try { return await ask("v1/wm/comparisons", { ...body, participant: person.get() }, signal); } catch (error) {
    if (error.param !== "participant") throw error;
    person.forget(); // the server has another store than before
    return ask("v1/wm/comparisons", body, signal);
  }
}

export async function compare(source, action, settings, signal) {
  const models = ["first", "second"].map((end) => byId(`compare-${end}`).value).filter(Boolean);
  if (models.length === 1) throw new Error("Choose two models, or leave both to chance.");
  if (models.length && models[0] === models[1]) throw new Error("Choose two different models.");
  pending = again = null;
  title();
  byId("found").replaceChildren(el("p", { class: "action", text: action }),
    el("p", { class: "hint", text: "Both models predict…" }), el("progress", { "aria-label": "Both models predict" }));
  reveal(byId("found"));
  say(`Comparing: ${action}`);
  const { best_of } = settings, body = { image: source, action, ...(best_of ? { best_of } : {}), ...(models.length ? { models } : {}) };
  const reply = await request(body, signal);
  person.set(reply.participant);
  draw(reply, action);
}

const title = () => { byId("found-title").textContent = "Which one shows it better?"; };
const image = (entry, format) => `data:image/${/^(jpeg|webp)$/.test(format) ? format : "png"};base64,${entry.b64_json}`;

function draw(reply, action) {
  if (!reply.left || !reply.right) throw new Refused("The server's answer holds no two images.");
  const side = (name) => el("figure", {},
    el("div", { class: "shot" }, imageElement(image(reply[name], reply.output_format), `The ${name} prediction`)),
    el("figcaption", { text: name === "left" ? "Left" : "Right" }));
  const sides = { left: side("left"), right: side("right") }, revealed = el("div");
  const versus = el("div", { class: "versus", tabindex: -1, role: "group", "aria-label": `Two predictions of: ${action}` }, sides.left, sides.right);
  pending = { id: reply.id, action, board: state.board, sides, versus, revealed };
  byId("found").replaceChildren(
    el("p", { class: "action", text: action }), versus,
    el("div", { class: "choices", role: "group", "aria-label": "Your choice" }, ...CHOICES.map(([choice, text]) =>
      el("button", { type: "button", text, "data-choice": choice, onclick: () => choose(choice) }))),
    revealed);
  revealed.append(el("p", { class: "hint", text: "Which model made which is told once you have chosen." }),
    el("p", { class: "hint keys", text: "Keys: ← left, → right, 0 no difference." }));
  reveal(byId("found").querySelector(".choices"));
  say("Two predictions, left and right. Choose the one that shows the action better.");
  // Arrow keys in the text would move its cursor; where fingers choose, nothing needs the focus.
  if (!matchMedia("(pointer: coarse)").matches) versus.focus({ preventScroll: true });
}

const choose = (choice) => pending && work("choose", async (signal) => {
  const shown = pending;
  let reply;
  try { reply = await ask(`v1/wm/comparisons/${encodeURIComponent(shown.id)}`, { choice }, signal); } catch (error) {
    if (ENDED.includes(error.status) && pending === shown) pending = null; // no choice is taken for it any more
    throw error;
  }
  if (pending === shown) pending = null;
  again = { action: shown.action };
  for (const { model } of [reply.left, reply.right]) tally.set(model, tally.get(model) || 0);
  const winner = choice === "no_difference" ? choice : reply[choice].model;
  tally.set(winner, (tally.get(winner) || 0) + 1);
  drawRevealed(shown, reply, choice);
});

function drawRevealed({ sides, revealed }, reply, choice) {
  for (const [side, node] of Object.entries(sides)) {
    const isChosen = side === choice;
    node.classList.toggle("chosen", isChosen);
    node.querySelector("figcaption").replaceChildren(
      el("b", { text: reply[side].model }), isChosen ? el("span", { class: "done", text: "your choice" }) : "");
  }
  byId("found").querySelectorAll("[data-choice]").forEach((button) => {
    button.disabled = true;
    button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
  });
  const wins = [...tally].filter(([name]) => name !== "no_difference").sort((a, b) => b[1] - a[1]);
  const ties = tally.get("no_difference") || 0, total = [...tally.values()].reduce((sum, each) => sum + each, 0);
  const next = el("button", { type: "button", class: "main", text: "Next", onclick: proceed });
  revealed.replaceChildren(
    el("p", { class: "done", text: "Your choice is stored." }),
    el("p", { class: "tally" }, el("b", { text: counted(total, "choice") }), " on this page: ",
      [...wins, ...(ties ? [["no difference", ties]] : [])].map(([name, number]) => `${name} ${number}`).join(" · ")),
    el("div", { class: "row" }, next), el("p", { class: "hint", text: `Seed ${reply.seed}, best of ${reply.best_of}. Next: another action of this image where it has some, else the same once more.` }));
  say(`Stored. Left was ${reply.left.model}, right was ${reply.right.model}.`);
  next.focus({ preventScroll: true });
  reveal(next);
}

// The example's next action, or the same action with another seed.
function proceed() {
  if (!again) return;
  const { suggestions } = state, place = suggestions.indexOf(again.action);
  byId("action").value = place < 0 ? again.action : suggestions[(place + 1) % suggestions.length];
  byId("step").requestSubmit();
}

export function wireComparing() {
  document.addEventListener("keydown", (event) => {
    const choice = KEYS[event.key];
    if (!pending || !choice || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.repeat) return;
    // What has a use for the key itself keeps it: fields, and the storyboard.
    if (event.target.closest("input, textarea, select, #board")) return;
    event.preventDefault();
    choose(choice);
  });
  for (const mode of ["predict", "compare"]) byId(`mode-${mode}`).addEventListener("change", changed);
}

export function drawComparing() {
  const isOn = names.length > 1;
  byId("mode").hidden = !isOn;
  byId("compare-note").hidden = byId("compare-models").hidden = !isComparing();
  byId("line").hidden = isComparing();
  byId("action-hint").textContent = isComparing() ? "Enter compares: two models predict, and you say which one shows it better." : HINT;
  const offered = [...byId("compare-first").options].map(({ value }) => value).filter(Boolean);
  if (isOn && offered.join("\n") !== names.join("\n")) {
    for (const end of ["first", "second"]) {
      byId(`compare-${end}`).replaceChildren(el("option", { value: "", text: "any" }), ...names.map((name) => el("option", { value: name, text: name })));
    }
  }
  // Where something else is in sight, no key chooses between images that nobody sees.
  if (pending && (pending.board !== state.board || !pending.versus.isConnected)) pending = null;
  byId("found").querySelectorAll("[data-choice]").forEach((button) => { button.disabled = state.busy !== null || !pending; });
  // Both models are asked with the server's own settings: those that would change nothing are not offered.
  for (const label of byId("step").querySelectorAll("#set-fields label:not(#model-field)")) {
    label.hidden = isComparing() && !label.querySelector("#set-best_of");
  }
}
