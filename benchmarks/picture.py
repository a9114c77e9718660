"""One picture of a run: every figure over its target, and the growth curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import OURS
from benchmarks.sections import Curve
from benchmarks.targets import Figure, quantity

MET, MISSED, OTHERS = "#1b7837", "#b2182b", "0.55"
OURS_COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
SMALLEST = 1e-3
"""Of what is drawn: figures far below their target are all as good."""


def draw(figures: Sequence[Figure], curves: Sequence[Curve], path: Path) -> None:
    """Draw figures over targets on the left, and how times grow on the right."""
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(curve.axis for curve in curves))
    height = max(6.0, 0.34 * len(figures), 3.6 * len(axes))
    fig = plt.figure(figsize=(23 if axes and figures else 12, height), layout="constrained")
    columns = (fig.add_gridspec(1, 2, width_ratios=(1, 1)) if axes and figures else None) or [
        fig.add_gridspec(1, 1)[0]
    ] * 2
    if figures:
        draw_figures(fig.add_subplot(columns[0]), figures)
    if axes:
        inner = columns[1].subgridspec(len(axes), 1)
        for place, axis in zip(inner, axes, strict=True):
            draw_curves(fig.add_subplot(place), [c for c in curves if c.axis == axis])
    fig.savefig(path, dpi=100)
    plt.close(fig)


def draw_figures(ax: Any, figures: Sequence[Figure]) -> None:
    """Draw each figure over its target: left of the line is met."""
    labels = []
    for place, figure in enumerate(figures):
        limit = figure.target.limit
        ours = max(figure.ours / limit, SMALLEST)
        colour = MET if figure.met else MISSED
        ax.plot([min(1, ours), max(1, ours)], [place, place], color=colour, alpha=0.35, lw=3)
        ax.plot(ours, place, "o", color=colour, ms=8, zorder=3)
        if not math.isnan(figure.others):
            other = max(figure.others / limit, SMALLEST)
            ax.plot(other, place, "D", color=OTHERS, ms=6, zorder=2)
        labels.append(f"{figure.target.work}: {figure.target.wording}".replace("`", ""))
        text = quantity(figure.ours, figure.target.unit)
        ax.annotate(text, (ours, place), (9, 5), textcoords="offset points", color=colour, size=8)
    ax.axvline(1, color="black", lw=1)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.margins(x=0.12, y=0.02)
    ax.grid(axis="x", alpha=0.3)
    ax.set_title("figure over target: left of the line is met")
    made = [
        ax.plot([], [], "o", color=MET, label=f"{OURS}, met")[0],
        ax.plot([], [], "o", color=MISSED, label=f"{OURS}, not met")[0],
        ax.plot([], [], "D", color=OTHERS, label="best peer or hand-written variant")[0],
    ]
    ax.legend(handles=made, loc="upper center", bbox_to_anchor=(0.5, -0.03), ncols=3, fontsize=9)


def draw_curves(ax: Any, curves: Sequence[Curve]) -> None:
    """Draw how times grow: ours in colour, the rest in grey."""
    ours = [curve for curve in curves if curve.name.startswith(OURS)]
    others = [curve for curve in curves if not curve.name.startswith(OURS)]
    for place, curve in enumerate(others):
        style = ("-", "--", ":", "-.")[place % 4]
        marker = "sv^<>P*X"[place % 8]
        ax.plot(
            curve.sizes,
            curve.costs,
            style,
            color="0.5",
            marker=marker,
            ms=4,
            lw=1,
            label=_label(curve),
        )
    for place, curve in enumerate(ours):
        colour = OURS_COLOURS[place % len(OURS_COLOURS)]
        ax.plot(curve.sizes, curve.costs, "-o", color=colour, ms=4, lw=1.8, label=_label(curve))
    ax.set(xscale="log", yscale="log", xlabel=curves[0].axis, ylabel="seconds")
    ax.set_title(f"time against {curves[0].axis}")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8)


def _label(curve: Curve) -> str:
    return f"{curve.name}  ∝ {curve.axis}^{curve.exponent:.2f}"
