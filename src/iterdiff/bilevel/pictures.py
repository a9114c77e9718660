"""The picture of an outer run: value and gradient with their error bars, over the inner work."""

from typing import TYPE_CHECKING, Any

import numpy as np

from iterdiff.bilevel.drivers import Minimized
from iterdiff.jaxtools.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#7F7F7F"
"""Of the palette of Okabe and Ito, which colour-blind readers can tell apart."""

BARS = {
    "loss": ("value_error", GREY),
    "gradient at the iterate": ("gradient_error", VERMILION),
    "gradient, corrected": ("gradient_uncertainty", BLUE),
}
"""The error bars that are drawn alone: their columns and colours."""

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def plot(result: Any) -> "Figure":
    """Draw value and projected gradient of an outer run, with their error bars.

    Filled points are thetas that were accepted, crosses those that were refused, and small points
    inner runs that went on. The last panel shows the error bars alone.

    Parameters
    ----------
    result : Minimized
        What `minimize` returned.

    Returns
    -------
    matplotlib.figure.Figure
        Three panels over the number of inner residuals evaluated.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the message names the extra.
    TypeError
        If `result` is not what `minimize` returns.
    """
    if not isinstance(result, Minimized):
        raise TypeError(f"`result` must be what iterdiff.bilevel.minimize returns, not {result!r}.")
    matplotlib = import_extra("matplotlib", "bilevel")
    pyplot = import_extra("matplotlib.pyplot", "bilevel")
    rows = result.log.arrays()
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(3, 1, figsize=(6.4, 6.6), sharex=True, layout="constrained")
        work = np.cumsum(rows["gradients"])
        _points(axes[0], work, rows, "value", "value_error")
        axes[0].set_ylabel("outer loss")
        _points(axes[1], work, rows, "gradient_norm", "gradient_uncertainty")
        axes[1].set_yscale("log")
        axes[1].set_ylabel("‖projected gradient‖")
        for label, (bar, color) in BARS.items():
            axes[2].plot(work, rows[bar], ".-", color=color, linewidth=0.8, label=label)
        axes[2].set_yscale("log")
        axes[2].set_ylabel("error bars")
        axes[2].set_xlabel("inner residuals evaluated")
        for axis in axes[::2]:
            axis.legend(fontsize=8.5)
        title = f"{result.status.name} after {result.iterations} iterations"
        axes[0].set_title(title, loc="left", fontsize=10)
    return figure


def _points(axis: Any, work: np.ndarray, rows: dict, value: str, bar: str) -> None:
    """Draw the values of one column with their bars, by what came of them."""
    accepted = rows["accepted"]
    refused = np.char.startswith(rows["verdict"], "refused")
    kinds = (
        ("accepted", accepted, {"marker": "o", "ms": 5, "color": BLUE}),
        ("refused", refused, {"marker": "x", "ms": 6, "color": VERMILION}),
        ("inner run went on", ~accepted & ~refused, {"marker": ".", "ms": 4, "color": GREY}),
    )
    axis.plot(work[accepted], rows[value][accepted], color=BLUE, linewidth=1.0)
    for label, chosen, look in kinds:
        height = np.where(np.isfinite(rows[bar]), rows[bar], 0.0)
        bars = (rows[value][chosen], height[chosen])
        axis.errorbar(work[chosen], *bars, linestyle="", capsize=2, label=label, **look)
