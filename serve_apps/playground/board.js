// The storyboard drawn as a tree: a branch goes to the right, a further one begins a row. Arrow keys walk over it.
import { bar, byId, el, imageElement, percent, say } from "./dom.js";
import { changed, nameOf, select, state } from "./state.js";

const WIDTH = 124, HEIGHT = 184, BOX = 104, MIDDLE = 52; // CSS px: of a place, of an image, of an image's middle

export function drawBoard() {
  const place = byId("board"), hadFocus = place.contains(document.activeElement);
  const all = new Set(state.board?.all);
  for (const frame of nodes.keys()) if (!all.has(frame)) nodes.delete(frame);
  if (!state.board) return place.replaceChildren();
  const places = state.board.layout(), at = new Map(places.map((each) => [each.frame.id, each]));
  const columns = Math.max(...places.map(({ column }) => column)) + 1, rows = Math.max(...places.map(({ row }) => row)) + 1;
  const lines = el("svg", { class: "lines", "aria-hidden": "true", width: columns * WIDTH, height: rows * HEIGHT });
  for (const { frame, row, column } of places) {
    if (frame.parent === null) continue;
    const from = at.get(frame.parent), x = from.column * WIDTH + BOX, y = from.row * HEIGHT + MIDDLE, end = row * HEIGHT + MIDDLE;
    const bend = x + (WIDTH - BOX) / 2;
    lines.append(el("path", { d: `M ${x} ${y} H ${bend} V ${end} H ${column * WIDTH}` }));
  }
  Object.assign(place.style, { width: `${columns * WIDTH}px`, height: `${rows * HEIGHT}px` });
  place.replaceChildren(lines, ...places.map(item));
  const now = place.querySelector('[aria-selected="true"]');
  if (hadFocus) now?.focus({ preventScroll: true });
  reveal(now);
}

// Sideways only: the page itself stays where it is.
function reveal(node) {
  const box = byId("board").parentElement, left = node ? node.offsetLeft : 0;
  if (left < box.scrollLeft || left + BOX > box.scrollLeft + box.clientWidth) box.scrollLeft = left - box.clientWidth / 2;
}

// Nodes are kept from one drawing to the next, so that images do not flicker and the focus stays.
const nodes = new Map();
function item({ frame, row, column }) {
  const cached = nodes.get(frame);
  const node = cached?.image === frame.image ? cached.node : createNode(frame);
  nodes.set(frame, { node, image: frame.image });
  const isNow = frame.id === state.current, siblings = state.board.children(frame.parent ?? -1);
  const values = {
    "aria-level": column + 1, "aria-setsize": siblings.length || 1, "aria-posinset": siblings.indexOf(frame) + 1 || 1,
    "aria-selected": isNow, tabindex: isNow ? 0 : -1, "aria-label": `${nameOf(frame.id)}${frame.image ? "" : ", not replayed yet"}`,
  };
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, String(value));
  Object.assign(node.style, { left: `${column * WIDTH}px`, top: `${row * HEIGHT}px` });
  return node;
}

function createNode(frame) {
  const { mean_logprob: mean } = frame.verification;
  return el("button", { type: "button", role: "treeitem", class: "frame", "data-id": frame.id, onclick: () => select(frame.id) },
    frame.image ? el("span", { class: "shot" }, imageElement(frame.image, "")) : el("span", { class: "shot blank", text: "?" }),
    typeof mean === "number" ? el("span", { class: "score" }, bar(Math.exp(mean)), el("b", { text: percent(Math.exp(mean)) })) : null,
    el("span", { class: "caption", title: frame.action || null, text: frame.action || "source" }));
}

// The frame an arrow leads to from another: left its parent, right its first child, up and down the rows.
export function neighbour(board, id, key) {
  const places = board.layout(), here = places.find(({ frame }) => frame.id === id);
  if (key === "ArrowLeft") return here.frame.parent;
  if (key === "ArrowRight") return board.children(id)[0]?.id ?? null;
  if (key === "Home") return 0;
  const side = key === "ArrowUp" ? -1 : key === "ArrowDown" ? 1 : 0;
  const beyond = places.filter(({ row }) => side && Math.sign(row - here.row) === side);
  if (!beyond.length) return null;
  const row = side > 0 ? Math.min(...beyond.map((each) => each.row)) : Math.max(...beyond.map((each) => each.row));
  const far = (each) => Math.abs(each.column - here.column);
  return beyond.filter((each) => each.row === row).reduce((best, each) => (far(each) < far(best) ? each : best)).frame.id;
}

export function wireBoard() {
  byId("board").addEventListener("keydown", (event) => {
    const node = event.target.closest("[data-id]");
    if (!node || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Delete") return void removeNow();
    const next = neighbour(state.board, Number(node.dataset.id), event.key);
    if (next === null || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home"].includes(event.key)) return;
    event.preventDefault();
    select(next);
  });
  byId("remove").addEventListener("click", removeNow);
  byId("undo").addEventListener("click", () => {
    undo.back();
    state.current = undo.id;
    undo = null;
    changed();
  });
}

let undo = null; // what was removed last: {board, back, id, parent}
function removeNow() {
  const { board, current } = state;
  if (!board || !current || state.busy) return;
  const { parent } = board.get(current), name = nameOf(current), count = board.branch(current).length - 1;
  const back = board.remove(current);
  undo = { board, back, id: current, parent };
  state.current = parent;
  changed();
  byId("board").querySelector('[aria-selected="true"]')?.focus({ preventScroll: true });
  say(`${name} removed${count ? `, and ${count} after it` : ""}. Undo brings it back.`);
}

export function drawTools() {
  byId("remove").disabled = state.current === 0 || state.busy !== null;
  // Its parent may have been removed too, or gone with the whole storyboard.
  if (undo && (undo.board !== state.board || !undo.board.get(undo.parent))) undo = null;
  byId("undo").hidden = !undo;
}
