"""Hold the report's style sheet: follows light and dark, and folds to one column on a phone."""

STYLE = """
:root {
  color-scheme: light dark; --ground: #fbfbf9; --card: #ffffff; --ink: #1c2024; --soft: #5b636b;
  --line: #dfe2e5; --good: #14713d; --good-bg: #e0f3e7; --bad: #a3271f; --bad-bg: #fbe6e3;
  --mid: #7a5600; --mid-bg: #fbf0d2; --mark: #1667c7; --c0: #1667c7; --c1: #c2560c; --c2: #14804a;
  --c3: #8b3fb0; --c4: #b3204f; --c5: #0f7f8c; --hi: 22 103 199; --lo: 194 86 12;
}
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171a; --card: #1c2024; --ink: #e8eaec; --soft: #a3abb3; --line: #353b41;
  --good: #7fdba3; --good-bg: #173524; --bad: #ff9d92; --bad-bg: #41201d; --mid: #f0cd74;
  --mid-bg: #3a2f12; --mark: #6fb1ff; --c0: #6fb1ff; --c1: #ffa263; --c2: #67d298; --c3: #d09bf0;
  --c4: #ff8fae; --c5: #62d0dc; --hi: 111 177 255; --lo: 255 162 99;
} }
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 8px 0; }
h2 { font-size: 1.25rem; margin: 44px 0 6px; }
h3 { font-size: 1rem; margin: 18px 0 6px; }
p { margin: 6px 0 12px; max-width: 76ch; }
.soft { color: var(--soft); }
.small { font-size: .85rem; }
a { color: var(--mark); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; }
.scroll {
  overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: 10px 0;
}
table {
  border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem;
}
th, td {
  padding: 6px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
}
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
tr.first td { border-top: 2px solid var(--line); }
tr.dim td { color: var(--soft); }
td.best { font-weight: 700; }
td .pm { color: var(--soft); font-weight: 400; font-size: .85em; }
.claims {
  display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); margin: 12px 0;
}
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
}
.card h3 { margin: 8px 0 4px; }
.card ul { margin: 6px 0; padding-left: 18px; font-size: .9rem; }
.badge {
  display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: .8rem;
  font-weight: 600;
}
.badge.yes { color: var(--good); background: var(--good-bg); }
.badge.no { color: var(--bad); background: var(--bad-bg); }
.badge.open { color: var(--mid); background: var(--mid-bg); }
.badge.none { color: var(--soft); border: 1px solid var(--line); }
.charts {
  display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
}
figure { margin: 0; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .82rem; color: var(--soft); }
.legend i {
  display: inline-block; width: 18px; height: 0; border-top: 3px solid; vertical-align: middle;
  margin-right: 5px;
}
.legend i.dash { border-top-style: dashed; }
.wall {
  display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr));
}
.strip { display: flex; flex-wrap: wrap; gap: 8px; margin: 6px 0 2px; }
.shot { width: 74px; font-size: .72rem; color: var(--soft); line-height: 1.25; text-align: center; }
.shot img {
  width: 74px; height: 74px; display: block; border-radius: 4px; image-rendering: pixelated;
  object-fit: cover;
}
.shot img { margin-bottom: 5px; }
.heat { margin-bottom: 5px; }
.heat img { margin: 0; }
.shot.chosen img { outline: 3px solid var(--mark); outline-offset: 1px; }
.shot.big, .shot.big img { width: 96px; }
.shot.big img { height: 96px; }
.heat { position: relative; }
.heat img + img { position: absolute; inset: 0; }
.heat img:first-child { filter: grayscale(1) brightness(.8); }
.yes-text { color: var(--good); }
.no-text { color: var(--bad); }
.model { border-top: 1px solid var(--line); padding-top: 6px; margin-top: 8px; }
.model b { font-size: .88rem; }
.action { font-size: 1.02rem; font-weight: 650; overflow-wrap: anywhere; }
.bar { height: 10px; border-radius: 3px; background: var(--c0); min-width: 1px; }
.wrap td:last-child, .wrap th:last-child {
  white-space: normal; text-align: left; color: var(--soft);
}
td.barcell { width: 40%; min-width: 120px; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--mark); }
"""
