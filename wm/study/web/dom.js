// Text from the server enters the page here alone, as text and never as markup.
export const byId = (id) => document.getElementById(id);

export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Paragraphs are separated by an empty line; lines that begin with "- " are a list.
export function showProse(node, text) {
  const blocks = text.split(/\n\s*\n/).map((block) => block.trim()).filter(Boolean);
  node.replaceChildren(...blocks.flatMap((block) => {
    const lines = block.split("\n").map((line) => line.trim());
    const first = lines.findIndex((line) => line.startsWith("- "));
    if (first < 0) return [paragraph(lines.join("\n"))];
    const head = lines.slice(0, first).join("\n");
    const items = lines.slice(first).map((line) => el("li", { text: line.replace(/^- /, "") }));
    return [head ? el("p", { class: "head", text: head }) : null, el("ul", {}, ...items)].filter(Boolean);
  }));
}

// "1. Realism. Good: ..." is numbered and named: its first words are set off.
function paragraph(text) {
  const lead = /^\d+\. [^.\n]{1,40}\./.exec(text)?.[0] || "";
  return el("p", {}, lead ? el("strong", { text: lead }) : null, text.slice(lead.length));
}

// For those who listen to the page; what is seen changes by itself.
export const say = (text) => { byId("status").textContent = text; };

export function showError(text) {
  byId("error-text").textContent = text;
  byId("error").hidden = !text;
}

const VIEWS = ["start", "ready", "item", "finished", "left", "withdrawn", "blocked"];

// One view at a time; its heading takes the focus, so that whoever listens or uses the keyboard begins there.
export function showView(name, heading) {
  for (const view of VIEWS) byId(view).hidden = view !== name;
  byId("progress").hidden = name !== "item" && name !== "finished";
  byId("foot").hidden = byId("progress").hidden;
  byId("leave").textContent = name === "finished" ? "Leave this device" : "Leave, come back later";
  document.documentElement.dataset.view = name;
  window.scrollTo(0, 0);
  heading.focus({ preventScroll: true });
}
