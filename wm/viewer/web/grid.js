"use strict";
// The contact sheet: only the cards in sight are in the document.
const CARD_MIN_WIDTH = 306, CARD_TEXT_PX = 156, CARD_FRAME_PX = 58, OVERSCAN_ROWS = 2;
wm.cards = new Map();
wm.layout = { across: 1, width: 0, height: 1, box_w: 0, box_h: 0 };

// How many cards are side by side, and how large they are (CSS px).
wm.measure = () => {
  const total = wm.byId("grid").clientWidth, across = Math.max(1, Math.floor(total / CARD_MIN_WIDTH)), width = total / across;
  if (width === wm.layout.width && across === wm.layout.across) return wm.layout;
  const box_w = Math.floor((Math.min(width, 460) - CARD_FRAME_PX) / 2), box_h = Math.round(box_w * 0.8);
  wm.cards.forEach((cell) => cell.remove());
  wm.cards.clear();
  wm.layout = { across, width, height: box_h + CARD_TEXT_PX, box_w, box_h };
  return wm.layout;
};

// A sprite's cell, scaled to fit a box; which: 0 = source, 1 = target.
wm.shot = (row, which, box_w, box_h, alt) => {
  const block = Math.floor(row / wm.data.block), [sheet_w, sheet_h, cell_w, cell_h] = wm.data.sprites[block];
  const sizes = wm.get("sizes", row), width = sizes[2 * which], height = sizes[2 * which + 1];
  if (!width) return wm.el("span", { class: "missing", text: "no readable image" });
  const file = `pictures-${String(block).padStart(5, "0")}.webp`, place = [which * cell_w, (row % wm.data.block) * cell_h];
  return wm.crop(file, [sheet_w, sheet_h], place, [width, height], box_w, box_h, alt);
};

wm.facts = (row) => {
  const score = wm.get("score", row), motion = wm.get("motion", row), order = wm.get("order", row);
  const line = (...parts) => wm.el("span", { class: "facts" }, ...parts);
  const bold = (text) => wm.el("b", { text });
  const name = wm.get("class", row) || "no class";
  const about = [
    score === null ? "no score" : `score ${wm.number(score)}`, wm.get("origin", row) || "no origin",
    wm.get("reader", row), motion === null ? null : `${wm.number(motion)} px/frame`,
  ].filter(Boolean);
  return [
    line(bold(name), order === null ? null : " ", order === null ? null : wm.el("span", { class: "badge chosen", text: `selected ${order + 1}` })),
    line(about.join(" · ")),
    line([wm.time(wm.get("source_time", row), wm.get("target_time", row)), wm.get("license", row) || "no licence given"].join(" · ")),
    line(wm.get("uri", row) || "no video"),
  ];
};

wm.card = (row) => {
  const action = wm.get("action", row), uri = wm.get("uri", row) || "";
  const box = (which, alt) => {
    const { box_w, box_h } = wm.layout, node = wm.el("span", { class: "box" }, wm.shot(row, which, box_w, box_h, alt));
    Object.assign(node.style, { width: `${box_w}px`, height: `${box_h}px` });
    return node;
  };
  return wm.el(
    "button", { type: "button", class: "card", title: uri, onclick: () => wm.open(row), "data-id": wm.get("id", row) },
    wm.el("span", { class: "pair" }, box(0, `before: ${action}`), wm.el("span", { "aria-hidden": "true", text: "→" }), box(1, `after: ${action}`)),
    wm.el("span", { class: "action", text: action }), ...wm.facts(row),
  );
};

wm.drawGrid = () => {
  const grid = wm.byId("grid"), { across, width, height } = wm.measure();
  grid.style.height = `${Math.ceil(wm.rows.length / across) * height}px`;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / height) - OVERSCAN_ROWS) * across;
  const last = Math.min(wm.rows.length, (Math.ceil((top + window.innerHeight) / height) + OVERSCAN_ROWS) * across);
  const cards = new Map();
  for (let place = first; place < last; place++) {
    const row = wm.rows[place], cell = wm.cards.get(row) || wm.el("div", { class: "cell", role: "listitem" }, wm.card(row));
    wm.cards.delete(row);
    cell.dataset.place = place;
    cell.setAttribute("aria-posinset", place + 1);
    cell.setAttribute("aria-setsize", wm.rows.length);
    Object.assign(cell.style, {
      width: `${width}px`, height: `${height}px`, left: `${(place % across) * width}px`,
      top: `${Math.floor(place / across) * height}px`,
    });
    cards.set(row, cell);
  }
  wm.cards.forEach((cell) => cell.remove());
  wm.cards = cards;
  wm.inOrder(grid, [...cards.values()]);
};

// The order in the document is the order of tabbing; what is in place is not moved, as that would lose the focus.
wm.inOrder = (parent, nodes) => {
  let next = parent.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
};

// Arrow keys walk over the cards, also over those that are not in the document yet.
wm.focusPlace = (place) => {
  if (place < 0 || place >= wm.rows.length) return;
  const { across, height } = wm.measure(), top = Math.floor(place / across) * height;
  const edge = wm.byId("grid").getBoundingClientRect().top + top;
  if (edge < 0) window.scrollBy(0, edge - 12);
  else if (edge + height > window.innerHeight) window.scrollBy(0, edge + height - window.innerHeight + 12);
  wm.drawGrid();
  wm.cards.get(wm.rows[place])?.firstChild.focus({ preventScroll: true });
};

wm.byId("grid").addEventListener("keydown", (event) => {
  const cell = event.target.closest(".cell"), { across } = wm.layout;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  if (!cell || !step || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  wm.focusPlace(Number(cell.dataset.place) + step);
});
