"use strict";
// The contact sheet: only the cards in sight stand in the document.
const CARD_HEIGHT = 286, CARD_MIN_WIDTH = 306, OVERSCAN_ROWS = 2, BOX_PX = 132;
wm.cards = new Map();

// A sprite's cell, scaled to fit a box; which: 0 = source, 1 = target.
wm.shot = (row, which, box_w, box_h, alt) => {
  const block = Math.floor(row / wm.data.block), [sheet_w, sheet_h, cell_w, cell_h] = wm.data.sprites[block];
  const sizes = wm.get("sizes", row), width = sizes[2 * which], height = sizes[2 * which + 1];
  if (!width) return wm.el("span", { class: "missing", text: "no readable picture" });
  const scale = Math.min(box_w / width, box_h / height);
  const picture = wm.el("img", {
    src: `page/pictures-${String(block).padStart(5, "0")}.webp`, alt, draggable: "false", decoding: "async",
  });
  Object.assign(picture.style, {
    width: `${sheet_w * scale}px`, height: `${sheet_h * scale}px`,
    left: `${-which * cell_w * scale}px`, top: `${-(row % wm.data.block) * cell_h * scale}px`,
  });
  const frame = wm.el("span", { class: scale >= 1.5 && Math.max(width, height) <= 128 ? "shot sharp" : "shot" }, picture);
  Object.assign(frame.style, { width: `${Math.floor(width * scale)}px`, height: `${Math.floor(height * scale)}px` });
  return frame;
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
  const box = (which, alt) => wm.el("span", { class: "box" }, wm.shot(row, which, BOX_PX, BOX_PX, alt));
  return wm.el(
    "button", { type: "button", class: "card", title: uri, onclick: () => wm.open(row), "data-id": wm.get("id", row) },
    wm.el("span", { class: "pair" }, box(0, `before: ${action}`), wm.el("span", { "aria-hidden": "true", text: "→" }), box(1, `after: ${action}`)),
    wm.el("span", { class: "action", text: action }), ...wm.facts(row),
  );
};

wm.columnsInSight = () => Math.max(1, Math.floor(wm.byId("grid").clientWidth / CARD_MIN_WIDTH));

wm.drawGrid = () => {
  const grid = wm.byId("grid"), across = wm.columnsInSight(), width = grid.clientWidth / across;
  grid.style.height = `${Math.ceil(wm.rows.length / across) * CARD_HEIGHT}px`;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / CARD_HEIGHT) - OVERSCAN_ROWS) * across;
  const last = Math.min(wm.rows.length, (Math.ceil((top + window.innerHeight) / CARD_HEIGHT) + OVERSCAN_ROWS) * across);
  const kept = new Map();
  for (let place = first; place < last; place++) {
    const row = wm.rows[place];
    let cell = wm.cards.get(row);
    wm.cards.delete(row);
    if (!cell) {
      cell = wm.el("div", { class: "cell", role: "listitem" }, wm.card(row));
    }
    cell.dataset.place = place;
    cell.setAttribute("aria-posinset", place + 1);
    cell.setAttribute("aria-setsize", wm.rows.length);
    Object.assign(cell.style, {
      width: `${width}px`, height: `${CARD_HEIGHT}px`, left: `${(place % across) * width}px`,
      top: `${Math.floor(place / across) * CARD_HEIGHT}px`,
    });
    if (!cell.isConnected) grid.append(cell);
    kept.set(row, cell);
  }
  wm.cards.forEach((cell) => cell.remove());
  wm.cards = kept;
};

// Arrow keys walk over the cards, also over those that are not drawn yet.
wm.focusPlace = (place) => {
  if (place < 0 || place >= wm.rows.length) return;
  const grid = wm.byId("grid"), top = Math.floor(place / wm.columnsInSight()) * CARD_HEIGHT;
  const edge = grid.getBoundingClientRect().top + top;
  if (edge < 0) window.scrollBy(0, edge - 12);
  else if (edge + CARD_HEIGHT > window.innerHeight) window.scrollBy(0, edge + CARD_HEIGHT - window.innerHeight + 12);
  wm.drawGrid();
  wm.cards.get(wm.rows[place])?.firstChild.focus({ preventScroll: true });
};

wm.byId("grid").addEventListener("keydown", (event) => {
  const cell = event.target.closest(".cell"), across = wm.columnsInSight();
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  if (!cell || !step || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  wm.focusPlace(Number(cell.dataset.place) + step);
});
