"use strict";
// A motion curve as SVG with its marked frames; a pointer or arrow keys read off the nearest point.
const CURVE = { width: 1000, height: 190, left: 52, right: 14, top: 24, bottom: 32 };

// points: [[x, y]] by x; ends: x at both ends; texts below them; marks: {x, y, role, label, title, frame}; dots: [[x, y]]
// of other choices; read(k): what is shown of point k.
wm.drawCurve = ({ points, ends, texts, marks, dots = [], read, label, size = CURVE.width }) => {
  const { height, left, right, top, bottom } = CURVE, base = height - bottom, span = Math.max(1e-9, ends[1] - ends[0]);
  const peak = Math.max(1e-9, ...points.map(([, y]) => y));
  const across = (x) => left + ((x - ends[0]) / span) * (size - left - right), up = (y) => base - (y / peak) * (base - top);
  const path = points.map(([x, y]) => `${across(x).toFixed(1)},${up(y).toFixed(1)}`).join("L");
  const svg = wm.el("svg", { viewBox: `0 0 ${size} ${height}`, role: "img", tabindex: "0", "aria-label": label });
  svg.append(
    wm.el("line", { class: "axis", x1: left, x2: size - right, y1: base, y2: base }),
    wm.el("text", { x: left - 6, y: top + 4, "text-anchor": "end", text: wm.number(peak, peak < 10 ? 2 : 0) }),
    wm.el("text", { x: left - 6, y: base, "text-anchor": "end", text: "0" }),
    wm.el("text", { x: left, y: height - 4, text: texts[0] }),
    wm.el("text", { x: size - right, y: height - 4, "text-anchor": "end", text: texts[1] }),
    wm.el("path", { class: "line", d: `M${path}` }),
    ...dots.map(([x, y]) => wm.el("circle", { class: "dot", cx: across(x), cy: up(y), r: 3 })),
  );
  let taken = -Infinity;
  for (const mark of marks) {
    const x = across(mark.x), anchor = x > size - 60 ? "end" : x < left + 30 ? "start" : "middle";
    // Where key-frames are close on a narrow screen, a label would cover the one before.
    const fits = x - taken > 52 || size >= CURVE.width;
    if (fits) taken = x;
    svg.append(wm.el(
      "g", { class: "mark", "data-frame": mark.frame, "data-role": mark.role, "data-x": x.toFixed(2) },
      wm.el("title", { text: mark.title }),
      wm.el("line", { class: `key ${mark.role}`, x1: x, x2: x, y1: top - 6, y2: base }),
      wm.el("circle", { class: mark.role, cx: x, cy: up(mark.y), r: mark.role === "other" ? 3 : 4.5 }),
      fits ? wm.el("text", { class: mark.role, x, y: 12, "text-anchor": anchor, text: mark.label }) : null,
    ));
  }
  wm.readOff(svg, points.map(([x]) => across(x)), points.map(([, y]) => up(y)), read, { size, base, top });
  return svg;
};

wm.readOff = (svg, xs, ys, read, { size, base, top }) => {
  const line = wm.el("line", { class: "cursor", y1: top - 6, y2: base }), spot = wm.el("circle", { class: "cursor", r: 4 });
  const text = wm.el("text", { class: "cursor", y: base + 16 }), group = wm.el("g", { class: "reading" }, line, spot, text);
  group.style.display = "none";
  svg.append(group);
  let current = 0;
  const show = (k) => {
    current = Math.max(0, Math.min(xs.length - 1, k));
    const x = xs[current];
    for (const [name, value] of [["x1", x], ["x2", x]]) line.setAttribute(name, value);
    spot.setAttribute("cx", x);
    spot.setAttribute("cy", ys[current]);
    // The text leans away from the nearer end.
    text.setAttribute("x", x);
    text.setAttribute("text-anchor", x > size * 0.7 ? "end" : x < size * 0.3 ? "start" : "middle");
    text.textContent = read(current);
    group.style.display = "";
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * size;
    let best = 0;
    xs.forEach((at, k) => { if (Math.abs(at - x) < Math.abs(xs[best] - x)) best = k; });
    show(best);
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", () => { group.style.display = "none"; });
  svg.addEventListener("blur", () => { group.style.display = "none"; });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    show(current + by);
  });
};
