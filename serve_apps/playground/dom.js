// Text from the server or the user enters the page here alone, as text and never as markup.
const SVG = ["svg", "path"];

export const byId = (id) => document.getElementById(id);

export function el(tag, attributes, ...children) {
  const node = SVG.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") node.textContent = value;
    else if (name === "style") Object.assign(node.style, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Images of a small model are shown with their pixels, not blurred.
export const imageElement = (src, alt) =>
  el("img", {
    src, alt, draggable: "false", decoding: "async",
    onload: (event) => event.target.classList.toggle("sharp", event.target.naturalWidth <= 128),
  });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const number = (value, digits = 2) => (isNumber(value) ? value.toFixed(digits).replace("-", "−") : "–");
export const percent = (share) => (isNumber(share) ? `${Math.round(share * 100)} %` : "–");
export const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// For those who listen to the page; what is seen changes by itself.
export const say = (text) => { byId("status").textContent = text; };

export function showError(text) {
  byId("error-text").textContent = text;
  byId("error").hidden = !text;
  if (text) byId("error").scrollIntoView({ block: "nearest" });
}

// On a small screen: to where something has changed, unless it is in sight.
export function reveal(node) {
  const { top, bottom } = node.getBoundingClientRect();
  if (top < 0 || Math.min(bottom, top + 160) > window.innerHeight) node.scrollIntoView({ block: "nearest" });
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// 0 to 1 as a bar: the number beside it says the same.
export const bar = (share) =>
  el("span", { class: "track", "aria-hidden": "true" },
    el("span", { class: "fill", style: { width: `${Math.max(0, Math.min(1, share || 0)) * 100}%` } }));
