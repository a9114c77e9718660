"""Figures of a study's dataset: how the iterate and its derivatives converge."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.run import cases
from iterdiff.study.views.curves import curve, finish, legend, line, looks, same_limits
from iterdiff.study.views.palette import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILION
from iterdiff.study.views.summary import (
    Convergence,
    best_start,
    decay,
    divergence,
    factor,
    jacobian_of,
)

if TYPE_CHECKING:
    import xarray

BOUND = {"linestyle": "--", "linewidth": 1.0}
"""Style of theoretical curves; measured curves are solid."""

ESTIMATE = {"linestyle": ":", "linewidth": 1.2, "color": BLACK}
"""Style of errors that are estimated without the solution."""

STYLE: Mapping[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.titlesize": 11,
    "font.size": 9.5,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "iterdiff",
}
PAPER = {"font.size": 7.5, "axes.titlesize": 8, "figure.titlesize": 8.5, "lines.linewidth": 1.2}
PAPER_WIDTH = 6.9
"""Width of a two-column page, in inches."""

MAX_COLUMNS = 3
"""Largest number of panels side by side."""


def save_figures(data: "xarray.Dataset", folder: Path, *, paper: bool = False) -> list[str]:
    """Write all figures of a dataset as PNG and SVG.

    Parameters
    ----------
    data : xarray.Dataset
        The dataset that `iterdiff.study.run.run` returns.
    folder : Path
        An existing folder.
    paper : bool
        Whether to write PDF as well, in the width of a two-column page.

    Returns
    -------
    list of str
        The names of the files.
    """
    matplotlib = import_extra("matplotlib", "study")
    names = []
    for suffixes, extra in ((("png", "svg"), {}), (("pdf",), PAPER))[: 2 if paper else 1]:
        with matplotlib.rc_context({**STYLE, **extra}):
            for name, figure in figures(data, paper=bool(extra)).items():
                for suffix in suffixes:
                    date = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
                    file = f"{name}.{suffix}"
                    figure.savefig(folder / file, dpi=150, metadata=date[suffix])
                    names.append(file)
    return names


def figures(data: "xarray.Dataset", *, paper: bool = False) -> dict[str, Any]:
    """Return the figures (matplotlib's) of a dataset, by name."""
    drawn = {"convergence": convergence(data, paper=paper)}
    if data.sizes.get("algorithm", 1) > 1 and "unrolled" in data["mode"].values:
        drawn["comparison"] = comparison(data, paper=paper)
    if "late_start_error" in data:
        drawn["late-start"] = late_start(data, paper=paper)
    if "exponential_factor" in data:
        drawn["explanation"] = explanation(data, paper=paper)
    return drawn


def convergence(data: "xarray.Dataset", *, paper: bool = False) -> Any:
    """Draw a column of panels for each case: derivatives above, iterates below."""
    labels = list(cases(data))
    columns = min(MAX_COLUMNS, len(labels))
    bands = math.ceil(len(labels) / columns)
    size = (columns * 4.0 + 0.4, bands * 5.2 + 0.9)
    figure = _figure(size, paper)
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for i, (label, case) in enumerate(labels):
        above, below = (axes[2 * (i // columns) + k, i % columns] for k in (0, 1))
        _draw_modes(above, case)
        above.set_title(_named(label, case))
        _draw_suboptimality(below, case)
        below.set_xlabel("iteration")
        if i % columns == 0:
            above.set_ylabel("Jacobian error, absolute\n" r"$\|J_t - J^*\|_F$")
            below.set_ylabel("suboptimality, absolute")
    for i in range(len(labels), bands * columns):
        axes[2 * (i // columns), i % columns].set_axis_off()
        axes[2 * (i // columns) + 1, i % columns].set_axis_off()
    apart = [divergence(case) is not None for _, case in labels]
    for row in range(2 * bands):
        of_row = apart[row // 2 * columns :][:columns]
        same_limits(axes[row, : len(of_row)], of_row)
    figure.suptitle(_wrapped(_literal(data.attrs["title"]), columns, paper), x=0.01, ha="left")
    legend(figure, axes)
    return figure


def comparison(data: "xarray.Dataset", *, paper: bool = False) -> Any:
    """Draw the function's suboptimality beside the unrolled Jacobian error, for all cases."""
    figure = _figure((10.0, 5.0), paper)
    left, right = figure.subplots(1, 2)
    name = "objective_error" if "objective_error" in data else "iterate_error"
    kept = [divergence(case) is None for _, case in cases(data)]
    for (label, case), look, shown in zip(cases(data), looks(), kept, strict=False):
        scaled = {"sets_limits": shown or not any(kept), "log_x": True}
        line(left, case[name], label=_named(label, case), **scaled, **look)
        found = jacobian_of(case, "unrolled")
        error = case.jacobian_error.sel(mode="unrolled")
        line(right, error, **scaled, **look)
        _bound(right, case, "unrolled", look["color"], sets_limits=scaled["sets_limits"])
        if found.has_burn_in and np.isfinite(found.peak) and scaled["sets_limits"]:
            above = error.where(error > found.start).fillna(found.start)
            right.fill_between(
                error.iteration, found.start, above, color=look["color"], alpha=0.13, linewidth=0
            )
            label = "burn-in: above its start"
            right.fill_between([], [], color=GREY, alpha=0.25, linewidth=0, label=label)
    left.set_title("the function" if name == "objective_error" else "the iterate")
    left.set_ylabel("suboptimality, absolute\n" + _symbol(name))
    right.set_title("its unrolled derivative")
    right.set_ylabel("Jacobian error, absolute\n" r"$\|J_t - J^*\|_F$")
    for axes in (left, right):
        axes.set_xlabel("iteration")
        finish(axes, int(data.steps.max()))
        # A log axis shows short and long burn-ins; powers of t are straight lines.
        axes.set_xscale("log")
        axes.set_xlim(int(data.every.min()), int(data.steps.max()))
    figure.suptitle(_wrapped(_literal(data.attrs["title"]), 2, paper), x=0.01, ha="left")
    legend(figure, np.array([[left, right]]))
    return figure


def late_start(data: "xarray.Dataset", *, paper: bool = False) -> Any:
    """Draw the error of late starts over the number of skipped steps, and the predicted best."""
    labels = [(label, case) for label, case in cases(data) if "late_start_error" in case]
    columns = min(MAX_COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = _figure((columns * 4.0 + 0.4, rows * 3.0 + 0.9), paper)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel, (label, case) in zip(axes.flat, labels, strict=False):
        _draw_late_starts(panel, case)
        panel.set_title(_named(label, case))
    for panel in axes.flat[len(labels) :]:
        panel.set_axis_off()
    for panel in axes[-1]:
        panel.set_xlabel("K: leading steps not differentiated")
    for panel in axes[:, 0]:
        panel.set_ylabel("Jacobian error, absolute\n" r"$\|J_{T,K} - J^*\|_F$")
    figure.suptitle(_wrapped(_literal(data.attrs["title"]), columns, paper), x=0.01, ha="left")
    legend(figure, axes)
    return figure


def _draw_late_starts(axes: Any, case: "xarray.Dataset") -> None:
    errors, last = case.late_start_error, float(case.start[-1])
    norm, shown = float(case.reference_norm), errors.values[np.isfinite(errors) & (errors > 0)]
    for total, colour in zip(errors.total.values.tolist(), (SKY, BLUE, BLACK), strict=False):
        row = errors.sel(total=total)
        row = row.where(np.isfinite(row) & (row > 0))
        look = {"color": colour, "linewidth": 1.1, "label": f"T = {total}"}
        curve(axes, row.start.values, row.values, **look)
    for total in errors.total.values.tolist():
        best = best_start(case, total)
        dot = {"color": VERMILION, "markeredgecolor": "white", "markersize": 7, "zorder": 5}
        at = errors.sel(total=total, start=best)
        at = float(at.where(np.isfinite(at) & (at > 0)))
        axes.plot([best], [at], "o", label="first best K", clip_on=False, **dot)
    predicted = float(case.late_start_predicted)
    if predicted <= last:
        look = {**BOUND, "linewidth": 1.5, "color": VERMILION, "label": "best K by theory"}
        axes.axvline(predicted, **look)
    if norm > 0:
        axes.axhline(norm, color=GREY, linestyle=":", label=r"no derivative: $\|J^*\|_F$")
    axes.set_xlim(-0.01 * last, last)
    if shown.size:
        axes.set_yscale("log")
        axes.set_ylim(max(shown.min(), shown.max() * 1e-16) / 3, shown.max() * 3)


def explanation(data: "xarray.Dataset", *, paper: bool = False) -> Any:
    """Draw the unrolled error as the product of a linear and an exponential factor."""
    case = next(c for _, c in cases(data) if np.isfinite(c.exponential_factor.values).all())
    t = case.iteration.values
    figure = _figure((10.0, 3.4), paper)
    linear, exponential, product = figure.subplots(1, 3)
    linear.plot(t, case.linear_factor, color=BLUE)
    linear.set_title(r"linear: $\eta\, t\, |x_0|$")
    linear.set_ylabel("factor")
    exponential.plot(t, case.exponential_factor, color=GREEN)
    exponential.set_title(r"$\times$ exponential: $(1 - \eta\theta)^{t-1}$")
    product.plot(
        t,
        case.linear_factor * case.exponential_factor,
        color=BLACK,
        linewidth=4,
        alpha=0.3,
        label="product",
    )
    product.plot(t, case.jacobian_error.sel(mode="unrolled"), color=VERMILION, label="measured")
    peak = -1 / math.log(decay(case))
    height = float(np.interp(peak, t, case.jacobian_error.sel(mode="unrolled")))
    product.axvline(peak, color=GREY, linestyle=":", linewidth=1)
    product.annotate(
        f"peak at\n$-1/\\ln(1-\\eta\\theta)$ = {peak:.1f}",
        (peak, height * 0.05),
        xytext=(6, 0),
        textcoords="offset points",
    )
    product.set_title("= Jacobian error, absolute")
    product.set_ylabel(r"$\|J_t - J^*\|_F$")
    product.legend(loc="upper right")
    for axes in (linear, exponential, product):
        axes.set_xlabel("iteration t")
        axes.set_xlim(0, t[-1])
        axes.set_ylim(0, None)
    figure.suptitle(
        "Why the unrolled derivative gets worse before it gets better (b = 0)", x=0.01, ha="left"
    )
    return figure


def _draw_modes(axes: Any, case: "xarray.Dataset") -> None:
    for mode, look in zip(case["mode"].values, looks(), strict=False):
        error = case.jacobian_error.sel(mode=mode)
        if mode == "unrolled" and "closed_form" in case:
            line(
                axes, case.closed_form, color=BLACK, linewidth=4.5, alpha=0.25, label="closed form"
            )
        line(axes, error, label=_literal(str(mode)), **look)
        _bound(axes, case, str(mode), look["color"])
    _draw_estimates(axes, case)
    _draw_chains(axes, case)
    finish(axes, int(case.steps), from_below=divergence(case) is not None)
    if "unrolled" in case["mode"].values:
        _mark_burn_in(axes, case, jacobian_of(case, "unrolled"))


def _draw_estimates(axes: Any, case: "xarray.Dataset") -> None:
    """Draw the trusted estimates of the errors as dotted lines over the measured errors."""
    if not case.estimate_trusted.any():
        return
    shown = case.jacobian_error_estimate.where(case.estimate_trusted)
    for mode in case["mode"].values:
        line(axes, shown.sel(mode=mode), label="estimated error, where trusted", **ESTIMATE)


def _draw_chains(axes: Any, case: "xarray.Dataset") -> None:
    """Draw the mean of independent chains with the radius of its interval, and theory's rate."""
    if "radius" not in case:
        return
    line(axes, case.mean_error, color=GREEN, linewidth=1.2, label="mean of the chains")
    look = {"linestyle": ":", "linewidth": 1.2, "color": GREEN}
    line(axes, case.radius, label="radius of its 95 % interval", **look)
    if "rate" in case:
        line(axes, case.rate, color=BLACK, label="one chain by theory", **BOUND)


def _bound(
    axes: Any, case: "xarray.Dataset", mode: str, colour: str, *, sets_limits: bool = True
) -> None:
    """Draw the theoretical bound of a mode, if there is one, and name it in the legend."""
    if "bound" not in case or not np.isfinite(case.bound.sel(mode=mode)).any():
        return
    line(axes, case.bound.sel(mode=mode), sets_limits=sets_limits, color=colour, **BOUND)
    axes.plot([], [], color=GREY, label="bound by theory", **BOUND)


def _mark_burn_in(axes: Any, case: "xarray.Dataset", found: Convergence) -> None:
    """Shade the burn-in of the unrolled derivative and mark its peak."""
    if not found.has_burn_in or not np.isfinite(found.peak):
        return
    end = case.iteration.values[-1] if found.burn_in_end is None else found.burn_in_end
    axes.axvspan(0, end, color=ORANGE, alpha=0.15, linewidth=0, label="burn-in (unrolled)")
    axes.plot(
        [found.peak_iteration],
        [found.peak],
        "o",
        color=VERMILION,
        markersize=5,
        markeredgecolor="white",
        zorder=5,
    )
    text = f"peak {factor(found.growth)} at {found.peak_iteration}"
    axes.set_title(text, loc="right", color=VERMILION, fontsize="small")


def _draw_suboptimality(axes: Any, case: "xarray.Dataset") -> None:
    line(axes, case.iterate_error, color=BLACK, label=r"iterate $\|x_t - x^*\|$")
    if "objective_error" in case:
        line(
            axes,
            case.objective_error,
            color=GREY,
            label=r"objective $f(x_t) - f(x^*)$",
        )
    finish(axes, int(case.steps), from_below=divergence(case) is not None)


def _figure(size: tuple[float, float], paper: bool) -> Any:
    if paper:
        # On paper, letters are larger relative to the panels.
        size = (PAPER_WIDTH, 1.2 * size[1] * PAPER_WIDTH / size[0])
    return import_extra("matplotlib.figure", "study").Figure(figsize=size, layout="constrained")


def _symbol(name: str) -> str:
    return {
        "objective_error": r"$f(x_t, \theta) - f(x^*, \theta)$",
        "iterate_error": r"$\|x_t - x^*\|$",
    }[name]


def _named(label: str, case: "xarray.Dataset") -> str:
    """Return the label of a case, which says whether its run diverges."""
    return _literal(label) + ("" if divergence(case) is None else " (diverges)")


def _literal(text: str) -> str:
    """Return a user's text such that matplotlib does not read its dollars as formulas."""
    return text.replace("$", r"\$")


def _wrapped(title: str, columns: int, paper: bool) -> str:
    """Break a title into lines of similar length that fit the figure."""
    width = 95 if paper else 52 * columns
    lines = math.ceil(len(title) / width)
    return textwrap.fill(title, max(width // 2, math.ceil(len(title) / lines) + 8))
