"""Regressions on a table: ridge and logistic, one log-penalty per feature or a shared one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iterdiff.problems.problem import Minimization
from iterdiff.study.config import Setting
from iterdiff.study.datasets import Table, bundled, read_csv

GRADIENT_DESCENT = {
    "GD, 1/L": {"type": "GradientDescent", "step_size": "1/L"},
    "GD, 2/(L+l)": {"type": "GradientDescent", "step_size": "2/(L+l)"},
}

OPTIONS = {"data": "breast-cancer", "target": "", "start": 1.0, "shared": False, "seed": 0}
"""Options that both regressions have; the penalty comes with each study."""


def ridge(**options: Any) -> tuple[Setting, ...]:
    r"""Return ridge regression on a table.

    .. math::

        f(w, \theta) = \frac{1}{2m} \|Z w - y\|^2 + \frac12 \sum_j e^{\theta_j} w_j^2,

    Z the m standardised rows and y the standardised target: no intercept is needed. l and L
    are the extreme eigenvalues of the Hessian.

    Parameters
    ----------
    data : str
        The name of a bundled table, or the path of a CSV file.
    target : str
        The column to predict, of a CSV file.
    penalty : float
        :math:`e^{\theta_j}` for every j, positive, dimensionless.
    start : float
        Standard deviation of the weights to start from.
    shared : bool
        One log-penalty for all features instead of one each.
    seed : int
        Draws the start.
    """
    table, features = _read(options)
    target = table.numbers()
    spectrum = np.linalg.eigvalsh(features.T @ features / len(features))
    matrix, answers = jnp.asarray(features), jnp.asarray(target)

    def objective(w: Array, theta: Array) -> Float[Array, ""]:
        fit = jnp.sum((matrix @ w - answers) ** 2) / (2 * matrix.shape[0])
        return fit + jnp.sum(jnp.exp(theta) * w**2) / 2

    def solution(theta: Array) -> Array:
        penalty = jnp.diag(jnp.broadcast_to(jnp.exp(theta), matrix.shape[1:]))
        hessian = matrix.T @ matrix / matrix.shape[0] + penalty
        return jnp.linalg.solve(hessian, matrix.T @ answers / matrix.shape[0])

    bounds = (max(float(spectrum[0]), 0.0), float(spectrum[-1]))
    setting = _setting("ridge regression", objective, table, bounds, options)
    facts = {"quadratic": 1.0, "commuting": float(bool(options["shared"]))}
    return (dataclasses.replace(setting, reference=solution, facts=facts),)


def logistic(**options: Any) -> tuple[Setting, ...]:
    r"""Return logistic regression on a table.

    .. math::

        f(w, \theta) = \frac1m \sum_i \ln(1 + e^{-y_i z_i^\top w})
                       + \frac12 \sum_j e^{\theta_j} w_j^2,

    :math:`z_i` the standardised rows and :math:`y_i = \pm1`, without intercept. L is the
    largest eigenvalue of the Hessian in 0, which bounds it everywhere, and l the penalty.

    The Hessian of the losses is :math:`\frac1m \sum_i \sigma'(m_i) z_i z_i^\top` with
    :math:`|\sigma''| \le \sqrt3/18`. So, by Cauchy and Schwarz, a Lipschitz constant of it is
    :math:`\frac{\sqrt3}{18}` times the roots of the largest eigenvalues of
    :math:`\frac1m \sum_i z_i z_i^\top` and :math:`\frac1m \sum_i \|z_i\|^2 z_i z_i^\top`.
    One of :math:`\partial_\theta \nabla f` is the penalty.

    Parameters
    ----------
    **options
        As in `ridge`.
    """
    table, features = _read(options)
    signs = table.signs()
    rows = len(features)
    plain = np.linalg.eigvalsh(features.T @ features / rows)[-1]
    squares = np.sum(features**2, axis=1, keepdims=True)
    weighted = np.linalg.eigvalsh(features.T @ (squares * features) / rows)[-1]
    signed = jnp.asarray(signs[:, None] * features)

    def objective(w: Array, theta: Array) -> Float[Array, ""]:
        losses = jnp.logaddexp(0.0, -(signed @ w))
        return jnp.mean(losses) + jnp.sum(jnp.exp(theta) * w**2) / 2

    setting = _setting("logistic regression", objective, table, (0.0, float(plain) / 4), options)
    facts = {
        "lipschitz_x": np.sqrt(3 * plain * weighted) / 18,
        "lipschitz_theta": float(options["penalty"]),
    }
    return (dataclasses.replace(setting, facts=facts),)


def _read(options: dict[str, Any]) -> tuple[Table, np.ndarray]:
    for name in ("penalty", "start"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"`problem.{name}` must be a number that is not negative: {value!r}.")
    if not options["penalty"] > 0:
        raise ValueError("`problem.penalty` must be positive: its logarithm is the parameter.")
    data, target = str(options["data"]), str(options["target"])
    if target:
        table = read_csv(Path(data), target)
    elif data.endswith(".csv"):
        raise ValueError(f"`target` is missing: name the column of {data} that is to be predicted.")
    else:
        table = bundled(data)
    return table, table.standardised()


def _setting(
    kind: str,
    objective: Callable[[Array, Array], Float[Array, ""]],
    table: Table,
    bounds: tuple[float, float],
    options: dict[str, Any],
) -> Setting:
    rows, columns = table.features.shape
    penalty, shared = float(options["penalty"]), bool(options["shared"])
    start = np.random.default_rng(int(options["seed"])).standard_normal(columns)
    log_penalty = jnp.asarray(np.log(penalty) * np.ones(() if shared else columns))
    low, high = bounds[0] + penalty, bounds[1] + penalty
    each = "shared by all" if shared else "per feature"
    return Setting(
        problem=Minimization(objective),
        x0=jnp.asarray(float(options["start"]) * start),
        theta=log_penalty,
        title=(
            f"{kind} on {table.name} ({rows} rows, {columns} features), penalty {penalty:g} "
            f"{each}, L/l = {high / low:.3g}"
        ),
        spectrum=(low, high),
    )
