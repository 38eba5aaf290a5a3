"use strict";
// Puts the parts together: filters, tabs, summary, and the address.
const BINS = 48, STEPS = 400;

wm.index = (data, columns) => {
  wm.data = data;
  wm.columns = columns;
  columns.action_low = columns.action.map((text) => text.toLowerCase());
  wm.scores = columns.score.filter((value) => value !== null);
  wm.low = wm.scores.reduce((low, value) => Math.min(low, value), Infinity);
  wm.high = wm.scores.reduce((high, value) => Math.max(high, value), -Infinity);
  wm.drawSummary();
  wm.drawOptions("class-filter", "class", "classes");
  wm.drawOptions("origin-filter", "origin", "origins");
  wm.byId("score-filter").hidden = !wm.scores.length;
  const without = columns.score.length - wm.scores.length;
  wm.byId("unscored").textContent = without ? `${wm.grouped(without)} rows have no score; they show while the range is open` : "";
  wm.byId("chosen-filter").hidden = data.chosen === null;
  wm.byId("chosen-count").textContent = data.chosen === null ? "" : wm.grouped(data.chosen);
  for (const [name, gone] of [["order", data.chosen === null], ["score-down", !wm.scores.length], ["score-up", !wm.scores.length]]) {
    if (gone) document.querySelector(`#sort option[value=${name}]`).remove();
  }
  wm.readHash();
  document.documentElement.dataset.readyMs = performance.now().toFixed(1);
};

wm.drawSummary = () => {
  const { figures, notes, rejects } = wm.data;
  wm.byId("summary").replaceChildren(
    ...figures.map(([name, value]) => wm.el("div", { class: "figure" }, wm.el("b", { text: value }), wm.el("span", { text: name }))),
    ...notes.map((text) => wm.el("p", { class: "notice", text })),
  );
  wm.byId("tab-triplets").lastElementChild.textContent = wm.grouped(wm.columns.id.length);
  wm.byId("tab-rejects").lastElementChild.textContent = wm.grouped(rejects.total);
};

wm.drawOptions = (place, name, key) => {
  const { values, codes } = wm.columns[name], counts = new Array(values.length).fill(0);
  codes.forEach((code) => counts[code]++);
  const options = values.map((value, code) => {
    const box = wm.el("input", { type: "checkbox", "data-code": code, onchange: () => {
      const boxes = [...wm.byId(place).querySelectorAll("input:checked")];
      wm.change({ [key]: boxes.map((each) => values[each.dataset.code]) });
    } });
    return wm.el("label", {}, box, wm.el("span", { class: "name", text: value || "(none)" }), wm.el("span", { class: "count", text: wm.grouped(counts[code]) }));
  });
  wm.byId(place).querySelector(".options").replaceChildren(...options);
};

wm.drawHistogram = () => {
  if (!wm.scores.length) return;
  const span = wm.high - wm.low || 1, counts = new Array(BINS).fill(0);
  for (const value of wm.scores) counts[Math.min(BINS - 1, Math.floor(((value - wm.low) / span) * BINS))]++;
  const top = Math.max(...counts), low = wm.state.min ?? -Infinity, high = wm.state.max ?? Infinity;
  const bars = counts.map((count, bin) => {
    const start = wm.low + (bin / BINS) * span, end = wm.low + ((bin + 1) / BINS) * span, tall = count ? Math.max(1, (count / top) * 54) : 0;
    return wm.el("rect", { class: end >= low && start <= high ? "in" : null, x: bin * 5, y: 56 - tall, width: 4.4, height: tall });
  });
  const svg = wm.byId("histogram");
  svg.setAttribute("aria-label", `Histogram of ${wm.scores.length} scores from ${wm.number(wm.low)} to ${wm.number(wm.high)}`);
  svg.replaceChildren(...bars);
};

