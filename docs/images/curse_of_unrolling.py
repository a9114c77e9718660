"""Draw the README's picture: ``python docs/images/curse_of_unrolling.py``.

It needs the extra ``study``. The problem is the one of ``make study``: logistic regression on
scikit-learn's breast cancer data, one log-penalty per feature, gradient descent with step 1/L.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

import iterdiff as itd

PENALTY = 0.03
STEPS = 2000
SHOWN = 1000
LABELS, TILT = 600, -23
PICTURE = Path(__file__).with_name("curse-of-unrolling.svg")
GREY, VERMILION, BLUE = "#555555", "#D55E00", "#0072B2"
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10.5,
    "svg.hashsalt": "iterdiff",
}


def measure(steps: int = STEPS) -> xr.Dataset:
    """Return the trace of gradient descent and of its two derivatives."""
    data = load_breast_cancer()
    features = jnp.asarray(scale(data.data))
    signs = jnp.asarray(np.where(data.target == 1, 1.0, -1.0))
    rows, columns = features.shape

    def objective(w, theta):
        misfit = jnp.mean(jax.nn.softplus(-signs * (features @ w)))
        return misfit + jnp.sum(jnp.exp(theta) * w**2) / 2

    curvature = jnp.linalg.eigvalsh(features.T @ features / rows)[-1] / 4 + PENALTY
    return itd.trace(
        itd.Minimization(objective),
        itd.GradientDescent(1 / curvature),
        jnp.asarray(3 * np.random.default_rng(0).standard_normal(columns)),
        jnp.full(columns, jnp.log(PENALTY)),
        steps=steps,
        modes={"unrolled": itd.Unrolled(), "implicit": itd.Implicit()},
    )


def burn_in(error: np.ndarray) -> tuple[int, int]:
    """Return the iteration of the peak, and the last one whose error exceeds the starting value."""
    found = itd.theory.measured_burn_in(error)
    return found.peak_index, found.length - 1


def draw(trace: xr.Dataset) -> plt.Figure:
    """Return the picture: distances from the solution and errors of the two derivatives."""
    distance = trace.iterate_error / trace.iterate_error[0]
    relative = trace.jacobian_error / trace.jacobian_error.attrs["reference_norm"]
    unrolled, implicit = relative.sel(mode="unrolled"), relative.sel(mode="implicit")
    peak, end = burn_in(unrolled.values)

    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(figsize=(7.3, 4.2), layout="constrained", facecolor="white")
    axes.axvspan(0, end, color=VERMILION, alpha=0.09, linewidth=0)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    for curve, color, label in (
        (distance, GREY, "iterate"),
        (implicit, BLUE, "implicit derivative"),
        (unrolled, VERMILION, "unrolled derivative"),
    ):
        axes.plot(trace.iteration, curve, color=color, linewidth=2.2)
        axes.text(
            LABELS,
            1.4 * float(curve[LABELS]),
            label,
            color=color,
            rotation=TILT,
            rotation_mode="anchor",
        )
    axes.plot(peak, unrolled[peak], "o", color=VERMILION)
    axes.annotate(
        f"worst at step {peak}: {float(unrolled[peak]):.1f} times the error\n"
        "of returning zero as the derivative",
        (peak, float(unrolled[peak])),
        xytext=(190, 4.6),
        color=VERMILION,
        verticalalignment="center",
        arrowprops={"arrowstyle": "-", "color": VERMILION, "shrinkB": 5},
    )
    axes.text(10, 1.4e-4, f"burn-in: {end} steps", color=VERMILION)
    axes.set(
        yscale="log",
        xlim=(0, SHOWN),
        ylim=(1e-4, 12),
        xlabel="gradient steps (logistic regression, 569 rows, 30 features)",
        ylabel="relative error",
    )
    axes.set_title(
        "The iterate converges from the first step; its unrolled derivative gets worse first",
        loc="left",
        fontsize=11,
    )
    return figure


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    draw(measure()).savefig(PICTURE, metadata={"Date": None})
    print(f"Wrote {PICTURE}")
