// Candidates of one action, steps of a row of actions, the action between two frames: what the page asks the server.
import { ask, Refused, stream } from "./api.js";
import { state } from "./state.js";

const PREVIEWS = 3, MAX_RETURNED = 10;
const STREAMED = ["stream", "partial_images", "return_candidates"];
const dataUrl = (b64, format) => `data:image/${/^(jpeg|webp)$/.test(format) ? format : "png"};base64,${b64}`;

// {seed, best_of, model, numSampled, distinct, candidates: [{image, verification}]}, best first. settings: fields of the request.
export async function predict(source, action, settings, { onPreview = () => {}, signal } = {}) {
  const body = { prompt: action, images: [{ image_url: source }], ...settings };
  try {
    return await streamed({ ...body, stream: true, partial_images: previewsOf(settings.model), return_candidates: true }, onPreview, signal);
  } catch (error) {
    if (!(error.status === 400 && STREAMED.includes(error.param))) throw error;
  }
  const n = Math.min(MAX_RETURNED, settings.best_of || MAX_RETURNED);
  return toAnswer(await ask("v1/images/edits", { ...body, n }, signal));
}

// An image editor has none: what it has in between is noise.
const previewsOf = (name = "fdm") => (state.models.find(({ id }) => id === name)?.kind === "editor" ? 0 : PREVIEWS);

async function streamed(body, onPreview, signal) {
  let answer = null;
  for await (const event of stream("v1/images/edits", body, signal)) {
    if (event.type === "reply") return toAnswer(event);
    if (event.type === "image_edit.partial_image") {
      onPreview(dataUrl(event.b64_json, event.output_format), event.progress, event.partial_image_index);
    }
    if (event.type === "image_edit.completed") {
      answer ||= { ...event, data: [] };
      answer.data.push(event);
    }
  }
  if (!answer) throw new Refused("The server's answer broke off before an image came.");
  return toAnswer(answer);
}

function toAnswer(reply) {
  const entries = Array.isArray(reply.candidates) && reply.candidates.length ? reply.candidates : reply.data;
  if (!Array.isArray(entries)) throw new Refused("The server's answer holds no image.");
  return {
    seed: reply.seed, best_of: reply.best_of, model: reply.model, numSampled: reply.drawn ?? reply.best_of, distinct: reply.distinct,
    failures: Array.isArray(reply.failures) ? reply.failures : [],
    candidates: entries.map((item) => ({
      image: dataUrl(item.b64_json, reply.output_format), verification: item.verification || {},
    })),
  };
}

// {seed, logprob, mean_logprob, steps: [{image, action, verification}]}. onStep: each step as it comes, the best so far.
export async function rollout(source, actions, settings, { onStep = () => {}, signal } = {}) {
  const step = (item) => ({
    image: dataUrl(item.b64_json, settings.output_format), action: String(item.action ?? ""), verification: item.verification || {},
  });
  let place = 0;
  for await (const event of stream("v1/wm/rollouts", { image: source, actions, ...settings, stream: true }, signal)) {
    if (event.type === "rollout.step") onStep(step(event), place++);
    if (event.type === "rollout.completed" || event.type === "reply") return { ...event, steps: event.steps.map(step) };
  }
  throw new Refused("The server's answer broke off before the last step.");
}

// {text, mean, logprob, tokens: [{token, logprob}]}: the action that leads from one frame to another.
export async function whatHappened(source, target, { model, signal } = {}) {
  const image = (url) => ({ type: "image_url", image_url: { url } });
  const content = [{ type: "text", text: "What happened?" }, image(source), image(target)];
  const reply = await ask("v1/chat/completions", { model, messages: [{ role: "user", content }], logprobs: true }, signal);
  const choice = reply.choices?.[0];
  if (!choice) throw new Refused("The server's answer holds no action.");
  return {
    text: choice.message?.content || "", logprob: reply.logprob, mean: reply.mean_logprob,
    tokens: choice.logprobs?.content || [],
  };
}
