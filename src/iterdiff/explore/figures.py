"""The explorer's figures: pure functions from a study and its dataset to Plotly's data."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from iterdiff.explore.charts import (
    Figure,
    band,
    curve,
    error_curve,
    escaped,
    heading,
    layout,
    log_axis,
    look,
    panels,
    upright,
)
from iterdiff.explore.plane import Paths, paths
from iterdiff.explore.polynomials import polynomials
from iterdiff.study.config import Study
from iterdiff.study.run import cases
from iterdiff.study.views.palette import BLUE, GREEN, GREY, ORANGE, VERMILION
from iterdiff.study.views.summary import best_start, decay, divergence, factor, jacobian_of

if TYPE_CHECKING:
    import xarray

PANELS_PX, ENTRY_PX = 500, 20
"""Height of the two panels of errors, and of a line of the legend below them."""

THICK = {"color": "rgba(127,127,127,0.45)", "width": 7}
"""The closed form, which lies under the measurement."""

ESTIMATES = "estimated without the solution"
"""The name of the errors that `derivative_error` estimates; hidden until they are asked for."""

BOUND_WIDTH = 1.2
"""Width of theory's bounds, in pixels."""


def figures(study: Study, data: "xarray.Dataset") -> Iterator[tuple[str, Figure]]:
    """Yield all figures of a study of one case with their names, the quickest first.

    Parameters
    ----------
    study : Study
        What ran.
    data : xarray.Dataset
        What `iterdiff.study.run.run` returned.
    """
    [(label, case)] = cases(data)
    yield from of_case(label, case)
    polynomial = polynomials(study.cases[0])
    if polynomial is not None:
        yield "polynomials", polynomial
    yield "plane", plane(paths(study))


def of_case(label: str, case: "xarray.Dataset") -> Iterator[tuple[str, Figure]]:
    """Yield the figures that the dataset of one case allows, with their names."""
    yield "convergence", convergence(label, case)
    if "exponential_factor" in case and np.isfinite(case.exponential_factor.values).all():
        yield "explanation", explanation(case)
    if "late_start_error" in case and np.isfinite(case.late_start_error.values).any():
        yield "late-start", late_start(case)


def convergence(label: str, case: "xarray.Dataset") -> Figure:
    """Draw the errors of every Jacobian above those of the iterate and the objective."""
    t, away = case.iteration.values, divergence(case) is not None
    above = _jacobians(case, t)
    below = [error_curve("iterate ‖x − x*‖", t, case.iterate_error, _plain("solid"), yaxis="y2")]
    if "objective_error" in case:
        line = _plain("dot")
        below.append(error_curve("objective f − f*", t, case.objective_error, line, yaxis="y2"))
    marks, shapes = _burn_in(case)
    top, bottom = panels(2)
    axes = {
        "xaxis": {"title": {"text": "iteration"}, "anchor": "y2", "range": [0, int(t[-1])]},
        "yaxis": {**log_axis("Jacobian error ‖J − J*‖", above, from_below=away), "domain": top},
        "yaxis2": {**log_axis("suboptimality", below, from_below=away), "domain": bottom},
    }
    title, drawn = f"{escaped(label)}: absolute errors", above + marks + below
    entries = sum(c.get("showlegend", True) for c in drawn)
    height = PANELS_PX + ENTRY_PX * entries
    return {"data": drawn, "layout": layout(title, height, shapes=shapes, **axes)}


def _plain(dash: str) -> dict[str, Any]:
    return {"color": GREY, "width": 2.5, "dash": dash}


def _jacobians(case: "xarray.Dataset", t: np.ndarray) -> list[dict]:
    """Return the closed form, the error of every mode, its bound and its estimate."""
    drawn = []
    if "closed_form" in case and np.isfinite(case.closed_form.values).any():
        drawn.append(error_curve("closed form (unrolled)", t, case.closed_form, THICK))
    for number, mode in enumerate(map(str, case["mode"].values)):
        line = look(number)
        drawn.append(error_curve(mode, t, case.jacobian_error.sel(mode=mode), line))
        if "bound" in case and np.isfinite(case.bound.sel(mode=mode)).any():
            thin = {**line, "width": BOUND_WIDTH, "dash": "dash"}
            drawn.append(error_curve(f"bound, {mode}", t, case.bound.sel(mode=mode), thin))
        trusted = "jacobian_error_estimate" in case and case.estimate_trusted.sel(mode=mode).values
        if np.any(trusted):
            estimate = np.where(trusted, case.jacobian_error_estimate.sel(mode=mode), np.nan)
            dots = {
                "mode": "markers",
                "marker": {"color": line["color"], "size": 4, "opacity": 0.5},
            }
            first = not any(c.get("legendgroup") == ESTIMATES for c in drawn)
            hidden = {"visible": "legendonly", "legendgroup": ESTIMATES, "showlegend": first}
            drawn.append(error_curve(ESTIMATES, t, estimate, line, **dots, **hidden))
    return drawn


