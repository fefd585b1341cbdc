"""How a report looks, on a light and on a dark screen, and on paper."""

# Told apart by colour-blind eyes, on white and on near-black alike; the last is for all other sources.
COLOURS = ("#4d78d8", "#e8930c", "#12935a", "#c2528b", "#7b5fc0", "#2a9db0", "#c9562c", "#8f8a2b", "#8b949e")

CSS = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f8fa;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--bar:#4d78d8;--bad:#bc4c00}
@media(prefers-color-scheme:dark){:root{--paper:#0d1117;--card:#161b22;--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--bar:#6c93ea;--bad:#f0883e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px}
h2{font-size:20px;margin:48px 0 12px;padding-bottom:6px;border-bottom:1px solid var(--line)}
h3{font-size:14px;margin:0 0 8px;font-weight:600}
p{margin:0 0 12px}
.soft,figcaption{color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:24px 0}
.fact{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px}
.fact b{display:block;font-size:22px;line-height:1.3;font-variant-numeric:tabular-nums}
.fact span{color:var(--soft);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:20px 32px;margin-top:16px}
@media(max-width:540px){.grid{grid-template-columns:1fr}}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;font-weight:400}
thead th{color:var(--soft);font-size:13px;white-space:nowrap}
tr:last-child>*{border-bottom:0}
.num{text-align:right;white-space:nowrap}
.bars th{width:34%;overflow-wrap:anywhere;unicode-bidi:isolate}
.bars th,.bars td{border:0;padding-top:2px;padding-bottom:2px;font-size:14px}
.bars .num{width:1%}
.track i{display:block;height:12px;margin-top:5px;border-radius:2px;background:var(--bar);min-width:2px}
figure{margin:0 0 20px}
figcaption{font-size:13px;margin-bottom:4px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--ink);font-size:13px;font-family:inherit}
svg .soft{fill:var(--soft)}
svg .column{fill:var(--bar)}
svg .stream{opacity:.2}
svg .guess{opacity:.5}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--soft);margin:0 0 16px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.stage{margin-top:28px;border:1px solid var(--line);border-radius:8px;padding:14px 20px}
.stage>summary{cursor:pointer;font-size:17px;font-weight:600}
.stage>summary span{font-weight:400;font-size:14px;color:var(--soft);margin-left:10px}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin:10px 0 0;font-size:13px}
.chips span{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1px 10px;overflow-wrap:anywhere}
details.samples{margin-top:12px}
details.samples>summary{cursor:pointer;font-size:14px}
.sample{border-left:3px solid var(--line);margin:10px 0;padding:2px 0 2px 12px;font-size:13px;overflow-wrap:anywhere}
.sample p{margin:0;color:var(--soft)}
.sample p,.sample pre{unicode-bidi:plaintext}
pre{margin:4px 0;white-space:pre-wrap;font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.bad{color:var(--bad)}
@media print{.stage{break-inside:avoid}main{padding:0}}
""" + "".join(f".c{number}{{fill:{colour};background:{colour}}}\n" for number, colour in enumerate(COLOURS))
