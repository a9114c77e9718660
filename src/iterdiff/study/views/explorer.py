"""One page to look at a study's dataset with a slider: no server, nothing loaded from elsewhere."""

import dataclasses
import html
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from iterdiff.study.catalog import load_study
from iterdiff.study.config import Overrides, Study
from iterdiff.study.grid import cases
from iterdiff.study.report import verdicts

if TYPE_CHECKING:
    import xarray

POINTS = 400
"""How many points of a curve the page keeps, at most."""

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")


def step_sizes(count: int = 25, steps: int = 600) -> Study:
    """Return gradient descent on the quadratic of the study ``curse``, at many step sizes.

    Parameters
    ----------
    count : int
        How many, evenly from 0.1/L to 1.99/L.
    steps : int
        Iterations of each.
    """
    ratios = {f"{ratio:.3f}": float(f"{ratio:.3f}") for ratio in np.linspace(0.1, 1.99, count)}
    algorithms = {k: {"type": "GradientDescent", "step_size": f"{k}/L"} for k in ratios}
    modes = {"unrolled": {"type": "Unrolled"}, "implicit": {"type": "Implicit"}}
    study = load_study("curse", Overrides(steps=steps, algorithms=algorithms, modes=modes))
    named = tuple(dataclasses.replace(c, label=ratios[str(c.label)]) for c in study.cases)
    title = f"gradient descent, step size in units of 1/L: {study.title}"
    return dataclasses.replace(study, cases=named, axis="step_size", title=title)


def page(data: "xarray.Dataset") -> str:
    """Return a dataset as one HTML page: a slider along its axis, curves and verdicts.

    Parameters
    ----------
    data : xarray.Dataset
        As `iterdiff.study.grid.run` returns it.
    """
    lines, found = verdicts(data), []
    starts = [i for i, line in enumerate(lines) if not line.startswith(" ")]
    for (label, case), first, last in zip(
        cases(data), starts, [*starts[1:], len(lines)], strict=True
    ):
        words = [line.strip() for line in lines[first + 1 : last]]
        found.append({"label": label, "curves": _curves(case), "words": words})
    content = json.dumps({"axis": data.attrs["axis"], "cases": found}, allow_nan=False)
    title = html.escape(data.attrs["title"])
    # "</" would end the script early.
    return TEMPLATE.replace("@TITLE@", title).replace("@DATA@", content.replace("</", "<\\/"))


def _curves(case: "xarray.Dataset") -> list[dict[str, Any]]:
    """Return every curve of a case: name, colour, and points (iteration, log10 of the error)."""
    shown = [
        (f"Jacobian, {mode}", COLOURS[i % len(COLOURS)], "", case.jacobian_error.sel(mode=mode))
        for i, mode in enumerate(case["mode"].values)
    ]
    # Dotted, as it may lie on the implicit derivative's.
    shown.append(("iterate", "#000000", "2 5", case.iterate_error))
    if "bound" in case and "unrolled" in case["mode"].values:
        bound = case.bound.sel(mode="unrolled")
        shown.append(("bound by theory, unrolled", COLOURS[0], "6 4", bound))
    if "closed_form" in case:
        shown.append(("closed form", "#7F7F7F", "6 4", case.closed_form))
    curves = []
    for name, colour, dash, values in shown:
        t, heights = values.iteration.values, values.values
        keep = np.unique(np.linspace(0, len(t) - 1, min(POINTS, len(t))).astype(int))
        points = [
            [int(t[i]), round(math.log10(heights[i]), 4)]
            for i in keep
            if np.isfinite(heights[i]) and heights[i] > 0
        ]
        curves.append({"name": name, "colour": colour, "dash": dash, "points": points})
    return curves


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>iterdiff: @TITLE@</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
input { width: 100% } svg { width: 100%; height: auto } text { font-size: 13px }
.key { display: inline-block; margin-right: 1.2rem; white-space: nowrap }
.key i { display: inline-block; width: 2rem; border-top: 3px solid; margin-right: .4rem;
  vertical-align: middle }
</style></head><body>
<h1>@TITLE@</h1>
<label>Choose: <output id="label"></output><input type="range" id="slider" min="0" step="1"></label>
<svg id="plot" viewBox="0 0 760 420" role="img" aria-label="errors over iterations"></svg>
<p id="keys"></p><ul id="words"></ul>
<p>Absolute errors on a logarithmic scale: of the Jacobian (Frobenius norm) in each mode, and of the
iterate (Euclidean norm). The scale is the same for every position of the slider.</p>
<script>
const data = @DATA@;
const get = id => document.getElementById(id), box = {l: 60, r: 740, t: 10, b: 380};
const all = data.cases.flatMap(c => c.curves.flatMap(k => k.points));
const right = Math.max(...all.map(p => p[0]));
const top10 = Math.ceil(Math.min(12, Math.max(...all.map(p => p[1]))));
const low10 = Math.floor(Math.max(top10 - 12, Math.min(...all.map(p => p[1]))));
const x = t => box.l + (box.r - box.l) * t / right;
const y = v => box.b - (box.b - box.t) * (v - low10) / (top10 - low10);
function grid() {
  let out = "";
  for (let v = low10; v <= top10; v += Math.max(1, Math.round((top10 - low10) / 8)))
    out += `<line x1="${box.l}" x2="${box.r}" y1="${y(v)}" y2="${y(v)}" stroke="#ddd"/>` +
      `<text x="${box.l - 8}" y="${y(v) + 4}" text-anchor="end">1e${v}</text>`;
  for (let i = 0; i <= 5; i++) {
    const t = Math.round(right * i / 5);
    out += `<text x="${x(t)}" y="${box.b + 18}" text-anchor="middle">${t}</text>`;
  }
  return out + `<text x="${(box.l + box.r) / 2}" y="${box.b + 36}" text-anchor="middle">` +
    `iteration</text>`;
}
function show(i) {
  const chosen = data.cases[i];
  get("label").textContent = chosen.label;
  get("plot").innerHTML = `<clipPath id="clip"><rect x="${box.l}" y="${box.t}" ` +
    `width="${box.r - box.l}" height="${box.b - box.t}"/></clipPath>` + grid() +
    chosen.curves.map(k => `<polyline clip-path="url(#clip)" fill="none" stroke="${k.colour}" ` +
      `stroke-width="2.5" stroke-dasharray="${k.dash}" points="` +
      k.points.map(p => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ") + `"/>`).join("");
  get("keys").replaceChildren(...chosen.curves.map(k => {
    const key = document.createElement("span"), line = document.createElement("i");
    key.className = "key";
    line.style.borderTopColor = k.colour;
    line.style.borderTopStyle = k.dash ? "dashed" : "solid";
    key.append(line, k.name);
    return key;
  }));
  get("words").replaceChildren(...chosen.words.map(w => {
    const item = document.createElement("li");
    item.textContent = w;
    return item;
  }));
}
get("slider").max = data.cases.length - 1;
get("slider").value = Math.floor((data.cases.length - 1) / 2);
get("slider").oninput = event => show(Number(event.target.value));
show(Number(get("slider").value));
</script></body></html>
"""
