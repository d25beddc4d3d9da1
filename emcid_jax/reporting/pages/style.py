"""The report's style sheet: calm, dark on light, one column that a phone can show."""

from __future__ import annotations

CSS = """
:root { --ink: #22303c; --soft: #5b6975; --line: #e3e7ea; --paper: #fbfbf9; --card: #ffffff;
  --blue: #0072b2; --orange: #d55e00; --pale: #dbe9f3; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2 { font-family: Charter, "Bitstream Charter", "Iowan Old Style", Palatino, Georgia, serif;
  font-weight: 600; line-height: 1.2; letter-spacing: -0.01em; }
h1 { font-size: clamp(1.8rem, 5vw, 2.6rem); margin: 0.2rem 0 0.8rem; }
h2 { font-size: 1.5rem; margin: 3.2rem 0 0.4rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.6rem; }
p { margin: 0 0 0.8rem; max-width: 44rem; }
.over { text-transform: uppercase; letter-spacing: 0.1em; font-size: 0.75rem; color: var(--soft);
  margin: 0; }
.lead { font-size: 1.125rem; }
.note { color: var(--soft); font-size: 0.9rem; }
.cards { display: grid; gap: 1rem; margin: 1.8rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(14.5rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.2rem; }
.card h3 { margin: 0; font-size: 0.95rem; font-weight: 600; }
.card .number { font-size: 2.3rem; font-weight: 600; letter-spacing: -0.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card .interval { color: var(--soft); font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.card p { font-size: 0.88rem; margin: 0.5rem 0 0; color: var(--soft); }
.gauge { display: block; width: 100%; height: 26px; margin: 0.4rem 0 0; }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: 0.75rem;
  font-variant-numeric: tabular-nums; }
.card .name { font-size: 0.75rem; letter-spacing: 0.02em; font-weight: 600; }
h4 { font-size: 0.85rem; margin: 0 0 0.35rem; font-weight: 600; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.scroll { overflow-x: auto; margin: 1rem 0; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { padding: 0.5rem 0.8rem; text-align: left; vertical-align: top;
  border-top: 1px solid var(--line); }
thead th { border-top: 0; font-weight: 600; color: var(--soft); font-size: 0.8rem;
  vertical-align: bottom; }
tbody th { font-weight: 500; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.other, th.other { background: #f5f5f2; color: var(--soft); }
.dense th, .dense td { padding: 0.4rem 0.35rem; font-size: 0.82rem; }
.dense thead th { font-size: 0.72rem; } .dense tbody th { min-width: 8rem; }
.dense thead .n { white-space: normal; } .dense td small { font-size: 0.68rem; }
.dense .first { border-left: 1px solid var(--line); }
tr.group th { background: #f4f7f9; color: var(--soft); font-size: 0.75rem; font-weight: 600;
  text-transform: uppercase; letter-spacing: 0.08em; padding: 0.35rem 0.8rem; }
td small, th small { color: var(--soft); font-weight: 400; }
tbody th { min-width: 9rem; } tbody small { display: inline-block; line-height: 1.4; }
td.short { white-space: nowrap; }
.good { color: var(--blue); } .bad { color: var(--orange); }
.pairs { display: grid; gap: 1rem; margin: 0.6rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.pair { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.9rem 1rem; }
.pair header { display: flex; justify-content: space-between; gap: 0.8rem; font-weight: 600; }
.pair header span:last-child { font-variant-numeric: tabular-nums; white-space: nowrap; }
.pair .prompt { font-size: 0.85rem; color: var(--soft); margin: 0.1rem 0 0.6rem;
  overflow-wrap: anywhere; }
.trio { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0.6rem; }
.duo { display: grid; grid-template-columns: repeat(2, 1fr); gap: 0.4rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px;
  background: var(--line); }
.crisp { image-rendering: pixelated; }
figcaption { font-size: 0.75rem; line-height: 1.35; color: var(--soft); margin-top: 0.3rem;
  overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.strip { display: grid; gap: 1rem 1.2rem; margin: 1rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
.plot { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.9rem 1rem; }
.plot img { border-radius: 0; background: none; }
.plot figcaption { font-size: 0.85rem; }
.broad { overflow-x: auto; } .broad .plot { min-width: 44rem; }
.bar { display: block; height: 0.55rem; min-width: 2px; border-radius: 3px;
  background: var(--blue); margin-top: 0.45rem; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; font-weight: 600; }
code, pre { font: 0.85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem; overflow-x: auto; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: 0.85rem; }
@media (max-width: 34rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .wide { display: none; }
  th, td { padding: 0.45rem 0.6rem; }
  .strip { grid-template-columns: repeat(2, 1fr); }
  .pairs { grid-template-columns: 1fr; }
}
@media print { body { background: #fff; } .card, .pair, .plot { break-inside: avoid; } }
"""
