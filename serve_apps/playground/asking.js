// "What happened?" between any two frames: the inverse model's answer.
import { bar, byId, el, imageElement, number, percent, say } from "./dom.js";
import { whatHappened } from "./predict.js";
import { modelsFor, nameOf, state, work } from "./state.js";

const ENDS = ["from", "to"];
let offeredFor = null; // the frame that the two were last set for

export function wireAsking() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    work("ask", answer);
  });
  ENDS.forEach((end) => byId(end).addEventListener("change", () => { drawEnds(); byId("answer").replaceChildren(); }));
}

const chosen = (end) => state.board.get(Number(byId(end).value));

async function answer(signal) {
  const [source, target] = ENDS.map(chosen);
  if (!source?.image || !target?.image) throw new Error("One of the two frames is not replayed yet.");
  byId("answer").replaceChildren(el("p", { class: "hint", text: "Asking…" }));
  let reply;
  try { reply = await whatHappened(source.image, target.image, { model: modelsFor("idm")[0]?.id, signal }); } catch (error) {
    byId("answer").replaceChildren();
    throw error;
  }
  const mean = reply.mean ?? null, asked = target.parent === source.id ? target.action : null;
  byId("answer").replaceChildren(
    el("p", { class: "action", text: reply.text || "(no words)" }),
    asked === null ? "" : el("p", { class: "hint", text: asked === reply.text ? "That is the action that was asked for." : `Asked for was: ${asked}` }),
    typeof mean !== "number" ? "" : el("p", { class: "score" }, bar(Math.exp(mean)), el("b", { text: `${percent(Math.exp(mean))} per token` }),
      el("span", { class: "hint", text: `log-likelihood ${number(reply.logprob)}, mean ${number(mean)} nats` })),
    reply.tokens.length ? el("ul", { class: "tokens", "aria-label": "Probability of each token" }, ...reply.tokens.map(token)) : "");
  say(`What happened: ${reply.text}`);
}

const token = ({ token: text, logprob }) =>
  el("li", {}, el("span", { text: text.trim() || "␣" }), el("span", { class: "hint", text: percent(Math.exp(logprob)) }));

export function drawAsking() {
  const { board, busy } = state;
  if (!board) return;
  const now = board.get(state.current), frames = board.all;
  byId("ask-box").hidden = frames.length < 2;
  byId("ask-button").disabled = busy !== null;
  const previous = ENDS.map((end) => byId(end).value);
  for (const end of ENDS) byId(end).replaceChildren(...frames.map(({ id }) => el("option", { value: id, text: nameOf(id) })));
  const isNew = offeredFor !== now && now.parent !== null;
  const wanted = isNew ? [now.parent, now.id] : previous.map(Number);
  ENDS.forEach((end, place) => { byId(end).value = String(board.get(wanted[place]) ? wanted[place] : 0); });
  if (isNew || previous.some((value, place) => value !== byId(ENDS[place]).value)) byId("answer").replaceChildren();
  if (isNew) offeredFor = now;
  drawEnds();
}

function drawEnds() {
  for (const end of ENDS) {
    const frame = chosen(end), shot = byId(`${end}-shot`).querySelector("img");
    if (shot && shot.getAttribute("src") === frame?.image) continue;
    byId(`${end}-shot`).replaceChildren(frame?.image ? imageElement(frame.image, "") : el("span", { class: "hint", text: "?" }));
  }
}
