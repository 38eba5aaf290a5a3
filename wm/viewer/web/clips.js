"use strict";
// The page of clips: summary, filters, and a card a clip with its motion curve and its key-frames.
const BATCH = 12;
wm.state = { rule: "", classes: new Set(), verdicts: new Set(), q: "" };

wm.clipsPage = (data, clips) => {
  wm.data = data;
  wm.clips = clips;
  clips.forEach((clip) => { clip.low = `${clip.key} ${clip.class_label}`.toLowerCase(); });
  wm.state.rule = data.rule;
  wm.readAddress();
  wm.drawRules();
  wm.drawFilters();
  wm.drawUnread();
  wm.apply();
  document.documentElement.dataset.readyMs = performance.now().toFixed(1);
};

wm.drawRules = () => {
  wm.byId("rules").replaceChildren(...wm.data.rules.map((rule) => wm.el("button", {
    type: "button", "data-rule": rule, text: rule.replaceAll("_", " "), "aria-pressed": String(rule === wm.state.rule),
    onclick: () => { wm.state.rule = rule; wm.drawRules(); wm.drawFilters(); wm.apply(); },
  })));
};

wm.drawSummary = () => {
  const { data, state } = wm, counts = data.counts[state.rule], classes = new Set(wm.clips.map((clip) => clip.class_label)).size;
  const mean = (value) => (counts.decoded ? (value / counts.decoded).toFixed(2) : "–");
  const figures = [
    [`${wm.grouped(counts.videos)} of ${wm.grouped(data.listed)}`, "clips looked at"], [wm.grouped(classes), "classes"],
    [counts.decoded ? wm.seconds(counts.video_s / counts.decoded) : "–", "mean length"], [mean(counts.keyframes), "key-frames a clip"],
    [mean(counts.pairs), "pairs a clip"], [`${wm.grouped(counts.kept)} of ${wm.grouped(counts.pairs)}`, "pairs kept"],
    [wm.grouped(data.failures.length), "clips not read"],
  ];
  wm.byId("summary").replaceChildren(
    ...figures.map(([value, name]) => wm.el("div", { class: "figure" }, wm.el("b", { text: value }), wm.el("span", { text: name }))),
    ...data.notices.map((text) => wm.el("p", { class: "notice", text })),
    ...(counts.videos < data.listed ? [wm.el("p", { class: "notice", text: `A sample, evenly spread over classes and list: ${wm.grouped(counts.videos)} of ${wm.grouped(data.listed)} clips. The same command looks at more; budget_s and max_clips set how many.` })] : []),
  );
  wm.byId("panels").replaceChildren(wm.filterPanel(counts), wm.wholePanel(counts), wm.settingsPanel());
};

wm.filterPanel = (counts) => {
  const rows = wm.data.filters.map((filter) => {
    const number = counts.findings[filter.reason], among = counts.judged[filter.reason], share = among ? number / among : 0;
    const fill = wm.el("span", { class: "fill" });
    fill.style.width = `${share * 100}%`;
    const text = filter.mode === "off" ? "off" : among ? `${number} of ${among} (${(share * 100).toFixed(0)} %)` : "not known yet";
    return wm.el("div", { class: filter.mode === "on" ? "finding on" : "finding", title: `${filter.key}=${filter.mode}, ${filter.threshold_key}=${filter.threshold}` },
      wm.el("span", { text: WORDS[filter.reason] }), wm.el("span", { class: "track" }, fill), wm.el("span", { class: "count", text }));
  });
  const on = wm.data.filters.filter((filter) => filter.mode === "on").map((filter) => filter.key);
  const text = on.length ? `${on.join(", ")}: on, such pairs are left out. Of the others a pair is marked, and kept.` : "Such pairs are marked in amber, and kept: a filter drops them once it is on, such as filters.static=on.";
  const still = counts.too_little_motion ? wm.el("p", { class: "small", text: `${counts.too_little_motion} pairs move less than keyframes.min_motion_px = ${wm.data.min_motion_px}` }) : null;
  return wm.el("section", { class: "panel" }, wm.el("h2", { text: "What each filter would drop" }), wm.el("p", { class: "soft small", text }), ...rows, still);
};

wm.span = (seconds) => (seconds >= 5400 ? `${(seconds / 3600).toFixed(1)} h` : seconds >= 90 ? `${(seconds / 60).toFixed(1)} min` : `${seconds.toFixed(0)} s`);

wm.wholePanel = (counts) => {
  const { data, state } = wm, expected = data.expectations[state.rule], about = counts.videos < data.listed ? "about " : "";
  const list = wm.el("dl", {});
  const add = (name, value) => list.append(wm.el("dt", { text: name }), wm.el("dd", { text: value }));
  add("clips", `${wm.grouped(data.listed)}, ${about}${wm.span(expected.length_s)} of video`);
  add("pairs", `${about}${wm.grouped(Math.round(expected.pairs))}, of which ${wm.grouped(Math.round(expected.kept))} pass the filters above`);
  add("reading them", `${about}${wm.span(expected.reading_s)} of one core of this machine, as busy as it was; the model comes on top`);
  return wm.el("section", { class: "panel" }, wm.el("h2", { text: "An annotation of the whole set" }), list,
    wm.el("p", { class: "soft small", text: "The same settings, with an inverse model; then what it takes on a cluster:" }),
    ...data.commands.map((text) => wm.el("pre", { tabindex: "0", text: state.rule === data.rule ? text : wm.withRule(text) })));
};

