"""Regressions on a table: ridge and logistic, one log-penalty per feature or a shared one."""

import abc
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

import iterdiff as itd
from iterdiff.study.bounds import QuadraticBounds, SmoothBounds
from iterdiff.study.config import PosedProblem, Theory
from iterdiff.study.problems.datasets import Table, load_table
from iterdiff.study.settings import ProblemOptions

Objective = Callable[[Array, Array], Float[Array, ""]]


class Regression(ProblemOptions, abc.ABC):
    r"""A penalised regression on a table.

    Attributes
    ----------
    data : str
        The name of a bundled table, or the path of a CSV file.
    target : str
        The column of a CSV file to predict.
    penalty : float
        :math:`e^{\theta_j}` for every j, positive, dimensionless.
    start : float
        Standard deviation of the initial weights.
    shared : bool
        Whether all features share one log-penalty.
    seed : int
        Seed of the start.
    """

    data: str = "breast-cancer"
    target: str = ""
    penalty: PositiveFloat = 0.1
    start: NonNegativeFloat = 1.0
    shared: bool = False
    seed: NonNegativeInt = 0

    def _posed(
        self,
        kind: str,
        table: Table,
        objective: Objective,
        data_spectrum: tuple[float, float],
        **known: Any,
    ) -> tuple[PosedProblem, ...]:
        """Return the problem, given bounds of the spectrum of the Hessian without penalty."""
        rows, columns = table.features.shape
        start = np.random.default_rng(self.seed).standard_normal(columns)
        log_penalty = jnp.asarray(np.log(self.penalty) * np.ones(() if self.shared else columns))
        low, high = data_spectrum[0] + self.penalty, data_spectrum[1] + self.penalty
        posed = PosedProblem(
            problem=itd.Minimization(objective),
            x0=jnp.asarray(self.start * start),
            theta=log_penalty,
            title=(
                f"{kind} on {table.name} ({rows} rows, {columns} features), penalty "
                f"{self.penalty:g} {'shared by all' if self.shared else 'per feature'}, "
                f"L/ℓ = {high / low:.3g}"
            ),
            spectrum=(low, high),
            **known,
        )
        return (posed,)


class RidgeRegression(Regression):
    r"""Ridge regression.

    .. math::

        f(w, \theta) = \frac{1}{2m} \|Z w - y\|^2 + \frac12 \sum_j e^{\theta_j} w_j^2,

    where Z holds the m standardised rows and y the standardised target, so that no intercept is
    needed. l and L are the extreme eigenvalues of the Hessian.
    """

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem.

        Raises
        ------
        ValueError
            If the table cannot be read or standardised, or its target is not numeric.
        """
        table = load_table(self.data, self.target)
        features, target = table.standardised(), table.numbers()
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
        known = {"reference": solution, "theory": QuadraticBounds(commuting=self.shared)}
        return self._posed("ridge regression", table, objective, bounds, **known)


class LogisticRegression(Regression):
    r"""Logistic regression.

    .. math::

        f(w, \theta) = \frac1m \sum_i \ln(1 + e^{-y_i z_i^\top w})
                       + \frac12 \sum_j e^{\theta_j} w_j^2,

    with the standardised rows :math:`z_i` and :math:`y_i = \pm1`, without intercept. L is the
    largest eigenvalue of the Hessian at 0, which bounds it everywhere; l is the penalty.

    The Hessian of the losses is :math:`\frac1m \sum_i \sigma'(m_i) z_i z_i^\top` with
    :math:`|\sigma''| \le \sqrt3/18`. By the Cauchy-Schwarz inequality it has the Lipschitz
    constant :math:`\frac{\sqrt3}{18} \sqrt{\lambda_1 \lambda_2}`, where :math:`\lambda_1` and
    :math:`\lambda_2` are the largest eigenvalues of :math:`\frac1m \sum_i z_i z_i^\top` and
    :math:`\frac1m \sum_i \|z_i\|^2 z_i z_i^\top`. The penalty is a Lipschitz constant of
    :math:`\partial_\theta \nabla f`.
    """

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem.

        Raises
        ------
        ValueError
            If the table cannot be read or standardised, or its target does not have two classes.
        """
        table = load_table(self.data, self.target)
        features, signs = table.standardised(), table.signs()
        rows = len(features)
        plain = np.linalg.eigvalsh(features.T @ features / rows)[-1]
        squares = np.sum(features**2, axis=1, keepdims=True)
        weighted = np.linalg.eigvalsh(features.T @ (squares * features) / rows)[-1]
        signed = jnp.asarray(signs[:, None] * features)

        def objective(w: Array, theta: Array) -> Float[Array, ""]:
            losses = jnp.logaddexp(0.0, -(signed @ w))
            return jnp.mean(losses) + jnp.sum(jnp.exp(theta) * w**2) / 2

        theory: Theory = SmoothBounds(
            lipschitz_x=float(np.sqrt(3 * plain * weighted) / 18), lipschitz_theta=self.penalty
        )
        bounds = (0.0, float(plain) / 4)
        return self._posed("logistic regression", table, objective, bounds, theory=theory)
