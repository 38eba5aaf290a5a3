"use strict";
// What was left out, filtered and failed apart; a reason opens its rows.
const REJECTS_A_PAGE = 100;

wm.drawRejects = () => {
  const place = wm.byId("view-rejects"), rejects = wm.data.rejects;
  if (!rejects.total) return void place.replaceChildren(wm.el("p", { class: "soft", text: "No rejects in this data set." }));
  const kinds = [["filtered", "Filtered: fine, but not wanted"], ["failed", "Failed: could not be used"]];
  const panels = kinds.map(([outcome, title]) => wm.reasonPanel(outcome, title));
  place.replaceChildren(wm.el("div", { class: "outcomes" }, ...panels), wm.rejectRows());
};

wm.reasonPanel = (outcome, title) => {
  const mine = wm.data.rejects.reasons.filter((entry) => entry.outcome === outcome);
  const total = mine.reduce((sum, entry) => sum + entry.count, 0), top = Math.max(1, ...mine.map((entry) => entry.count));
  const bars = mine.map((entry) => {
    const fill = wm.el("span", { class: "fill" });
    fill.style.width = `${(entry.count / top) * 100}%`;
    const on = wm.state.outcome === outcome && wm.state.reason === entry.reason;
    return wm.el(
      "button", { type: "button", class: "reason", "aria-pressed": String(on), "data-reason": entry.reason, onclick: () => wm.pickReason(outcome, entry.reason, on) },
      wm.el("span", { class: "name", text: entry.reason || "(no reason)" }), wm.el("span", { class: "track" }, fill),
      wm.el("span", { class: "count", text: wm.grouped(entry.count) }),
    );
  });
  const none = bars.length ? null : wm.el("p", { class: "soft", text: "none" });
  return wm.el("section", { class: `panel ${outcome}` }, wm.el("h2", { text: `${title} (${wm.grouped(total)})` }), none, ...bars);
};

wm.pickReason = (outcome, reason, on) => {
  Object.assign(wm.state, { outcome: on ? "" : outcome, reason: on ? "" : reason, page: 0 });
  wm.writeHash();
  wm.drawRejects();
  const again = [...document.querySelectorAll(`.panel.${outcome} .reason`)].find((node) => node.dataset.reason === reason);
  again?.focus();
};

wm.rejectRows = () => {
  const { rejects } = wm.data, { outcome, reason } = wm.state;
  const rows = rejects.rows.filter((row) => !outcome || (rejects.reasons[row[0]].outcome === outcome && rejects.reasons[row[0]].reason === reason));
  const counted = outcome ? rejects.reasons.filter((entry) => entry.outcome === outcome && entry.reason === reason) : rejects.reasons;
  const total = counted.reduce((sum, entry) => sum + entry.count, 0);
  const pages = Math.max(1, Math.ceil(rows.length / REJECTS_A_PAGE)), page = Math.min(wm.state.page, pages - 1);
  const shown = rows.slice(page * REJECTS_A_PAGE, (page + 1) * REJECTS_A_PAGE);
  const turn = (text, by) => wm.el("button", { type: "button", class: "plain", text, disabled: page + by < 0 || page + by >= pages, onclick: () => {
    wm.state.page = page + by;
    wm.writeHash();
    wm.drawRejects();
  } });
  const held = rows.length < total ? `; the page holds ${wm.grouped(rows.length)} of them, evenly spaced` : "";
  const what = outcome ? `${outcome}, ${reason || "(no reason)"}` : "all reasons";
  const head = wm.el("div", { class: "bar" },
    wm.el("p", { class: "grow", role: "status", text: `${what}: ${wm.grouped(total)} rows${held}` }),
    pages > 1 ? wm.el("span", { class: "soft", text: `page ${page + 1} of ${wm.grouped(pages)}` }) : null,
    pages > 1 ? turn("Back", -1) : null, pages > 1 ? turn("Next", 1) : null);
  const names = ["reason", "class", "video or file", "stage", "detail"];
  const body = shown.map(([number, label, uri, stage, detail]) =>
    wm.el("tr", {}, ...[rejects.reasons[number].reason, label, uri, stage, detail].map((text) => wm.el("td", { text: text || "–" }))));
  const table = wm.el("table", {},
    wm.el("thead", {}, wm.el("tr", {}, ...names.map((text) => wm.el("th", { scope: "col", text })))), wm.el("tbody", {}, ...body));
  return wm.el("section", {}, head, wm.el("div", { class: "scroll" }, table));
};