// The commands were built for the recipe's rule; another one on the page is another setting.
wm.withRule = (text) => {
  if (!text.startsWith("wm annotate")) return text;
  return `${text.replace(/ keyframes\.rule=\S+/, "")} keyframes.rule=${wm.state.rule}`;
};

wm.settingsPanel = () => {
  const list = wm.el("dl", {});
  for (const [name, value] of Object.entries({ "keyframes.rule": wm.state.rule, ...wm.data.settings })) {
    list.append(wm.el("dt", { text: name }), wm.el("dd", { text: String(value) }));
  }
  const changed = wm.state.rule !== wm.data.rule ? `The rule was changed on this page, from ${wm.data.rule}.` : wm.data.changed.length ? `Changed: ${wm.data.changed.join(", ")}` : "All settings are annotate's defaults.";
  return wm.el("section", { class: "panel" }, wm.el("h2", { text: "Settings" }), list, wm.el("p", { class: "soft small", text: changed }),
    wm.otherSettings(), ...wm.data.passed_over.map((text) => wm.el("p", { class: "soft small", text })));
};

// Pairs a clip at other values of max_keyframes; null where they cannot be told without reading the clips again.
wm.otherSettings = () => {
  const { alternatives, rules, rule, settings } = wm.data;
  if (!alternatives) return null;
  const head = wm.el("tr", {}, ...["pairs a clip at K_f =", ...alternatives.map((row) => row.max_keyframes)].map((text) => wm.el("th", { scope: "col", text })));
  const body = rules.map((name) => wm.el("tr", {}, wm.el("td", { text: name.replaceAll("_", " ") }), ...alternatives.map((row) =>
    wm.el("td", { class: name === wm.state.rule && row.max_keyframes === settings["keyframes.max_keyframes"] ? "here" : null, text: row.pairs[name].toFixed(2) }))));
  return wm.el("table", {}, wm.el("thead", {}, head), wm.el("tbody", {}, ...body));
};

wm.verdictsOf = (clip, rule) => {
  const { pairs } = clip.rules[rule];
  const names = pairs.flatMap((pair) => (pair.reason ? [pair.reason, ...pair.findings] : pair.findings.length ? pair.findings : ["kept"]));
  return new Set(pairs.length ? names : ["none"]);
};

wm.drawFilters = () => {
  const options = (place, counts, chosen, word) => {
    const labels = [...counts].map(([name, count]) => wm.el("label", {},
      wm.el("input", { type: "checkbox", "data-value": name, checked: chosen.has(name), onchange: (event) => {
        if (event.target.checked) chosen.add(name); else chosen.delete(name);
        wm.apply();
      } }), wm.el("span", { class: "name", text: word(name) }), wm.el("span", { class: "count", text: wm.grouped(count) })));
    wm.byId(place).querySelector(".options").replaceChildren(...labels);
    wm.byId(place).hidden = labels.length < 2;
  };
  const verdicts = new Map(), classes = new Map();
  for (const clip of wm.clips) {
    for (const name of wm.verdictsOf(clip, wm.state.rule)) verdicts.set(name, (verdicts.get(name) || 0) + 1);
    classes.set(clip.class_label, (classes.get(clip.class_label) || 0) + 1);
  }
  const order = ["kept", ...Object.keys(WORDS), "none"], sorted = [...verdicts].sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  const word = (name) => (name === "none" ? "missing: no pair at all" : WORDS[name] || name);
  options("verdict-filter", sorted, wm.state.verdicts, word);
  options("class-filter", [...classes].sort(), wm.state.classes, (name) => name || "(none)");
};

wm.apply = () => {
  const { state } = wm, words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = wm.clips.filter((clip) =>
    words.every((word) => clip.low.includes(word)) && (!state.classes.size || state.classes.has(clip.class_label)) &&
    (!state.verdicts.size || [...wm.verdictsOf(clip, state.rule)].some((name) => state.verdicts.has(name))));
  wm.shown = shown;
  wm.drawSummary();
  wm.byId("count").textContent = `${wm.grouped(shown.length)} of ${wm.grouped(wm.clips.length)} clips. Lines: key-frames of this rule; circles: of the other.`;
  wm.byId("nothing").hidden = shown.length > 0 || !wm.clips.length;
  wm.byId("clips").replaceChildren();
  wm.drawMore();
  document.documentElement.dataset.shown = shown.length;
  wm.writeAddress();
};