// Sliders are at the nearest of their steps; the value itself stays exact.
wm.drawControls = () => {
  const { state } = wm, span = wm.high - wm.low || 1;
  const step = (value, open) => (value === null ? open : Math.round(Math.min(1, Math.max(0, (value - wm.low) / span)) * STEPS));
  wm.byId("min").value = step(state.min, 0);
  wm.byId("max").value = step(state.max, STEPS);
  wm.byId("min-text").textContent = state.min === null ? "any" : wm.number(state.min);
  wm.byId("max-text").textContent = state.max === null ? "any" : wm.number(state.max);
  for (const end of ["min", "max"]) wm.byId(end).setAttribute("aria-valuetext", wm.byId(`${end}-text`).textContent);
  if (wm.byId("query").value !== state.q) wm.byId("query").value = state.q;
  wm.byId("sort").value = state.sort;
  wm.byId("chosen").checked = state.chosen;
  for (const [place, name, key] of [["class-filter", "class", "classes"], ["origin-filter", "origin", "origins"]]) {
    const { values } = wm.columns[name];
    wm.byId(place).querySelectorAll("input[type=checkbox]").forEach((box) => { box.checked = state[key].includes(values[box.dataset.code]); });
  }
  wm.drawHistogram();
};

wm.apply = () => {
  const start = performance.now(), { state } = wm, page = document.documentElement;
  for (const view of ["triplets", "rejects"]) {
    wm.byId(`view-${view}`).hidden = state.view !== view;
    wm.byId(`tab-${view}`).setAttribute("aria-pressed", String(state.view === view));
  }
  wm.rows = wm.filtered(state);
  wm.drawControls();
  wm.byId("nothing").hidden = wm.rows.length > 0;
  wm.byId("count").textContent = `${wm.grouped(wm.rows.length)} of ${wm.grouped(wm.columns.id.length)} triplets`;
  if (state.view === "rejects") wm.drawRejects(); else wm.drawGrid();
  page.dataset.shown = wm.rows.length;
  page.dataset.filterMs = (performance.now() - start).toFixed(1);
};

wm.change = (values) => {
  Object.assign(wm.state, values);
  wm.writeHash();
  if (wm.byId("grid").getBoundingClientRect().top < 0) wm.byId("grid").parentElement.scrollIntoView();
  wm.apply();
};

wm.writeHash = () => {
  try { history.replaceState(null, "", wm.toHash(wm.state)); } catch { location.replace(wm.toHash(wm.state)); }
};

wm.readHash = () => {
  wm.state = wm.parseHash(location.hash);
  wm.apply();
  const row = wm.state.id ? wm.columns.id.indexOf(wm.state.id) : -1;
  wm.byId("absent").hidden = row >= 0 || !wm.state.id;
  wm.byId("absent").textContent = `Triplet ${wm.state.id} is not on this page.`;
  if (row >= 0) wm.showDetail(row);
  else if (wm.byId("detail").open) wm.close();
};

wm.slide = () => {
  const value = (end) => wm.low + (Number(wm.byId(end).value) / STEPS) * (wm.high - wm.low);
  const min = Number(wm.byId("min").value) ? value("min") : null;
  const max = Number(wm.byId("max").value) < STEPS ? value("max") : null;
  wm.change({ min, max });
};

// On a narrow screen the cards come before the filters are asked for.
if (window.matchMedia("(max-width: 760px)").matches) wm.byId("filter-box").open = false;
let pending = 0;
const soon = () => { pending ||= requestAnimationFrame(() => { pending = 0; if (wm.data && wm.state.view === "triplets") wm.drawGrid(); }); };
window.addEventListener("scroll", soon, { passive: true });
window.addEventListener("resize", soon);
window.addEventListener("hashchange", () => { if (wm.data && location.hash !== wm.toHash(wm.state)) wm.readHash(); });
wm.byId("filters").addEventListener("submit", (event) => event.preventDefault());
wm.byId("query").addEventListener("input", (event) => wm.change({ q: event.target.value }));
wm.byId("sort").addEventListener("change", (event) => wm.change({ sort: event.target.value }));
wm.byId("chosen").addEventListener("change", (event) => wm.change({ chosen: event.target.checked }));
for (const end of ["min", "max"]) wm.byId(end).addEventListener("input", wm.slide);
wm.byId("reset").addEventListener("click", () => wm.change({ ...wm.empty(), view: wm.state.view }));
for (const view of ["triplets", "rejects"]) wm.byId(`tab-${view}`).addEventListener("click", () => wm.change({ view, page: 0 }));
wm.byId("class-query").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  wm.byId("class-filter").querySelectorAll(".options label").forEach((label) => {
    label.hidden = !label.querySelector(".name").textContent.toLowerCase().includes(wanted);
  });
});
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) document.documentElement.dataset[entry.name === "first-paint" ? "firstPaintMs" : "firstContentfulPaintMs"] = entry.startTime.toFixed(1);
}).observe({ type: "paint", buffered: true });