def _burn_in(case: "xarray.Dataset") -> tuple[list[dict], list[dict]]:
    """Return the mark of the unrolled derivative's peak, and the shade of its burn-in."""
    if "unrolled" not in case["mode"].values:
        return [], []
    found = jacobian_of(case, "unrolled")
    if not found.has_burn_in or not math.isfinite(found.peak):
        return [], []
    end = int(case.iteration[-1]) if found.burn_in_end is None else found.burn_in_end
    words = f"peak {factor(found.growth)} at {found.peak_iteration}"
    peak = {
        "type": "scatter",
        "mode": "markers+text",
        "name": "peak of the burn-in (shaded)",
        "x": [found.peak_iteration],
        "y": [found.peak],
        "text": [words],
        "textposition": "top right",
        "marker": {"color": VERMILION, "size": 10, "line": {"color": "white", "width": 1}},
        "hovertemplate": f"{words}<extra></extra>",
    }
    return [peak], [band(0.0, float(end), ORANGE)]


def explanation(case: "xarray.Dataset") -> Figure:
    """Draw the unrolled error as the product of a linear and an exponential factor."""
    t, peak = case.iteration.values, -1 / math.log(decay(case))
    product = case.linear_factor * case.exponential_factor
    linear = {"xaxis": "x", "yaxis": "y"}
    exponential = {"xaxis": "x2", "yaxis": "y2"}
    last = {"xaxis": "x3", "yaxis": "y3"}
    measured = case.jacobian_error.sel(mode="unrolled") if "unrolled" in case["mode"] else None
    drawn = [
        curve("linear: η t |x₀|", t, case.linear_factor, {"color": BLUE}, **linear),
        curve("exponential: (1 − ηθ)^(t−1)", t, case.exponential_factor, _green(), **exponential),
        curve("product", t, product, THICK, **last),
    ]
    if measured is not None:
        drawn.append(curve("measured error", t, measured, {"color": VERMILION}, **last))
    axes, names = {}, []
    for number, name in enumerate(("linear", "× exponential", "= error"), 1):
        key = "" if number == 1 else str(number)
        left = (number - 1) * 0.36
        x = {"title": {"text": "iteration t"}, "domain": [left, left + 0.28], "anchor": f"y{key}"}
        axes[f"xaxis{key}"] = x
        axes[f"yaxis{key}"] = {"anchor": f"x{key}", "rangemode": "tozero"}
        names.append(heading(name, f"x{key}", f"y{key}"))
    line = {**upright(peak), "xref": "x3", "yref": "y3 domain"}
    title = f"Why it first gets worse: peak at {peak:.1f}"
    return {"data": drawn, "layout": layout(title, 380, shapes=[line], annotations=names, **axes)}


def _green() -> dict[str, Any]:
    return {"color": GREEN, "dash": "dash"}


def late_start(case: "xarray.Dataset") -> Figure:
    """Draw the error at the end over the number of leading steps that are left out."""
    total = int(case.total[-1])
    errors = case.late_start_error.sel(total=total).dropna("start")
    k, best = errors.start.values, best_start(case, total)
    drawn = [error_curve(f"T = {total}", k, errors, {"color": BLUE, "width": 2.5})]
    height = float(errors.sel(start=best))
    if height > 0:
        mark = {"type": "scatter", "mode": "markers", "marker": {"size": 10, "color": VERMILION}}
        drawn.append({**mark, "name": f"best: leave out {best}", "x": [best], "y": [height]})
    predicted = float(case.late_start_predicted)
    shapes = [upright(predicted)] if predicted <= total else []
    x = {"title": {"text": "K: leading steps not differentiated"}}
    axes = {"xaxis": x, "yaxis": log_axis("Jacobian error after T steps", drawn)}
    title = "Late starts (dotted: predicted)" if shapes else "Late starts"
    return {"data": drawn, "layout": layout(title, 380, shapes=shapes, **axes)}


def plane(found: Paths) -> Figure:
    """Draw the paths of (x, dx/dθ): every mode's derivative against the iterate."""
    drawn = []
    for number, (mode, slopes) in enumerate(found.slopes.items()):
        t = np.arange(len(found.x))
        kept = np.isfinite(found.x) & np.isfinite(slopes)
        points = curve(mode, found.x[kept], slopes[kept], look(number), mode="lines+markers")
        points["marker"] = {"size": 4}
        ends = np.unique(np.linspace(0, kept.sum() - 1, len(points["x"])).astype(int))
        points["customdata"] = t[kept][ends].tolist()
        hover = "%{fullData.name}, iteration %{customdata}<br>x = %{x:.5g}, slope %{y:.5g}"
        drawn.append({**points, "hovertemplate": f"{hover}<extra></extra>"})
    star = {"symbol": "star", "size": 14, "color": GREY, "line": {"width": 1, "color": "white"}}
    x, slope = found.solution
    target = {"type": "scatter", "mode": "markers", "name": "solution", "x": [x], "y": [slope]}
    names = f"x, entry {found.unknown}", f"dx/dθ, parameter {found.parameter}"
    if found.single:
        names = "x", "dx/dθ"
    axes = {"xaxis": {"title": {"text": names[0]}}, "yaxis": {"title": {"text": names[1]}}}
    title = "The iterate and its derivative, step by step"
    drawn.append({**target, "marker": star})
    return {"data": drawn, "layout": layout(title, 480, **axes)}
