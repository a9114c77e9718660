"""Two pictures of a run: measurements over their targets, and times against sizes."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import OURS, Measurement, Results, Table
from benchmarks.harness.units import shown

MET, MISSED, OTHERS = "#1b7837", "#b2182b", "0.45"
LOWEST, HIGHEST = 1e-2, 1e2
"""Range of value over target; values beyond it are drawn at the edge, as triangles."""
WIDTH = 7.0
"""Width in inches: that of the text of a page."""
SMALL = 8
"""Size of letters in points."""
OURS_COLUMN, OTHER_COLUMN = 8, 66
"""Places of the columns of values, in points from the right edge of the axes."""
OURS_COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
WORDING_WIDTH = 34
"""Longest line of a target's wording, in letters."""


def draw(results: Results, folder: Path, name: str) -> list[Path]:
    """Draw ``name-targets.png`` and ``name-growth.png``; return the paths of the files.

    Targets whose limit is 0 have no ratio and are left out. Without anything to draw there is no
    file.
    """
    import matplotlib.pyplot as plt

    measured = [one for one in results.measurements if one.value is not None and one.target.limit]
    growth = [table for table in results.tables if table.axis]
    figures = {}
    if measured:
        figures["targets"] = draw_targets(measured)
    if growth:
        figures["growth"] = draw_growth(growth)
    for kind, figure in figures.items():
        figure.savefig(folder / f"{name}-{kind}.png", dpi=180)
        plt.close(figure)
    return [folder / f"{name}-{kind}.png" for kind in figures]


def within(ratio: float, marker: str) -> tuple[float, str]:
    """Return the ratio as drawn, and its marker: a triangle if the ratio is out of range."""
    if ratio < LOWEST:
        return LOWEST, "<"
    return (HIGHEST, ">") if ratio > HIGHEST else (ratio, marker)


def draw_targets(measurements: Sequence[Measurement]) -> Any:
    """Draw each value over its target, grouped by work, with the values in two columns."""
    import matplotlib.pyplot as plt

    works: dict[str, list[Measurement]] = {}
    for one in measurements:
        works.setdefault(one.target.work.replace("`", ""), []).append(one)
    places, labels, headings, place = [], [], [], 0.0
    for work, among in works.items():
        headings.append((place, work))
        for one in among:
            lines = textwrap.wrap(one.target.wording.replace("`", ""), WORDING_WIDTH)
            height = 1 if len(lines) == 1 else 1.7  # in lines, half of it on either side
            places.append(place + 0.4 + height / 2)
            place += height
            labels.append("\n".join(lines))
        place += 1.8
    fig, ax = plt.subplots(figsize=(WIDTH, 0.2 * place + 1.1), layout="constrained")
    for height, one in zip(places, (m for ms in works.values() for m in ms), strict=True):
        _draw_measurement(ax, height, one)
    for height, work in headings:
        _text(
            ax, 0, -172, height, work, weight="bold", bbox={"fc": "white", "ec": "none", "pad": 1}
        )
    for points, title in ((OURS_COLUMN, OURS), (OTHER_COLUMN, "best other")):
        _text(ax, 1, points, -0.1, title, weight="bold")
    ax.axvline(1, color="black", lw=1, zorder=1)
    ax.set_yticks(places, labels, fontsize=SMALL)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(place - 1, -0.8)
    ax.set(xscale="log", xlim=(LOWEST / 2, HIGHEST * 2))
    ticks = ["0.01", "0.1", "target", "10 ×", "100 ×"]
    ax.set_xticks([0.01, 0.1, 1, 10, 100], ticks)
    ax.tick_params(axis="x", labelsize=SMALL, top=True, labeltop=True)
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["left", "right"]].set_visible(False)
    ax.set_xlabel("value over target: left of the line is met", fontsize=SMALL)
    _legend(fig, ax)
    return fig


def _text(ax: Any, edge: int, points: float, height: float, text: str, **style: Any) -> None:
    """Write text, offset in points from the left (0) or right (1) edge of the axes."""
    ax.annotate(
        text,
        (edge, height),
        (points, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        size=SMALL,
        va="center",
        **style,
    )


def _draw_measurement(ax: Any, height: float, one: Measurement) -> None:
    """Draw our value and the best of the others; write both beside the axes."""
    unit, limit, colour = one.target.unit, one.target.limit, MET if one.met else MISSED
    assert one.value is not None
    ours, marker = within(one.value / limit, "o")
    ax.plot([1, ours], [height, height], color=colour, alpha=0.35, lw=3)
    ax.plot(ours, height, marker, color=colour, ms=7, zorder=3)
    _text(ax, 1, OURS_COLUMN, height, shown(one.value, unit), color=colour)
    if one.other_value is not None:
        other, marker = within(one.other_value / limit, "D")
        ax.plot(other, height, marker, color=OTHERS, ms=5, zorder=2)
        _text(ax, 1, OTHER_COLUMN, height, shown(one.other_value, unit), color=OTHERS)


def _legend(fig: Any, ax: Any) -> None:
    keys = (
        ("o", MET, 6, f"{OURS}, met"),
        ("o", MISSED, 6, f"{OURS}, not met"),
        ("D", OTHERS, 5, "best peer or hand-written variant"),
        ("<", "0.2", 6, f"below {LOWEST:g}, drawn at the edge"),
        (">", "0.2", 6, f"above {HIGHEST:g}, drawn at the edge"),
    )
    made = [
        ax.plot([], [], marker, color=colour, ms=size, label=label)[0]
        for marker, colour, size, label in keys
    ]
    fig.legend(handles=made, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)


def draw_growth(tables: Sequence[Table]) -> Any:
    """Draw times against sizes, one panel a table: ours in colour, the others in grey."""
    import matplotlib.pyplot as plt

    heights = [max(2.2, 0.19 * len(table.rows) + 0.3) for table in tables]
    fig, axes = plt.subplots(
        len(tables),
        1,
        figsize=(WIDTH, sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for ax, table in zip(axes[:, 0], tables, strict=True):
        _draw_panel(ax, table)
    return fig


def _draw_panel(ax: Any, table: Table) -> None:
    ours = 0
    rows = sorted(table.rows, key=lambda row: row[0].startswith(OURS))
    for place, (name, seconds, exponent, *_) in enumerate(rows):
        if name.startswith(OURS):
            style = {"color": OURS_COLOURS[ours % len(OURS_COLOURS)], "marker": "o", "lw": 1.6}
            ours += 1
        else:
            line, marker = ("-", "--", ":", "-.")[place % 4], "sv^<>P*Xd"[place % 9]
            style = {"color": OTHERS, "marker": marker, "ls": line, "lw": 0.9}
        known = [(x, y) for x, y in zip(table.sizes, seconds, strict=True) if y is not None]
        label = f"{name}  ∝ {table.axis}^{shown(exponent, 'exponent')}"
        ax.plot([x for x, _ in known], [y for _, y in known], ms=4, label=label, **style)
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel(table.axis, fontsize=SMALL)
    ax.set_ylabel("seconds", fontsize=SMALL)
    ax.tick_params(labelsize=SMALL)
    ax.set_title(f"time against {table.axis}", fontsize=9)
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), fontsize=SMALL - 0.5, frameon=False)
