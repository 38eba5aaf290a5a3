"use strict";
// One triplet: both frames, where they differ, the clip's motion with the chosen frames, where it comes from.

wm.open = (row) => {
  wm.state.id = wm.get("id", row);
  wm.writeHash();
  wm.showDetail(row);
};

wm.close = () => {
  const dialog = wm.byId("detail"), row = wm.shown;
  wm.shown = null;
  if (dialog.open) dialog.close();
  if (!wm.state.id) return;
  wm.state.id = "";
  wm.writeHash();
  const place = wm.rows.indexOf(row);
  if (place >= 0) wm.focusPlace(place);
};

wm.step = (by) => {
  const place = wm.rows.indexOf(wm.shown) + by;
  if (place >= 0 && place < wm.rows.length) wm.open(wm.rows[place]);
};

wm.showDetail = (row) => {
  const dialog = wm.byId("detail");
  wm.shown = row;
  if (!dialog.open) dialog.showModal();
  wm.drawDetail(row, undefined);
  wm.load(Math.floor(row / wm.data.block), (content) => {
    if (wm.shown === row) wm.drawDetail(row, content ? content.rows[row % wm.data.block] : null, content && content.clips);
  });
};

// detail: undefined while it loads, null if its file is missing.
wm.drawDetail = (row, detail, clips) => {
  const dialog = wm.byId("detail"), place = wm.rows.indexOf(row), focused = document.activeElement?.dataset.name;
  const button = (name, text, label, act, off) =>
    wm.el("button", { type: "button", class: "plain", "data-name": name, "aria-label": label, onclick: act, disabled: off, text });
  const about = place < 0 ? "not among the rows shown" : `${wm.grouped(place + 1)} of ${wm.grouped(wm.rows.length)}`;
  const bar = wm.el(
    "div", { class: "bar" },
    button("back", "←", "Previous triplet", () => wm.step(-1), place <= 0),
    button("on", "→", "Next triplet", () => wm.step(1), place < 0 || place >= wm.rows.length - 1),
    wm.el("span", { class: "soft grow", text: about }), button("close", "Close", "Close", wm.close, false),
  );
  const parts = [bar, wm.el("h2", { id: "detail-action", text: wm.get("action", row) }), wm.frames(row, detail)];
  if (detail === null) parts.push(wm.el("p", { class: "notice", text: "The file with the details of this row is missing." }));
  if (detail) parts.push(wm.curve(detail, clips), wm.provenance(row, detail));
  dialog.replaceChildren(...parts);
  (dialog.querySelector(`[data-name="${focused}"]:not(:disabled)`) || dialog.querySelector("[data-name=close]")).focus();
  dialog.dataset.state = detail === undefined ? "loading" : "whole";
};

wm.frames = (row, detail) => {
  const across = Math.min(1080, window.innerWidth - 64), box_w = Math.max(220, Math.min(346, (across - 28) / 3));
  const figure = (node, name, text) =>
    wm.el("figure", {}, wm.el("div", { class: "box" }, node), wm.el("figcaption", {}, wm.el("b", { text: name }), ` ${text}`));
  const at = (which) => {
    const time = wm.get(`${which}_time`, row), frame = detail?.[`${which}_frame`];
    return [time === null ? null : `${time.toFixed(3)} s`, frame === null || frame === undefined ? null : `frame ${frame}`].filter(Boolean).join(", ");
  };
  const shot = (which, alt) => wm.shot(row, which, box_w, box_w * 0.75, alt);
  const action = wm.get("action", row);
  const figures = [figure(shot(0, `before: ${action}`), "source", at("source")), figure(shot(1, `after: ${action}`), "target", at("target"))];
  if (detail?.change) {
    const base = shot(1, "target, dimmed");
    base.classList.add("dim");
    if (base.firstChild instanceof HTMLElement) base.append(wm.heat(detail.change, base));
    const text = `squared distance of features per token, ${detail.change.side} × ${detail.change.side}; mean ${wm.number(detail.change.mean, 3)}, largest ${wm.number(detail.change.max, 3)}`;
    figures.push(figure(base, "change", text));
  } else if (detail?.change_note) {
    figures.push(figure(wm.el("span", { text: "no map" }), "change", detail.change_note));
  }
  return wm.el("div", { class: "frames" }, ...figures);
};

