"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id);
const hidden = new Set();
let chosen = 0;
const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Where a value is along an axis from low to high, between 0 and 1; errors come as logarithms.
function scales(curves, steps) {
  const logX = get("logx").checked, logY = get("logy").checked;
  const logs = curves.flatMap(c => c.points.map(p => p[1]));
  let top = Math.max(...logs), low = Math.max(Math.min(...logs), top - 14);
  if (!logs.length) [low, top] = [-1, 0];
  if (top - low < 0.2) [low, top] = [low - 0.1, top + 0.1];
  const across = t => logX ? Math.log10(Math.max(t, 1)) : t;
  const most = across(steps) || 1;
  const high = 10 ** Math.min(top, 300);
  return {
    logX, logY, low, top, high,
    x: t => across(t) / most,
    y: v => logY ? (v - low) / (top - low) : 10 ** Math.min(v, 300) / high,
  };
}

function ticksY(s) {
  if (!s.logY) return [0, 0.25, 0.5, 0.75, 1].map(f => [f, (f * s.high).toPrecision(2)]);
  const from = Math.ceil(s.low), to = Math.floor(s.top), found = [];
  const step = Math.max(1, Math.ceil((to - from) / 7));
  for (let v = from; v <= to; v += step) found.push([s.y(v), `1e${v}`]);
  if (found.length < 2) return [0, 0.5, 1].map(f =>
    [f, (10 ** (s.low + f * (s.top - s.low))).toPrecision(2)]);
  return found;
}

function ticksX(s, steps) {
  if (!s.logX) return [0, 0.25, 0.5, 0.75, 1].map(f => Math.round(f * steps));
  const found = [];
  for (let t = 1; t <= steps; t *= 10) found.push(t);
  return found;
}

function draw(panel) {
  const plot = get(`plot${panel}`), one = data.cases[chosen];
  const wide = Math.max(300, Math.min(960, plot.parentNode.clientWidth)), tall = 300;
  const box = {l: 56, r: wide - 12, t: 12, b: tall - 40};
  const curves = one.curves.filter(c => c.panel === panel && !hidden.has(c.name));
  const steps = Math.max(1, one.last);
  const s = scales(curves, steps);
  const X = t => box.l + (box.r - box.l) * s.x(t), Y = v => box.b - (box.b - box.t) * s.y(v);
  plot.replaceChildren();
  plot.setAttribute("viewBox", `0 0 ${wide} ${tall}`);
  plot.setAttribute("aria-label", one.alt);
  const clip = node("clipPath", {id: `clip${panel}`}, plot);
  node("rect", {x: box.l, y: box.t, width: box.r - box.l, height: box.b - box.t}, clip);
  for (const [place, text] of ticksY(s)) {
    const y = box.b - (box.b - box.t) * place;
    node("line", {x1: box.l, x2: box.r, y1: y, y2: y, stroke: "var(--line)"}, plot);
    node("text", {x: box.l - 6, y: y + 4, "text-anchor": "end"}, plot, text);
  }
  for (const t of ticksX(s, steps))
    node("text", {x: X(t), y: box.b + 18, "text-anchor": "middle"}, plot, t);
  node("text", {x: (box.l + box.r) / 2, y: tall - 6, "text-anchor": "middle"}, plot, "iteration");
  const inside = node("g", {"clip-path": `url(#clip${panel})`}, plot);
  if (panel === 0 && one.burn && !hidden.has("unrolled")) {
    const end = X(one.burn[0]);
    node("rect", {x: box.l, y: box.t, width: Math.max(0, end - box.l), height: box.b - box.t,
      fill: "#E69F00", opacity: 0.16}, inside);
  }
  for (const c of curves)
    node("polyline", {points: c.points.map(p => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`)
      .join(" "), fill: "none", stroke: c.colour, "stroke-width": 2.4,
      "stroke-dasharray": c.dash}, inside);
  if (panel === 0 && one.burn && !hidden.has("unrolled"))
    node("circle", {cx: X(one.burn[1]), cy: Y(one.burn[2]), r: 5, fill: "#D55E00",
      stroke: "var(--back)"}, inside);
  const guide = node("line", {x1: -9, x2: -9, y1: box.t, y2: box.b, stroke: "currentColor",
    "stroke-dasharray": "2 3"}, plot);
  plot.onpointermove = event => hover(event, plot, wide, curves, X, guide);
  plot.onpointerleave = () => { get("hover").textContent = ""; };
}

// Show the values of all curves at the recorded iteration that is nearest to the pointer.
function hover(event, plot, wide, curves, X, guide) {
  const place = plot.getBoundingClientRect();
  const at = (event.clientX - place.left) * wide / place.width;
  const near = curves.filter(c => c.points.length).map(c => [c, c.points.reduce((a, b) =>
    Math.abs(X(b[0]) - at) < Math.abs(X(a[0]) - at) ? b : a)]);
  if (!near.length) return;
  const t = near.reduce((a, b) => Math.abs(X(b[1][0]) - at) < Math.abs(X(a[1][0]) - at) ? b : a)[1][0];
  const box = get("hover");
  box.textContent = [`iteration ${t}`, ...near.filter(([, p]) => p[0] === t)
    .map(([c, p]) => `${c.name}: ${(10 ** p[1]).toExponential(2)}`)].join("\n");
  for (const end of ["x1", "x2"]) guide.setAttribute(end, X(t));
  box.style.left = `${Math.max(0, Math.min(event.clientX + 14, innerWidth - 240))}px`;
  box.style.top = `${Math.min(event.clientY + 14, innerHeight - 24 * (near.length + 1))}px`;
}

function keys() {
  const legend = document.createElement("legend");
  legend.textContent = "Curves";
  get("keys").replaceChildren(legend, ...data.cases[chosen].curves.map(c => {
    const label = document.createElement("label"), tick = document.createElement("input");
    const sample = node("svg", {viewBox: "0 0 40 10", "aria-hidden": "true"});
    node("line", {x1: 0, x2: 40, y1: 5, y2: 5, stroke: c.colour, "stroke-width": 3,
      "stroke-dasharray": c.dash}, sample);
    tick.type = "checkbox";
    tick.checked = !hidden.has(c.name);
    tick.onchange = () => {
      hidden[tick.checked ? "delete" : "add"](c.name);
      show();
    };
    label.append(tick, sample, c.name);
    return label;
  }));
}

function show() {
  [0, 1].forEach(draw);
  [...get("beside").children].forEach((part, i) => part.classList.toggle("chosen", i === chosen));
}

if (data.cases.length) {
  get("case").replaceChildren(...data.cases.map((c, i) => new Option(c.label, i)));
  get("case").onchange = event => { chosen = Number(event.target.value); keys(); show(); };
  for (const id of ["logx", "logy"]) get(id).onchange = show;
  addEventListener("resize", show);
  // On paper nothing can be opened: everything is.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach(part => { part.open = true; });
    show();
  });
  addEventListener("afterprint", () => closed.forEach(part => { part.open = false; }));
  keys();
  show();
} else {
  get("figures").remove();
}
