"use strict";
// What every page is made of: elements, numbers, and images cut out of a sheet.
const wm = {};

// Text from data enters the page here alone, as text and never as markup.
wm.el = (tag, attributes, ...children) => {
  const svg = ["svg", "path", "line", "circle", "rect", "text", "g", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

wm.byId = (id) => document.getElementById(id);
wm.number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
wm.grouped = (value) => value.toLocaleString("en-US");

wm.decode = (text) => {
  try { return decodeURIComponent(text); } catch { return text; }
};

// An image in a cell of a sheet, scaled to fit a box; the sheet's edge of a pixel around each image stays outside.
const EDGE_PX = 1;
wm.crop = (file, sheet, [left, top], [width, height], box_w, box_h, alt) => {
  const scale = Math.min(box_w / width, box_h / height);
  const image = wm.el("img", { src: `page/${file}`, alt, draggable: "false", decoding: "sync" });
  Object.assign(image.style, {
    width: `${sheet[0] * scale}px`, height: `${sheet[1] * scale}px`,
    left: `${-(left + EDGE_PX) * scale}px`, top: `${-(top + EDGE_PX) * scale}px`,
  });
  const frame = wm.el("span", { class: scale >= 1.5 && Math.max(width, height) <= 128 ? "shot sharp" : "shot" }, image);
  Object.assign(frame.style, { width: `${Math.floor(width * scale)}px`, height: `${Math.floor(height * scale)}px` });
  return frame;
};
