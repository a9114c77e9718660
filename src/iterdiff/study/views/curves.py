"""Curves of errors on a log axis: markers, bands of alternating values, limits, legends."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iterdiff.study.views.palette import CYCLE

if TYPE_CHECKING:
    import xarray

LOOKS = tuple(zip(CYCLE, ("o", "s", "^", "D", "v", "P"), strict=True))
"""Colour and marker of each mode or algorithm."""

MARKERS = 4
"""Number of markers on a curve with many records."""

MAX_DECADES = 10
"""Largest range of an axis of errors, in powers of ten."""

DOTTED_MAX_RECORDS = 15
"""Largest number of records of a curve that is drawn with a dot for each."""

BAND_WINDOW = 9
"""Number of neighbouring records that decide whether a curve alternates among them..."""

BAND_MIN_SHARE = 0.8
"""...which it does if its direction turns at this share of them..."""

BAND_MIN_WIDTH = 0.02
"""...and the mean jump from one to the next is at least this, in powers of ten."""

BAND_MIN_RECORDS = 60
"""Of shorter curves, all records can be told apart."""


def looks() -> Iterator[dict[str, Any]]:
    """Yield colours and markers forever; the markers of neighbouring curves do not overlap."""
    for i in itertools.count():
        colour, marker = LOOKS[i % len(LOOKS)]
        place = (i % len(LOOKS) + 0.5) / len(LOOKS)
        yield {"color": colour, "marker": marker, "markersize": 4.5, "place": place}


def line(
    axes: Any,
    values: "xarray.DataArray",
    *,
    place: float = 0.5,
    log_x: bool = False,
    sets_limits: bool = True,
    **look: Any,
) -> None:
    """Draw an error over iterations, without values that a log axis cannot show.

    Parameters
    ----------
    axes
        Matplotlib's.
    values : xarray.DataArray
        The errors, with the coordinate ``iteration``.
    place : float
        Where markers are, between 0 and 1 of the distance from one to the next.
    log_x : bool
        Whether the axis of iterations is logarithmic.
    sets_limits : bool
        Whether the axis of errors has to show the curve.
    **look
        Passed to ``axes.plot``.
    """
    shown = values.where(np.isfinite(values) & (values > 0))
    iterations, heights = shown.iteration.values, shown.values
    few = int(shown.count()) <= DOTTED_MAX_RECORDS
    before = axes.dataLim.frozen()
    if few and "linestyle" not in look:
        axes.plot(iterations, heights, **{"marker": "o", "markersize": 4.5, **look})
    else:
        every = _markers(iterations, place, log_x) if "marker" in look else None
        curve(axes, iterations, heights, markevery=every, **look)
    if not sets_limits:
        axes.dataLim.set(before)


def _markers(iterations: np.ndarray, place: float, log_x: bool) -> list[int]:
    """Return the records with markers: evenly spaced along the axis, whatever the curve does."""
    positions = np.log(np.maximum(iterations, 1)) if log_x else iterations.astype(float)
    wanted = positions[0] + (np.arange(MARKERS) + place) / MARKERS * (positions[-1] - positions[0])
    return sorted({int(np.argmin(np.abs(positions - at))) for at in wanted})


def curve(axes: Any, places: np.ndarray, heights: np.ndarray, **look: Any) -> None:
    """Draw a curve; where it alternates from record to record, draw the band of its envelopes.

    A line would fill the same area, with the weight of a line. NaN leaves a gap.
    """
    alternates = _alternates(heights)
    inside = alternates & np.roll(alternates, 1) & np.roll(alternates, -1)
    (drawn,) = axes.plot(places, np.where(inside, np.nan, heights), **look)
    if not alternates.any():
        return
    beside = np.stack([_shifted(heights, 1), heights, _shifted(heights, -1)])
    # A record and the mean of its neighbours are about the two envelopes.
    other = np.sqrt(np.where(np.isnan(beside[0]), beside[2], beside[0]) * beside[2])
    low, high = np.minimum(heights, other), np.maximum(heights, other)
    colour = drawn.get_color()
    shown = alternates & np.isfinite(low)
    axes.fill_between(places, low, high, where=shown, color=colour, alpha=0.3, linewidth=0)
    for edge in (low, high):
        axes.plot(places, np.where(shown, edge, np.nan), color=colour, linewidth=0.8)


def _shifted(values: np.ndarray, by: int) -> np.ndarray:
    """Return the values moved by one place; NaN at the end."""
    moved = np.roll(values, by)
    moved[0 if by > 0 else -1] = np.nan
    return moved


def _alternates(heights: np.ndarray) -> np.ndarray:
    """Return where the curve goes up and down from record to record."""
    if len(heights) < BAND_MIN_RECORDS:
        return np.zeros(len(heights), bool)
    with np.errstate(invalid="ignore"):
        jumps = np.diff(np.log10(heights))
    turns = np.zeros(len(heights))
    turns[1:-1] = jumps[1:] * jumps[:-1] < 0
    sizes = np.zeros(len(heights))
    sizes[1:] = np.nan_to_num(np.abs(jumps))
    window = np.ones(BAND_WINDOW) / BAND_WINDOW
    share, width = (np.convolve(values, window, "same") for values in (turns, sizes))
    return (share >= BAND_MIN_SHARE) & (width >= BAND_MIN_WIDTH)


def finish(axes: Any, steps: int, *, from_below: bool = False) -> None:
    """Set a log scale and limits that cover at most `MAX_DECADES`: the largest, or `from_below`."""
    axes.set_yscale("log")
    axes.set_xlim(0, steps)
    low, high = axes.dataLim.intervaly
    if np.isfinite([low, high]).all() and 0 < low <= high:
        if from_below:
            high = min(high, low * 10.0**MAX_DECADES)
        axes.set_ylim(max(low, high * 10.0**-MAX_DECADES) / 2, high * 2)


def same_limits(row: Any, apart: Sequence[bool]) -> None:
    """Give a row of panels the same scale, so that heights can be compared.

    Parameters
    ----------
    row : sequence of panels
        Matplotlib's.
    apart : sequence of bool
        The panels that keep their own scale, because their curves leave all others behind.
    """
    together = [axes for axes, own in zip(row, apart, strict=True) if not own and axes.has_data()]
    if not together:
        return
    low = min(axes.get_ylim()[0] for axes in together)
    high = max(axes.get_ylim()[1] for axes in together)
    for axes in together:
        axes.set_ylim(low, high)


def legend(figure: Any, axes: Any) -> None:
    """Put one legend for all panels below them, in as many columns as fit into the figure."""
    entries: dict[str, Any] = {}
    for panel in axes.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    for columns in range(max(2, int(figure.get_figwidth() // 1.9)), 0, -1):
        made = figure.legend(
            list(entries.values()), list(entries), loc="outside lower left", ncols=columns
        )
        if columns == 1 or made.get_window_extent().width <= figure.bbox.width:
            return
        made.remove()
