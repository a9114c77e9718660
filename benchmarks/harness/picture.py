"""Two pictures of a run: every figure over its target, and how times grow."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import OURS
from benchmarks.sections import Curve
from benchmarks.targets import Figure, quantity

MET, MISSED, OTHERS = "#1b7837", "#b2182b", "0.45"
OURS_COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
LOWEST, HIGHEST = 1e-2, 1e2
"""Of what is drawn, over the target: what is beyond is drawn at the edge, as a triangle."""
WIDTH = 7.0
"""In inches: as wide as the text of a page, on which letters then have their own size."""
SMALL = 8
WRAP = 34


def draw(figures: Sequence[Figure], curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Draw figures over targets, and how times grow; return the files that were written."""
    import matplotlib.pyplot as plt

    drawn = {}
    if figures:
        drawn["speed-targets.png"] = draw_figures(figures)
    if curves:
        drawn["speed-growth.png"] = draw_curves(curves)
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=180)
        plt.close(figure)
    return [folder / name for name in drawn]


def draw_figures(figures: Sequence[Figure]) -> Any:
    """Draw each figure over its target, work by work: left of the line is met."""
    import matplotlib.pyplot as plt

    works: dict[str, list[Figure]] = {}
    for figure in figures:
        works.setdefault(figure.target.work.replace("`", ""), []).append(figure)
    places, labels, headings, place = [], [], [], 0.0
    for work, among in works.items():
        headings.append((place, work))
        for figure in among:
            wording = textwrap.wrap(figure.target.wording.replace("`", ""), WRAP)
            place += 1 if len(wording) == 1 else 1.25
            places.append((place, figure))
            labels.append("\n".join(wording))
        place += 1.3
    fig, ax = plt.subplots(figsize=(WIDTH, 0.26 * place + 1.1), layout="constrained")
    for height, figure in places:
        _draw_figure(ax, height, figure)
    for height, work in headings:
        ax.annotate(
            work,
            (0, height),
            (-172, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            size=SMALL,
            weight="bold",
            va="center",
        )
    ax.axvline(1, color="black", lw=1, zorder=1)
    ax.set_yticks([height for height, _ in places], labels, fontsize=SMALL)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(place - 0.4, -0.8)
    ax.set(xscale="log", xlim=(LOWEST / 2, HIGHEST * 2))
    ax.set_xticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "target", "10 ×", "100 ×"])
    ax.tick_params(axis="x", labelsize=SMALL, top=True, labeltop=True)
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["left", "right"]].set_visible(False)
    ax.set_xlabel("figure over target: left of the line is met", fontsize=SMALL)
    made = [
        ax.plot([], [], "o", color=MET, label=f"{OURS}, met")[0],
        ax.plot([], [], "o", color=MISSED, label=f"{OURS}, not met")[0],
        ax.plot([], [], "D", color=OTHERS, ms=5, label="best peer or hand-written variant")[0],
        ax.plot([], [], "<", color="0.2", label=f"below {LOWEST:g}: cut off there")[0],
        ax.plot([], [], ">", color="0.2", label=f"above {HIGHEST:g}: cut off there")[0],
    ]
    fig.legend(handles=made, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return fig


def _draw_figure(ax: Any, place: float, figure: Figure) -> None:
    """Draw one figure and the best of the others; say ours in words, and what is cut off."""
    from matplotlib.patheffects import withStroke

    limit, unit = figure.target.limit, figure.target.unit
    colour = MET if figure.met else MISSED
    ours, marker = _within(figure.ours / limit, "o")
    ax.plot([1, ours], [place, place], color=colour, alpha=0.35, lw=3)
    ax.plot(ours, place, marker, color=colour, ms=7, zorder=3, clip_on=False)
    edge = [withStroke(linewidth=2.5, foreground="white")]
    look = {"textcoords": "offset points", "ha": "center", "size": SMALL, "path_effects": edge}
    ax.annotate(quantity(figure.ours, unit), (ours, place), (0, 5), color=colour, **look)
    if not math.isnan(figure.others):
        other, marker = _within(figure.others / limit, "D")
        ax.plot(other, place, marker, color=OTHERS, ms=5, zorder=2, clip_on=False)
        if marker != "D":
            text = quantity(figure.others, unit)
            ax.annotate(text, (other, place), (0, 5), color=OTHERS, **look)


def _within(ratio: float, marker: str) -> tuple[float, str]:
    """Return where a ratio is drawn, and its marker: a triangle if it is beyond the edge."""
    if ratio < LOWEST:
        return LOWEST, "<"
    return (HIGHEST, ">") if ratio > HIGHEST else (ratio, marker)


def draw_curves(curves: Sequence[Curve]) -> Any:
    """Draw how times grow, a panel for everything that grows: ours in colour, the rest in grey."""
    import matplotlib.pyplot as plt

    panels = {axis: [c for c in curves if c.axis == axis] for axis in {c.axis: 0 for c in curves}}
    heights = [max(2.2, 0.19 * len(panel) + 0.3) for panel in panels.values()]
    fig, axes = plt.subplots(
        len(panels),
        1,
        figsize=(WIDTH, sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for ax, panel in zip(axes[:, 0], panels.values(), strict=True):
        _draw_panel(ax, panel)
    return fig


def _draw_panel(ax: Any, curves: Sequence[Curve]) -> None:
    ours = [curve for curve in curves if curve.name.startswith(OURS)]
    others = [curve for curve in curves if not curve.name.startswith(OURS)]
    for place, curve in enumerate(others):
        style, marker = ("-", "--", ":", "-.")[place % 4], "sv^<>P*Xd"[place % 9]
        look = {"color": OTHERS, "marker": marker, "ms": 4, "lw": 0.9}
        ax.plot(curve.sizes, curve.costs, style, label=_label(curve), **look)
    for place, curve in enumerate(ours):
        colour = OURS_COLOURS[place % len(OURS_COLOURS)]
        ax.plot(curve.sizes, curve.costs, "-o", color=colour, ms=4, lw=1.6, label=_label(curve))
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel(curves[0].axis, fontsize=SMALL)
    ax.set_ylabel("seconds", fontsize=SMALL)
    ax.tick_params(labelsize=SMALL)
    ax.set_title(f"time against {curves[0].axis}", fontsize=9)
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), fontsize=SMALL - 0.5, frameon=False)


def _label(curve: Curve) -> str:
    power = "–" if math.isnan(curve.exponent) else f"{curve.exponent:.2f}"
    return f"{curve.name}  ∝ {curve.axis}^{power}"