// A few cards at a time, as one scrolls.
wm.drawMore = () => {
  const list = wm.byId("clips"), from = list.childElementCount;
  wm.shown.slice(from, from + BATCH).forEach((clip) => list.append(wm.card(clip)));
  if (list.childElementCount < wm.shown.length) wm.sentinel.observe(list.lastElementChild);
};
wm.sentinel = new IntersectionObserver((entries) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  wm.sentinel.disconnect();
  wm.drawMore();
}, { rootMargin: "1200px" });

wm.card = (clip) => {
  const about = clip.facts.map(([name, value]) => (name ? `${name} ${value}` : value)).join(" · ");
  const reader = clip.rules[wm.state.rule].reader;
  return wm.el(
    "article", { class: "clip", role: "listitem", "data-key": clip.key }, wm.el("h2", { text: clip.key, title: clip.uri }),
    wm.el("p", { class: "about" }, clip.class_label ? wm.el("b", { text: `${clip.class_label} · ` }) : null, about, reader ? ` · read by ${reader}` : ""),
    wm.clipCurve(clip), wm.strip(clip, wm.state.rule),
  );
};

wm.clipCurve = (clip) => {
  const { curve, rules } = clip, rule = rules[wm.state.rule], own = new Set(rule.keyframes.map((key) => key.frame));
  const size = Math.max(300, Math.min(1000, wm.byId("clips").clientWidth - 30));
  const others = Object.values(rules).flatMap((other) => other.keyframes.filter((key) => !own.has(key.frame)));
  const first = curve.times_s[0], last = curve.times_s.at(-1);
  const svg = wm.drawCurve({
    size, points: curve.times_s.map((time, k) => [time, curve.motion[k]]), ends: [first, last], texts: [wm.seconds(first), wm.seconds(last)],
    marks: rule.keyframes.map((key) => ({
      x: key.time_s, y: key.motion, role: "chosen", label: wm.seconds(key.time_s), frame: key.frame,
      title: `key-frame ${key.frame}, ${key.time_s.toFixed(3)} s, ${wm.number(key.motion, 3)} px/frame`,
    })),
    dots: others.map((key) => [key.time_s, key.motion]),
    read: (k) => `${curve.times_s[k].toFixed(2)} s · frame ${wm.grouped(curve.at[k])} · ${wm.number(curve.motion[k])} px/frame`,
    label: `Motion of ${clip.key}: ${curve.frames} frames, ${rule.keyframes.length} key-frames`,
  });
  return wm.el("div", { class: "curve" }, svg);
};

wm.drawUnread = () => {
  const { failures } = wm.data;
  if (!failures.length) return;
  const head = wm.el("tr", {}, ...["clip", "class", "reason", "detail"].map((text) => wm.el("th", { scope: "col", text })));
  const body = failures.map((clip) => wm.el("tr", {}, ...[clip.key, clip.class_label, clip.reason, clip.detail].map((text) => wm.el("td", { text: text || "–" }))));
  const table = wm.el("table", {}, wm.el("thead", {}, head), wm.el("tbody", {}, ...body));
  wm.byId("unread").append(wm.el("h2", { text: `Clips not read (${wm.grouped(failures.length)})` }), wm.el("div", { class: "scroll" }, table));
};

// The address holds the view, so that it can be passed on.
wm.writeAddress = () => {
  const { state } = wm, parts = state.rule === wm.data.rule ? [] : [`rule=${encodeURIComponent(state.rule)}`];
  for (const [key, values] of [["class", state.classes], ["pair", state.verdicts]]) values.forEach((value) => parts.push(`${key}=${encodeURIComponent(value)}`));
  if (state.q) parts.push(`q=${encodeURIComponent(state.q)}`);
  const address = parts.length ? `#${parts.join("&")}` : "";
  if (location.hash === address) return;
  try { history.replaceState(null, "", address || location.pathname); } catch { location.replace(address || "#"); }
};

wm.readAddress = () => {
  const { state, data } = wm;
  for (const part of location.hash.replace(/^#/, "").split("&")) {
    const cut = part.indexOf("="), key = part.slice(0, cut), value = wm.decode(part.slice(cut + 1));
    if (key === "rule" && data.rules.includes(value)) state.rule = value;
    else if (key === "class") state.classes.add(value);
    else if (key === "pair") state.verdicts.add(value);
    else if (key === "q") state.q = value;
  }
  wm.byId("query").value = state.q;
};

if (window.matchMedia("(max-width: 760px)").matches) wm.byId("filter-box").open = false;
wm.byId("filters").addEventListener("submit", (event) => event.preventDefault());
wm.byId("query").addEventListener("input", (event) => { wm.state.q = event.target.value; wm.apply(); });
wm.byId("reset").addEventListener("click", () => {
  wm.state.q = wm.byId("query").value = "";
  wm.state.classes.clear();
  wm.state.verdicts.clear();
  wm.drawFilters();
  wm.apply();
});
// Curves are drawn for the width that there is.
let drawnFor = window.innerWidth;
window.addEventListener("resize", () => {
  if (!wm.data || Math.abs(window.innerWidth - drawnFor) < 40) return;
  drawnFor = window.innerWidth;
  wm.apply();
});
