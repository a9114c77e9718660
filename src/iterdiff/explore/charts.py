"""Parts of figures as plain data in the form of Plotly: curves, axes, marks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from iterdiff.study.views.curves import MAX_DECADES
from iterdiff.study.views.palette import CYCLE, GREY

Figure = dict[str, Any]
"""A figure: ``{"data": [...], "layout": {...}}``, as ``plotly.graph_objects.Figure`` takes it."""

MAX_POINTS = 1000
"""Largest number of points of a curve: more are not seen, and slow the browser down."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Line styles of modes, so that colour is not all that tells them apart."""

HEIGHT_PX = 620
"""Height of a figure of two panels."""

LEGEND_GAP_PX = 100
"""Distance from the lowest axis to the legend: the axis has numbers and a title."""


def look(number: int) -> dict[str, Any]:
    """Return colour and line style of the curve with this number."""
    return {"color": CYCLE[number % len(CYCLE)], "dash": DASHES[number % len(DASHES)], "width": 2.5}


def curve(name: str, x: np.ndarray, y: Any, line: dict[str, Any], **more: Any) -> dict:
    """Return a curve; values that a log axis cannot show are gaps.

    Parameters
    ----------
    name : str
        For the legend and the hover text.
    x, y : array of shape (n,)
        The points.
    line : dict
        Plotly's line.
    **more
        Further properties, for example the axes.
    """
    kept = np.unique(np.linspace(0, len(x) - 1, min(MAX_POINTS, len(x))).astype(int))
    heights = np.asarray(y, float)[kept]
    shown = [float(v) if np.isfinite(v) else None for v in heights]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escaped(name),
        "x": np.asarray(x)[kept].tolist(),
        "y": shown,
        "line": line,
        "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.4g}<extra></extra>",
        **more,
    }


def error_curve(name: str, x: np.ndarray, y: Any, line: dict, **more: Any) -> dict:
    """Return a curve of errors on a log axis: zeros are gaps, too."""
    positive = np.where(np.asarray(y, float) > 0, y, np.nan)
    return curve(name, x, positive, line, **more)


def escaped(text: str) -> str:
    """Return a user's text such that Plotly shows it literally: it reads some tags and entities."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def log_axis(title: str, curves: Iterable[dict], *, from_below: bool = False) -> dict[str, Any]:
    """Return an axis of errors that covers at most `MAX_DECADES`: the largest, or `from_below`."""
    values = [v for c in curves for v in c["y"] if v is not None and v > 0]
    axis: dict[str, Any] = {"type": "log", "title": {"text": title}, "exponentformat": "power"}
    if values:
        low, high = math.log10(min(values)), math.log10(max(values))
        if from_below:
            high = min(high, low + MAX_DECADES)
        low = max(low, high - MAX_DECADES)
        pad = 0.2 + 0.12 * (high - low)  # room for the words at a peak
        axis["range"] = [low - 0.3, high + pad]
    return axis


def layout(title: str, height: int = HEIGHT_PX, **more: Any) -> dict[str, Any]:
    """Return what all figures have in common; the height is in pixels."""
    return {
        "title": {"text": title, "x": 0, "font": {"size": 15}},
        "margin": {"l": 70, "r": 10, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": -LEGEND_GAP_PX / height, "yanchor": "top"},
        "hovermode": "closest",
        "height": height,
        **more,
    }


def band(low: float, high: float, colour: str, axis: str = "y") -> dict[str, Any]:
    """Return a shaded range of the horizontal axis, over the panel of a vertical axis."""
    return {
        "type": "rect",
        "xref": "x",
        "yref": f"{axis} domain",
        "x0": low,
        "x1": high,
        "y0": 0,
        "y1": 1,
        "fillcolor": colour,
        "opacity": 0.15,
        "line": {"width": 0},
        "layer": "below",
    }


def heading(text: str, x_axis: str, y_axis: str) -> dict[str, Any]:
    """Return a text at the upper left of a panel: beside it there is no room on a phone."""
    place = {"xref": f"{x_axis} domain", "yref": f"{y_axis} domain", "x": 0, "y": 1}
    anchor = {"xanchor": "left", "yanchor": "bottom", "showarrow": False}
    return {"text": text, **place, **anchor}


def upright(x: float, axis: str = "y") -> dict[str, Any]:
    """Return a dotted vertical line."""
    place = {"type": "line", "xref": "x", "yref": f"{axis} domain", "x0": x, "x1": x}
    return {**place, "y0": 0, "y1": 1, "line": {"color": GREY, "dash": "dot", "width": 1.5}}


def panels(count: int, gap: float = 0.09) -> Sequence[list[float]]:
    """Return the ranges of panels above each other, the first one at the top."""
    height = (1 - gap * (count - 1)) / count
    tops = [1 - i * (height + gap) for i in range(count)]
    return [[max(0.0, top - height), top] for top in tops]
