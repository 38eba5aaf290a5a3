// What a request brings: the image as it grows, then every candidate with what the verifier says of it.
import { bar, byId, counted, el, imageElement, number, percent, reveal, say } from "./dom.js";
import { changed, frame, state } from "./state.js";

const title = (text) => { byId("found-title").textContent = text; };

let shown = null; // {parent, action, answer, via} of the candidates in sight
let shownFor = null; // the storyboard that what is in sight belongs to

function clear(text) {
  shown = null;
  shownFor = state.board;
  title(text);
}

export const empty = () => {
  clear("Candidates");
  byId("found").replaceChildren(el("p", { class: "hint", text: "Candidates appear here, best first: each is scored by how likely the inverse model finds your action between the source and the candidate." }));
};

// The growing image of a request; returns what a preview is given to.
export function drawProgress(source, action, bestOf) {
  clear("Candidates");
  const image = imageElement(source, `Preview: ${action}`), progress = el("progress", { max: 1, value: 0, "aria-label": "Share of the image decoded" });
  const line = el("p", { class: "hint", text: "Decoding…" });
  byId("found").replaceChildren(el("div", { class: "preview" }, image, el("div", {},
    el("p", { class: "action", text: action }), progress, line)));
  reveal(byId("found"));
  say(`Predicting: ${action}`);
  return (url, share) => {
    image.src = url;
    if (typeof share !== "number") return;
    progress.value = share;
    line.textContent = `${percent(share)} decoded${bestOf > 1 ? "; this is one of the candidates" : ""}`;
  };
}

export function drawCandidates(parent, action, answer, via, taken_s) {
  shown = { parent, action, answer, via };
  const { candidates, numSampled, distinct, seed, failures = [] } = answer;
  const about = [
    `${distinct ?? candidates.length} distinct of ${numSampled} sampled${candidates.length < distinct ? `, the best ${candidates.length} shown` : ""}`,
    ...(failures.length ? [`${failures.length} without an image: ${[...new Set(failures.map(({ reason }) => String(reason)))].join(", ")}`] : []), `seed ${seed}`, `${number(taken_s, 1)} s`,
  ].join(" · ");
  const hasScores = candidates.some(({ verification }) => typeof verification.mean_logprob === "number");
  byId("found").replaceChildren(
    el("p", { class: "action", text: action }), el("p", { class: "hint", text: about }),
    el("ol", { class: "cards" }, ...candidates.map((candidate, place) => el("li", {}, card(candidate, place)))),
    el("p", { class: "hint", text: hasScores
      ? "Pick one to continue from it; pick another to branch. Bar and %: likelihood of the action per token, the mean in nats, as a probability. Unchanged: share of the image that is as in the source."
      : "Pick one to continue from it; pick another to branch. These were not verified: they come as they were sampled." }));
  mark();
  reveal(byId("found").querySelector(".cards"));
  say(`${counted(candidates.length, "candidate")}, best first. Pick one to continue from it.`);
}

function card({ image, verification }, place) {
  const { mean_logprob: mean, logprob, unchanged_share: unchanged, tokens, index } = verification;
  const isScored = typeof mean === "number", share = isScored ? Math.exp(mean) : null;
  const name = isScored ? `Rank ${place + 1}` : `Candidate ${(index ?? place) + 1}`;
  const scores = isScored ? `, ${percent(share)} per token, log-likelihood ${number(logprob)}, unchanged ${percent(unchanged)}` : "";
  const fact = (label, value, title) => el("span", { class: "fact", title }, el("span", { text: label }), el("b", { text: value }));
  return el("button", {
    type: "button", class: "card", "data-index": index ?? place, "aria-pressed": "false",
    "aria-label": `${name}${scores}. Continue from this one.`, onclick: (event) => pick(place, event.detail === 0),
  },
  el("span", { class: "shot" }, imageElement(image, "")),
  el("span", { class: "score" }, el("b", { class: "rank", text: isScored ? `#${place + 1}` : name }), ...(isScored ? [bar(share), el("b", { text: percent(share) })] : [])),
  isScored ? fact("mean", number(mean), "nats per token") : null,
  isScored ? fact("sum", number(logprob, 1), `log-likelihood of the action, ${tokens ?? "?"} tokens, in nats`) : null,
  typeof unchanged === "number" ? fact("unchanged", percent(unchanged), "share of the image that is as in the source") : null);
}

function pick(place, byKey) {
  const { parent, action, answer, via } = shown, { image, verification } = answer.candidates[place];
  const added = state.board.add(parent, { action, image, verification, via: { ...via, index: verification.index ?? place } });
  state.current = added.id;
  changed();
  reveal(byId("step"));
  say(`Step ${state.board.path(added.id).length - 1} is in the storyboard. Type the next action.`);
  if (byKey) byId("action").focus();
}

// Which candidate the current frame was.
export function mark() {
  const now = frame();
  if (shownFor !== state.board || (shown && !state.board?.get(shown.parent))) return empty();
  byId("found").querySelectorAll(".card").forEach((node) => {
    const isIt = shown && now && now.parent === shown.parent && now.via?.seed === shown.via.seed && String(now.via?.index) === node.dataset.index && now.action === shown.action;
    node.setAttribute("aria-pressed", String(Boolean(isIt)));
  });
}

// The steps of a rollout as they come. Returns what a step is given to, and what is called at the end.
export function drawSteps(actions) {
  clear("Steps");
  const line = el("p", { class: "hint", text: `Step 1 of ${actions.length}…` });
  const progress = el("progress", { max: actions.length, value: 0, "aria-label": "Steps done" });
  const items = actions.map((action, turn) => el("li", {}, el("span", { class: "shot blank" }), el("span", { class: "caption", text: `${turn + 1}. ${action}` })));
  byId("found").replaceChildren(line, progress, el("ol", { class: "cards steps" }, ...items));
  reveal(byId("found"));
  say(`Rolling out ${counted(actions.length, "action")}.`);
  const fill = (place, { image, action, verification }) => {
    const { mean_logprob: mean } = verification;
    items[place]?.replaceChildren(
      el("span", { class: "shot" }, imageElement(image, `After: ${action}`)),
      typeof mean === "number" ? el("span", { class: "score" }, bar(Math.exp(mean)), el("b", { text: percent(Math.exp(mean)) })) : "",
      el("span", { class: "caption", text: `${place + 1}. ${action}` }));
  };
  return {
    onStep: (step, place) => {
      fill(place, step);
      progress.value = place + 1;
      line.textContent = place + 1 < actions.length ? `Step ${place + 2} of ${actions.length}…` : "Done";
    },
    onEnd: ({ steps, logprob, mean_logprob: mean, seed }) => {
      steps.forEach((step, place) => fill(place, step));
      progress.remove();
      line.textContent = [
        `${counted(steps.length, "step")}, added to the storyboard`, `log-likelihood ${number(logprob, 1)}, mean ${number(mean)} nats per token`, `seed ${seed}`,
      ].join(" · ");
    },
  };
}