// The codec sees the centre square of an image, so the map covers that.
wm.heat = (change, base) => {
  const width = parseFloat(base.style.width), height = parseFloat(base.style.height), side = Math.min(width, height);
  const canvas = wm.el("canvas", { width: change.side, height: change.side, role: "img", "aria-label": "change map" });
  const context = canvas.getContext("2d"), image = context.createImageData(change.side, change.side);
  const bytes = atob(change.bytes);
  for (let token = 0; token < bytes.length; token++) {
    image.data.set([255, 96, 32, Math.round(bytes.charCodeAt(token) * 0.8)], token * 4);
  }
  context.putImageData(image, 0, 0);
  Object.assign(canvas.style, { width: `${side}px`, height: `${side}px`, left: `${(width - side) / 2}px`, top: `${(height - side) / 2}px` });
  return canvas;
};

wm.curve = (detail, clips) => {
  const clip = detail.clip === null ? null : clips[detail.clip];
  if (!clip) return wm.el("p", { class: "soft", text: "No motion curve: the data set holds no clips table for this row." });
  const last = Math.max(1, clip.frames - 1), at = (k) => Math.min(last, k * clip.step + (clip.step - 1) / 2);
  const marks = clip.keyframes.map((frame, k) => {
    const role = frame === detail.source_frame ? "source" : frame === detail.target_frame ? "target" : "other";
    const y = clip.motion[Math.min(clip.motion.length - 1, Math.floor(frame / clip.step))];
    const time = clip.times_s[k], label = time === null || time === undefined ? `${frame}` : `${time.toFixed(2)} s`;
    return { x: frame, y, role, label, frame, title: `key-frame ${frame}, ${label}, ${wm.number(y)} px/frame` };
  });
  const svg = wm.drawCurve({
    points: clip.motion.map((value, k) => [at(k), value]), ends: [0, last], texts: ["frame 0", `${clip.frames - 1}`], marks,
    read: (k) => `frame ${clip.step > 1 ? `${k * clip.step} to ${Math.min(last, (k + 1) * clip.step - 1)}` : k}, ${wm.number(clip.motion[k])} px/frame`,
    label: `Motion of ${clip.frames} frames with ${clip.keyframes.length} key-frames`,
  });
  const step = clip.step > 1 ? `, largest of every ${clip.step} frames` : "";
  return wm.el("div", { class: "curve" }, wm.el("h2", { text: "Motion of the clip" }), svg,
    wm.el("p", { class: "soft small", text: `mean optical flow in px/frame at full size${step}; lines are the chosen key-frames (source and target in colour)` }));
};

wm.provenance = (row, detail) => {
  const list = wm.el("dl", {});
  const add = (name, value, wide) => {
    if (value === null || value === undefined || value === "") return;
    list.append(wm.el("dt", { class: wide ? "wide" : null, text: name }), wm.el("dd", { class: wide ? "wide" : null, text: value }));
  };
  const score = wm.get("score", row), order = wm.get("order", row), motion = wm.get("motion", row);
  add("video", wm.get("uri", row), true);
  add("class", wm.get("class", row));
  add("origin", wm.get("origin", row));
  add("score", score === null ? null : `${wm.number(score, 4)} nats per token`);
  add("likelihood", detail.logprob === null ? null : `${wm.number(detail.logprob, 4)} nats over ${detail.tokens} tokens`);
  add("motion", motion === null ? null : `${wm.number(motion, 3)} px/frame`);
  add("frames read by", wm.get("reader", row));
  add("selected", order === null ? null : `as number ${order + 1}`);
  for (const [name, value] of detail.facts) add(name, value);
  add("licence", wm.get("license", row) || "not given", true);
  for (const [name, value] of detail.long_facts) add(name, value, true);
  add("id", wm.get("id", row), true);
  return list;
};

wm.byId("detail").addEventListener("close", wm.close);
wm.byId("detail").addEventListener("click", (event) => { if (event.target === wm.byId("detail")) wm.close(); });
wm.byId("detail").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wm.layout.across, ArrowDown: wm.layout.across }[event.key];
  if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  wm.step(by);
});
