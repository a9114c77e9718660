"""One HTML page that shows a study's dataset with a slider, without server or network."""

import dataclasses
import html
import importlib.resources
import json
import math
import string
from typing import TYPE_CHECKING, Any

import numpy as np

from iterdiff.study.catalog import UNROLLED_AND_IMPLICIT, load_study
from iterdiff.study.config import Study
from iterdiff.study.run import cases
from iterdiff.study.views.palette import BLACK, CYCLE, GREY
from iterdiff.study.views.verdicts import verdicts

if TYPE_CHECKING:
    import xarray

MAX_POINTS = 400
"""Largest number of points of a curve on the page."""

DOTTED, DASHED, SOLID = "2 5", "6 4", ""


def step_sizes(count: int = 25, steps: int = 600) -> Study:
    """Return gradient descent on the quadratic of the study ``curse``, at many step sizes.

    Parameters
    ----------
    count : int
        Number of step sizes, evenly spaced from 0.1/L to 1.99/L.
    steps : int
        Number of iterations of each run.
    """
    ratios = {f"{ratio:.3f}": float(f"{ratio:.3f}") for ratio in np.linspace(0.1, 1.99, count)}
    algorithms = {k: {"type": "GradientDescent", "step_size": f"{k}/L"} for k in ratios}
    study = load_study("curse", steps=steps, algorithms=algorithms, modes=UNROLLED_AND_IMPLICIT)
    labelled = tuple(dataclasses.replace(c, label=ratios[str(c.label)]) for c in study.cases)
    title = f"gradient descent, step size in units of 1/L: {study.title}"
    return dataclasses.replace(study, cases=labelled, axis="step_size", title=title)


class _Page(string.Template):
    """The page, in which ``@TITLE`` and ``@DATA`` are replaced."""

    delimiter = "@"


def page(data: "xarray.Dataset") -> str:
    """Return a dataset as one HTML page: a slider along its axis, curves and verdicts.

    Parameters
    ----------
    data : xarray.Dataset
        The dataset that `iterdiff.study.run.run` returns.
    """
    shown = [
        {"label": judged.label, "curves": _curves(case), "words": [str(v) for v in judged.verdicts]}
        for judged, (_, case) in zip(verdicts(data), cases(data), strict=True)
    ]
    content = json.dumps({"axis": data.attrs["axis"], "cases": shown}, allow_nan=False)
    for mark in "<>&":  # no text of the data can end the script or begin a tag
        content = content.replace(mark, f"\\u{ord(mark):04x}")
    template = importlib.resources.files("iterdiff.study.views").joinpath("explorer.html")
    return _Page(template.read_text(encoding="utf-8")).substitute(
        TITLE=html.escape(data.attrs["title"]), DATA=content
    )


def _curves(case: "xarray.Dataset") -> list[dict[str, Any]]:
    """Return the curves of a case: name, colour, dashes, and points (iteration, log10(error))."""
    shown = [
        (f"Jacobian, {mode}", CYCLE[i % len(CYCLE)], SOLID, case.jacobian_error.sel(mode=mode))
        for i, mode in enumerate(case["mode"].values)
    ]
    # Dotted, because the implicit derivative's error may lie on it.
    shown.append(("iterate", BLACK, DOTTED, case.iterate_error))
    if "bound" in case and "unrolled" in case["mode"].values:
        bound = case.bound.sel(mode="unrolled")
        shown.append(("bound by theory, unrolled", CYCLE[0], DASHED, bound))
    if "closed_form" in case:
        shown.append(("closed form", GREY, DASHED, case.closed_form))
    curves = []
    for name, colour, dash, values in shown:
        t, heights = values.iteration.values, values.values
        keep = np.unique(np.linspace(0, len(t) - 1, min(MAX_POINTS, len(t))).astype(int))
        points = [
            [int(t[i]), round(math.log10(heights[i]), 4)]
            for i in keep
            if np.isfinite(heights[i]) and heights[i] > 0
        ]
        curves.append({"name": name, "colour": colour, "dash": dash, "points": points})
    return curves
