"""Curves of outer suboptimality over inner work and time."""

from pathlib import Path

import numpy as np

from benchmarks.bilevel.run import LABELS, OUR_BEST, TARGET, TOLERANCES
from benchmarks.harness.results import Results

FLOOR = 1e-8
"""Suboptimality below this is drawn there."""

COLORS = {"ours": "#0072B2", "fixed": "#7F7F7F", "refined": "#E69F00", "HOAG": "#D55E00"}
"""Of the palette of Okabe and Ito, which colour-blind readers can tell apart."""


def draw(results: Results, path: Path) -> None:
    """Draw one panel for each problem over gradients, and one over seconds; every seed."""
    import matplotlib.pyplot as plt

    rows = next(t for t in results.sections[0].tables if t.title == "Curves").rows
    names = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = plt.subplots(
        2, len(names), figsize=(2.5 * len(names), 5.2), sharey=True, layout="constrained"
    )
    axes = np.asarray(axes).reshape(2, len(names))
    for column, name in enumerate(names):
        for _, _, label, gradients, _, seconds, gaps in (row for row in rows if row[0] == name):
            kind = _kind(label)
            if kind is None:
                continue
            heights = np.maximum(np.asarray(gaps, float), FLOOR)
            ours = kind == "ours"
            style = {
                "color": COLORS[kind],
                "linewidth": 1.6 if ours else 0.6,
                "alpha": 1.0 if ours else 0.5,
                "zorder": 3 if ours else 1,
            }
            for row, work in enumerate((gradients, seconds)):
                axes[row, column].step(
                    np.maximum(work, 1 if row == 0 else 1e-3), heights, where="post", **style
                )
        axes[0, column].set_title(name, fontsize=9)
    for row, title in enumerate(("inner gradients", "seconds")):
        for axis in axes[row]:
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.axhline(TARGET, color="black", linewidth=0.5, linestyle=":")
            axis.set_xlabel(title, fontsize=8)
            axis.tick_params(labelsize=7)
        axes[row, 0].set_ylabel("relative outer suboptimality", fontsize=8)
    named = {"ours": OUR_BEST, "fixed": "fixed tolerances", "refined": "the same, refined"}
    named["HOAG"] = "HOAG's schedule"
    handles = [plt.Line2D([], [], color=COLORS[k], label=named[k]) for k in COLORS]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _kind(label: str) -> str | None:
    if label == OUR_BEST:
        return "ours"
    for kind, name in (("plain", "fixed"), ("refined", "refined")):
        if label in [LABELS[kind].format(t) for t in TOLERANCES]:
            return name
    return "HOAG" if label.startswith("HOAG") else None
