"use strict";
// What is shown: the columns of all rows, the filters, and the part of the address after # that holds them.
Object.assign(wm, { data: null, columns: null, rows: [], blocks: new Map(), waiting: new Map() });

wm.time = (start, end) => (start === null || end === null ? "no times" : `${start.toFixed(2)} – ${end.toFixed(2)} s`);

wm.empty = () => ({
  view: "triplets", classes: [], origins: [], min: null, max: null, q: "", sort: "file", chosen: false,
  outcome: "", reason: "", page: 0, id: "",
});
wm.state = wm.empty();

const LISTS = { class: "classes", origin: "origins" };
const NUMBERS = ["min", "max", "page"];
const TEXTS = ["view", "q", "sort", "outcome", "reason", "id"];

wm.parseHash = (hash) => {
  const state = wm.empty();
  for (const part of hash.replace(/^#/, "").split("&")) {
    const cut = part.indexOf("=");
    if (cut < 0) continue;
    const key = wm.decode(part.slice(0, cut)), value = wm.decode(part.slice(cut + 1));
    if (LISTS[key]) state[LISTS[key]].push(value);
    else if (NUMBERS.includes(key) && value.trim() !== "" && Number.isFinite(Number(value))) state[key] = Number(value);
    else if (key === "chosen") state.chosen = value === "1";
    else if (TEXTS.includes(key)) state[key] = value;
  }
  if (state.view !== "rejects") state.view = "triplets";
  state.page = Math.max(0, Math.floor(state.page));
  return state;
};

wm.toHash = (state) => {
  const fresh = wm.empty(), parts = [];
  const add = (key, value) => parts.push(`${key}=${encodeURIComponent(value)}`);
  for (const [key, name] of Object.entries(LISTS)) state[name].forEach((value) => add(key, value));
  for (const key of [...NUMBERS, ...TEXTS]) if (state[key] !== fresh[key]) add(key, state[key]);
  if (state.chosen) add("chosen", "1");
  return `#${parts.join("&")}`;
};

// A column of few values comes as {values, codes}, any other as a plain list.
wm.get = (name, row) => {
  const column = wm.columns[name];
  return Array.isArray(column) ? column[row] : column.values[column.codes[row]];
};

wm.codesOf = (name, wanted) => {
  if (!wanted.length) return null;
  return new Set(wm.columns[name].values.flatMap((value, code) => (wanted.includes(value) ? [code] : [])));
};

// Row numbers that pass the filters, in the order asked for. Rows without a score pass only while neither end is set.
wm.filtered = (state) => {
  const { score, action_low, motion, order } = wm.columns;
  const classes = wm.codesOf("class", state.classes), origins = wm.codesOf("origin", state.origins);
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const bounded = state.min !== null || state.max !== null;
  const low = state.min ?? -Infinity, high = state.max ?? Infinity;
  const rows = [];
  for (let row = 0; row < score.length; row++) {
    if (classes && !classes.has(wm.columns.class.codes[row])) continue;
    if (origins && !origins.has(wm.columns.origin.codes[row])) continue;
    if (bounded && (score[row] === null || score[row] < low || score[row] > high)) continue;
    if (state.chosen && order[row] === null) continue;
    if (!words.every((word) => action_low[row].includes(word))) continue;
    rows.push(row);
  }
  const by = (values, sign) => rows.sort((a, b) => {
    if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || a - b;
    return sign * (values[a] - values[b]) || a - b;
  });
  const sorts = {
    "score-down": () => by(score, -1), "score-up": () => by(score, 1), "motion-down": () => by(motion, -1),
    "motion-up": () => by(motion, 1), order: () => by(order, 1), class: () => by(wm.columns.class.codes, 1),
  };
  (Object.hasOwn(sorts, state.sort) ? sorts[state.sort] : () => {})();
  return rows;
};

// A block's details come as a script; the newest few are kept.
const KEPT_BLOCKS = 48;
wm.load = (block, then) => {
  if (wm.blocks.has(block)) return then(wm.blocks.get(block));
  if (wm.waiting.has(block)) return void wm.waiting.get(block).push(then);
  wm.waiting.set(block, [then]);
  const name = `page/rows-${String(block).padStart(5, "0")}.js`;
  const tag = wm.el("script", { src: name, onload: () => tag.remove(), onerror: () => wm.block(block, null) });
  document.head.append(tag);
};

wm.block = (number, content) => {
  wm.blocks.set(number, content);
  if (wm.blocks.size > KEPT_BLOCKS) wm.blocks.delete(wm.blocks.keys().next().value);
  const waiting = wm.waiting.get(number) || [];
  wm.waiting.delete(number);
  waiting.forEach((then) => then(content));
};
