// Requests to this server; its refusals in words.
import { key } from "./memory.js";

const TIMEOUT_MS = 30_000;

export class Refused extends Error {
  constructor(message, code, status) {
    super(message);
    Object.assign(this, { code, status });
  }
}

async function send(path, { body, participant } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (participant) headers["X-Participant"] = participant;
  const options = { method: body === undefined ? "GET" : "POST", headers, cache: "no-store" };
  if (body !== undefined) options.body = JSON.stringify(body);
  let reply;
  try {
    reply = await fetch(`api/${path}`, { ...options, signal: AbortSignal.timeout?.(TIMEOUT_MS) });
  } catch {
    throw new Refused("The server cannot be reached: please try again in a moment.", "offline", 0);
  }
  let content = null;
  try { content = await reply.json(); } catch { /* a proxy's page, or a reply that broke off */ }
  if (reply.ok && content) return content;
  const error = content?.error || {};
  const message = typeof error.message === "string" ? error.message : `The server answered ${reply.status}: please try again.`;
  throw new Refused(message, error.code || "failed", reply.status);
}

export const getStudy = () => send("study");
export const join = (studyId) => send("participants", { body: { study_id: studyId, consent: true } });
export const comeBack = (code) => send("return", { body: { code } });
export const getProgress = (code) => send("progress", { participant: code });
export const vote = (code, choice) => send("votes", { participant: code, body: choice });
export const withdraw = (code, studyId) => send("withdrawals", { participant: code, body: { study_id: studyId } });
