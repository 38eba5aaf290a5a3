// Requests to this server, as any client sends them; its errors in words.
const KEY = "wm-api-key";

export const key = {
  get: () => { try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; } },
  set: (value) => { try { if (value) sessionStorage.setItem(KEY, value); else sessionStorage.removeItem(KEY); } catch { /* private window */ } },
};

export class Refused extends Error {
  constructor(message, { status = 0, param = null, code = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

async function refusal(reply) {
  let error = {};
  try { error = (await reply.json()).error || {}; } catch { /* a proxy's page, not ours */ }
  const message = typeof error.message === "string" ? error.message : `the server answered ${reply.status} ${reply.statusText}`;
  const wait = Number(reply.headers.get("retry-after"));
  const request = reply.status >= 500 && reply.headers.get("x-request-id");
  const hint = reply.status === 401 || reply.status === 403 ? " Give an API key at the top of the page."
    : `${wait > 0 ? ` Try again in ${wait} s.` : ""}${request ? ` (Request ${request}.)` : ""}`;
  return new Refused(`${sentence(message)}${hint}`, { status: reply.status, param: error.param, code: error.code });
}

const sentence = (text) => {
  const first = /^[a-z]+[ ,]/.test(text) && !/^\w+ =/.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(first) ? first : `${first}.`;
};

async function send(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let reply;
  try {
    reply = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body), signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(error.name === "TypeError" ? "The server cannot be reached." : `The request could not be sent: ${error.message}.`);
  }
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

const read = async (reply) => {
  try { return await reply.json(); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server's answer cannot be read.");
  }
};

export const get = async (path) => read(await send(path));
export const getBlob = async (path) => (await send(path)).blob();
export const ask = async (path, body, signal) => read(await send(path, body, signal));

// Events {type, ...data} of a streamed answer; of a plain one {type: "reply", ...its body}.
export async function* stream(path, body, signal) {
  const reply = await send(path, body, signal);
  if (!(reply.headers.get("content-type") || "").startsWith("text/event-stream")) {
    yield { ...(await read(reply)), type: "reply" };
    return;
  }
  for await (const { event, data } of serverEvents(reply.body)) {
    if (data.error) throw new Refused(sentence(String(data.error.message || "the server failed")), data.error);
    yield { ...data, type: event || data.type };
  }
}

// Server-sent events (WHATWG HTML, 9.2.6); data is JSON, "[DONE]" ends them.
export async function* serverEvents(body) {
  let event = "", data = [];
  for await (const line of lines(body)) {
    if (line === "") {
      const text = data.join("\n"), name = event;
      event = "";
      data = [];
      if (text === "[DONE]") return;
      if (text) yield { event: name, data: parsed(text) };
      continue;
    }
    const cut = line.indexOf(":"), field = cut < 0 ? line : line.slice(0, cut);
    const value = cut < 0 ? "" : line.slice(cut + 1).replace(/^ /, "");
    if (field === "event") event = value;
    else if (field === "data") data.push(value);
  }
}

function parsed(text) {
  try { return JSON.parse(text); } catch { throw new Refused("The server's answer broke off."); }
}

// A line ends in \r\n, \n or \r; a \r at the end of a chunk may be half of one. Pieces are joined once a line is whole:
// an image is one line of many chunks.
async function* lines(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let pieces = [], afterReturn = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      let text = decoder.decode(value, { stream: true });
      if (!text) continue;
      if (afterReturn && text[0] === "\n") text = text.slice(1);
      afterReturn = text.endsWith("\r");
      const parts = text.split(/\r\n|\n|\r/);
      for (const part of parts.slice(0, -1)) {
        yield pieces.join("") + part;
        pieces = [];
      }
      pieces.push(parts[parts.length - 1]);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
