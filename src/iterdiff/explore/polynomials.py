"""Residual polynomials: what t steps of a method do to each part of the error."""

from collections.abc import Callable
from typing import Any

import numpy as np

import iterdiff as itd
from iterdiff import theory
from iterdiff.explore.charts import Figure, band, curve, layout, look, panels
from iterdiff.study.config import Case
from iterdiff.study.views.palette import SKY

DEGREES = (1, 2, 5, 10, 20, 50)
"""Numbers of steps whose polynomials are drawn."""

POINTS = 201
"""Number of eigenvalues at which a polynomial is evaluated."""

MARGIN = 1.05
"""The largest eigenvalue of the figure, in units of L."""

MAX_HEIGHT = 4.0
"""Largest magnitude that is shown: beyond stability polynomials leave every scale."""


def polynomials(case: Case) -> Figure | None:
    r"""Draw :math:`P_t`, and the factor :math:`P_t - \lambda P_t'` of the Jacobian's error.

    None for a method without such polynomials, or a problem whose spectrum is not known.
    """
    evaluate = _evaluator(case.algorithm)
    if evaluate is None or case.spectrum is None:
        return None
    low, high = case.spectrum
    right = MARGIN * high
    if low == high and isinstance(case.algorithm, itd.GradientDescent):
        right = max(right, 2 / float(case.algorithm.step_size))
    eigenvalues = np.linspace(0, right, POINTS)
    drawn = []
    for number, degree in enumerate(d for d in DEGREES if d <= case.steps):
        found = evaluate(degree, eigenvalues)
        factor = theory.jacobian_part(found, eigenvalues)
        for values, axis in ((found.value, "y"), (factor, "y2")):
            name = f"t = {degree}"
            group = {"yaxis": axis, "legendgroup": name, "showlegend": axis == "y"}
            line = curve(name, eigenvalues, np.asarray(values), look(number), **group)
            del line["x"]  # evenly spaced: x0 and dx say it in fewer bytes
            drawn.append({**line, "x0": 0.0, "dx": float(eigenvalues[1])})
    above, below = panels(2)
    shapes = [band(low, high, SKY, axis) for axis in ("y", "y2")]
    if low == high:
        shapes = [band(low - right / 200, low + right / 200, SKY, axis) for axis in ("y", "y2")]
    axes: dict[str, Any] = {
        "xaxis": {"title": {"text": "eigenvalue λ (shaded: the spectrum)"}, "anchor": "y2"},
        "yaxis": {"title": {"text": "iterate: P(λ)"}, "domain": above, **_range(drawn, "y")},
        "yaxis2": {
            "title": {"text": "Jacobian: P − λP′"},
            "domain": below,
            **_range(drawn, "y2"),
        },
    }
    title = "What t steps leave of each part of the error"
    return {"data": drawn, "layout": layout(title, shapes=shapes, **axes)}


def _range(curves: list[dict], axis: str) -> dict[str, list[float]]:
    """Return limits that show the curves, up to `MAX_HEIGHT`."""
    values = [v for c in curves if c["yaxis"] == axis for v in c["y"] if v is not None]
    low, high = (np.clip(end, -MAX_HEIGHT, MAX_HEIGHT) for end in (min(values), max(values)))
    pad = 0.05 * (high - low) or 0.1
    return {"range": [float(low - pad), float(high + pad)]}


def _evaluator(
    algorithm: itd.Algorithm,
) -> Callable[[int, np.ndarray], theory.ResidualPolynomial] | None:
    """Return the polynomials of an algorithm, as a function of degree and eigenvalues."""
    match algorithm:
        case itd.GradientDescent(step_size=step):
            return lambda t, lam: theory.gradient_descent_polynomial(t, lam, step)
        case itd.HeavyBall(step_size=step, momentum=momentum):
            return lambda t, lam: theory.heavy_ball_polynomial(t, lam, step, momentum)
        case itd.Nesterov(step_size=step, momentum=momentum):
            return lambda t, lam: theory.nesterov_polynomial(t, lam, step, momentum)
        case itd.Chebyshev(smallest=low, largest=high):
            return lambda t, lam: theory.chebyshev_polynomial(t, lam, low, high)
        case itd.Sobolev(smallest=low, largest=high):
            return lambda t, lam: _last(theory.sobolev_polynomials(t, lam, low, high))
    return None


def _last(found: theory.ResidualPolynomial) -> theory.ResidualPolynomial:
    """Return the polynomial of the highest degree."""
    return theory.ResidualPolynomial(found.value[-1], found.derivative[-1])
