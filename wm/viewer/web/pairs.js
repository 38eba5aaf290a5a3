"use strict";
// A clip's key-frames with the pairs between them, and one pair closely.
const WORDS = {
  static: "static", hard_cut: "cut", dark_frame: "dark", blurred_frame: "blurred", near_duplicate: "repeat",
  too_little_motion: "too little motion",
};
const NUMBERS_OF = { static: "difference", hard_cut: "cut", dark_frame: "luma", blurred_frame: "sharpness", near_duplicate: "repeat_bits" };

wm.seconds = (value) => `${value.toFixed(Math.abs(value) >= 100 ? 1 : 2)} s`;

// A key-frame's image; null where the clip has none (a single key-frame is not read in colour).
wm.frameImage = (clip, frame, box_w, box_h, alt) => {
  const sheet = clip.sheet, place = sheet ? sheet.frames.indexOf(frame) : -1;
  if (place < 0) return null;
  const cell = [(place % 2) * sheet.cell_px[0], Math.floor(place / 2) * sheet.cell_px[1]];
  const shot = wm.crop(sheet.file, sheet.size_px, cell, sheet.sizes_px[place], box_w, box_h, alt);
  return shot;
};

wm.verdict = (pair) => {
  if (pair.reason) return wm.el("span", { class: "badge dropped", text: `filtered: ${WORDS[pair.reason] || pair.reason}` });
  if (pair.findings.length) return wm.el("span", { class: "badge noted", text: pair.findings.map((name) => WORDS[name] || name).join(", ") });
  return wm.el("span", { class: "badge kept", text: "kept" });
};

wm.strip = (clip, rule) => {
  const { keyframes, pairs } = clip.rules[rule], narrow = window.innerWidth <= 760;
  const [box_w, box_h] = narrow ? [160, 92] : keyframes.length > 3 ? [150, 100] : [236, 132];
  // An arrow stays with the frame that it leads to, where a row is full.
  const steps = keyframes.map((key, k) => {
    const shot = wm.frameImage(clip, key.frame, box_w, box_h, `frame ${key.frame} of ${clip.key}`);
    if (shot) shot.querySelector("img").loading = "lazy";
    const figure = wm.el("figure", {}, shot, wm.el("figcaption", { text: `${wm.seconds(key.time_s)} · ${wm.number(key.motion)} px` }));
    return wm.el("div", { class: "step" }, k ? wm.pairButton(clip, rule, k - 1) : null, figure);
  });
  const note = clip.rules[rule].note;
  if (!pairs.length) return wm.el("p", { class: "soft small", text: `no pair: ${note || "a pair needs two key-frames"}` });
  return wm.el("div", { class: "strip" }, ...steps);
};

wm.pairButton = (clip, rule, k) => {
  const { keyframes, pairs } = clip.rules[rule], key = keyframes[k], next = keyframes[k + 1];
  return wm.el(
    "button", { type: "button", class: "pair-button", "data-pair": k, onclick: () => wm.openPair(clip, rule, k), "aria-label": `pair from ${wm.seconds(key.time_s)} to ${wm.seconds(next.time_s)}` },
    wm.el("span", { class: "arrow", "aria-hidden": "true", text: "→" }), wm.el("span", { text: `${wm.grouped(next.frame - key.frame)} frames` }),
    wm.el("span", { text: wm.seconds(next.time_s - key.time_s) }), wm.verdict(pairs[k]),
  );
};

wm.openPair = (clip, rule, number) => {
  wm.shownPair = { clip, rule, number };
  const dialog = wm.byId("detail"), { keyframes, pairs } = clip.rules[rule], pair = pairs[number];
  const [source, target] = [keyframes[number], keyframes[number + 1]], focused = document.activeElement?.dataset.name;
  const button = (name, text, label, act, off) =>
    wm.el("button", { type: "button", class: "plain", "data-name": name, "aria-label": label, onclick: act, disabled: off, text });
  const bar = wm.el(
    "div", { class: "bar" }, button("back", "←", "Previous pair", () => wm.stepPair(-1), number === 0),
    button("on", "→", "Next pair", () => wm.stepPair(1), number === pairs.length - 1),
    wm.el("span", { class: "soft grow", text: `pair ${number + 1} of ${pairs.length}` }), button("close", "Close", "Close", () => dialog.close(), false),
  );
  const across = Math.min(1080, window.innerWidth - 64), wide = across > 520 ? (across - 14) / 2 : across;
  const figure = (key, name) => wm.el(
    "figure", {}, wm.el("div", { class: "box" }, wm.frameImage(clip, key.frame, wide, Math.min(wide, window.innerHeight * 0.5), `${name}: frame ${key.frame}`)),
    wm.el("figcaption", {}, wm.el("b", { text: name }), ` ${key.time_s.toFixed(3)} s, frame ${wm.grouped(key.frame)}, ${wm.number(key.motion, 3)} px/frame`));
  dialog.replaceChildren(
    bar, wm.el("h2", { id: "detail-title", text: clip.key }),
    wm.el("div", { class: "frames" }, figure(source, "source"), figure(target, "target")),
    wm.pairFacts(clip, pair, source, target),
  );
  if (!dialog.open) dialog.showModal();
  (dialog.querySelector(`[data-name="${focused}"]:not(:disabled)`) || dialog.querySelector("[data-name=close]")).focus();
};

wm.pairFacts = (clip, pair, source, target) => {
  const list = wm.el("dl", {}, wm.el("dt", { class: "wide", text: "verdict" }), wm.el("dd", { class: "wide" }, wm.verdict(pair)));
  const add = (name, value) => list.append(wm.el("dt", { class: "wide", text: name }), wm.el("dd", { class: "wide", text: value }));
  add("gap", `${wm.grouped(target.frame - source.frame)} frames, ${(target.time_s - source.time_s).toFixed(3)} s`);
  const { at, motion } = clip.curve, between = motion.filter((_, k) => at[k] > source.frame && at[k] <= target.frame);
  if (between.length) {
    const mean = between.reduce((sum, value) => sum + value, 0) / between.length;
    add("motion between", `${clip.curve.step > 1 ? "peaks" : "mean"} ${wm.number(mean)}, largest ${wm.number(Math.max(...between))} px/frame`);
  }
  const low = { static: "below", dark_frame: "below", blurred_frame: "below", hard_cut: "from", near_duplicate: "up to" };
  for (const filter of wm.data.filters) {
    const value = pair.numbers[NUMBERS_OF[filter.reason]], mode = `${filter.key}=${filter.mode}`;
    const limit = `${WORDS[filter.reason]} ${low[filter.reason]} ${filter.threshold} (${filter.threshold_key}), ${mode}`;
    if (filter.mode === "off") add(NUMBERS_OF[filter.reason], `not measured, ${mode}`);
    else if (filter.reason === "near_duplicate" && !pair.repeats_known) add("repeat_bits", "not known until all earlier clips of its shard have been looked at");
    else add(NUMBERS_OF[filter.reason], `${value === null ? "no earlier pair" : wm.number(value)}; ${limit}`);
  }
  return list;
};

wm.stepPair = (by) => {
  const { clip, rule, number } = wm.shownPair, next = number + by;
  if (next >= 0 && next < clip.rules[rule].pairs.length) wm.openPair(clip, rule, next);
};

wm.byId("detail").addEventListener("click", (event) => { if (event.target === wm.byId("detail")) wm.byId("detail").close(); });
wm.byId("detail").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  wm.stepPair(by);
});
