"""Linear models on folds of a cross-validation: the inner problems of our scikit-learn estimators.

Every function receives the data of one fold in `args`, so that folds are a batch, and models of
equal shapes share one compiled program. Rows outside of a fold have the weight zero.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Iterate, StatelessAlgorithm
from iterdiff.algorithms.newton import Newton, newton_step
from iterdiff.algorithms.proximal import ProximalGradient
from iterdiff.problems.problem import CompositeMinimization, Minimization, Problem
from iterdiff.problems.prox import soft_threshold

BOUND_ONE_LOGIT, BOUND_SOFTMAX = 0.25, 0.5
"""Largest curvature of the logistic loss in its logit, and of the cross-entropy in its logits."""

ROWS = 64
"""Tables are filled up to a multiple of this many rows, so that tables of nearly one length share a
compiled program."""

GAUGE = 1.0
"""Curvature in the sum of the intercepts of a softmax, which the loss does not depend on."""


class Fold(NamedTuple):
    """The data of one fold, or of all folds with a leading axis.

    Attributes
    ----------
    features : array
        One row for each sample. A column of ones may follow the features.
    target : array
        Regression: one number for each sample. Classification: a column with signs, or one column
        of zeros and ones for each class.
    train, test : array
        Weights of the samples, each with sum one.
    shrink : array
        By how much the penalty of each column counts, for a penalty that is linear in the
        coefficient; it comes from the scaling of the columns, and is zero for the ones.
    intercept : scalar
        One if the model has an intercept, else zero.
    """

    features: Any
    target: Any
    train: Any
    test: Any
    shrink: Any
    intercept: Any


def residuals(x: PyTree, args: Fold) -> Float[Array, " n"]:
    """Return target minus prediction, with the intercept that is best on the training rows."""
    plain = args.target - args.features @ x
    return plain - args.intercept * (args.train @ plain)


def _fit(x: PyTree, args: Fold) -> Float[Array, ""]:
    return args.train @ residuals(x, args) ** 2 / 2


def _penalties(log_penalty: PyTree, power: int, args: Fold) -> Float[Array, " p"]:
    """Return the penalty of each scaled column; the column of ones has none."""
    columns, penalty = len(args.shrink), jnp.atleast_1d(jnp.exp(log_penalty))
    missing = columns - len(penalty)
    if len(penalty) > 1 and missing:
        penalty = jnp.pad(penalty, (0, missing))
    return penalty * args.shrink**power


def _quadratic(x: PyTree, log_penalty: PyTree, args: Fold) -> Float[Array, ""]:
    square = x**2 if jnp.ndim(x) == 1 else jnp.sum(x**2, axis=1)
    return _penalties(log_penalty, 2, args) @ square / 2


def ridge_objective(x: PyTree, theta: PyTree, args: Fold) -> Float[Array, ""]:
    """Return half the mean square and the penalty."""
    return _fit(x, args) + _quadratic(x, theta, args)


def least_squares(x: PyTree, theta: PyTree, args: Fold) -> Float[Array, ""]:
    """Return half the mean square."""
    del theta
    return _fit(x, args)


def lasso_prox(x: PyTree, step: Any, theta: PyTree, args: Fold) -> PyTree:
    """Shrink every coefficient by its penalty."""
    return soft_threshold(x, step * _penalties(theta, 1, args))


def elastic_prox(x: PyTree, step: Any, theta: PyTree, args: Fold) -> PyTree:
    """Shrink by the first penalty, whose logarithm is ``theta[0]``, and divide for the second."""
    shrunk = soft_threshold(x, step * _penalties(theta[0], 1, args))
    return shrunk / (1 + step * _penalties(theta[1], 2, args))


def held_out_square(x: PyTree, theta: PyTree, args: Fold) -> Float[Array, ""]:
    """Return half the mean square on the test rows."""
    del theta
    return args.test @ residuals(x, args) ** 2 / 2


def _cross_entropies(x: PyTree, args: Fold) -> Float[Array, " n"]:
    logits = args.features @ x
    if logits.shape[1] == 1:
        return jnp.logaddexp(0.0, -(args.target * logits)[:, 0])
    return jax.nn.logsumexp(logits, axis=1) - jnp.sum(args.target * logits, axis=1)


def logistic_objective(x: PyTree, theta: PyTree, args: Fold) -> Float[Array, ""]:
    """Return the mean cross-entropy and the penalty; the intercepts of a softmax have sum zero."""
    gauge = GAUGE * args.intercept * jnp.sum(x[-1]) ** 2 / 2 if x.shape[1] > 1 else 0.0
    return args.train @ _cross_entropies(x, args) + _quadratic(x, theta, args) + gauge


def held_out_cross_entropy(x: PyTree, theta: PyTree, args: Fold) -> Float[Array, ""]:
    """Return the mean cross-entropy on the test rows."""
    del theta
    return args.test @ _cross_entropies(x, args)


class BoundedNewton(StatelessAlgorithm):
    r"""Newton's method for logistic regression, safe from any start.

    Of two candidates, a step takes the one with the lower objective: the Newton step, and the step
    with an upper bound of the Hessian, :math:`c X^\top W X + \mathrm{diag}`, which always
    decreases the objective. It needs the data of a `Fold`.

    References
    ----------
    D. Böhning and B. Lindsay, *Monotonicity of quadratic-approximation algorithms*, Ann. Inst.
    Statist. Math. 1988.
    """

    accepts: ClassVar[tuple[type[Problem], ...]] = (Minimization,)
    consistent: ClassVar[bool] = True

    def step(self, problem: Minimization, state: Iterate, theta: PyTree) -> Iterate:
        """Return the better of both candidates."""
        x = state.x
        (args,) = problem.objective.data  # pyright: ignore[reportFunctionMemberAccess]
        bound = BOUND_ONE_LOGIT if x.shape[1] == 1 else BOUND_SOFTMAX
        curvature = bound * args.features.T @ (args.train[:, None] * args.features)
        curvature = curvature + jnp.diag(_penalties(theta, 2, args))
        curvature = curvature.at[-1, -1].add(GAUGE * x.shape[1] * args.intercept)
        safe = x - jnp.linalg.solve(curvature, problem.residual(x, theta))
        bold = newton_step(problem, x, theta)
        better = problem.value(bold, theta) < problem.value(safe, theta)  # False if it is NaN
        return Iterate(jnp.where(better, bold, safe))


class Model(NamedTuple):
    """An inner problem with its outer loss, and how it is solved.

    Attributes
    ----------
    problem : Problem
    algorithm : Algorithm
    loss : callable
        ``loss(x, theta, args)`` on held-out rows.
    """

    problem: Problem
    algorithm: Any
    loss: Any


def _minimization(objective: Any) -> Minimization:
    return Minimization(objective)  # the objective takes the data of a fold, too


def _composite(smooth: Any, prox: Any) -> CompositeMinimization:
    return CompositeMinimization(smooth, prox)


RIDGE = Model(_minimization(ridge_objective), Newton(), held_out_square)
LASSO = Model(_composite(least_squares, lasso_prox), ProximalGradient(1.0), held_out_square)
ELASTIC_NET = LASSO._replace(problem=_composite(least_squares, elastic_prox))
LOGISTIC = Model(_minimization(logistic_objective), BoundedNewton(), held_out_cross_entropy)


class Tables:
    """A data set with scaled columns, as folds.

    The largest eigenvalue of the curvature of each fold is one at most, so that steps of length one
    are safe.

    Parameters
    ----------
    features : array of shape (samples, features)
    target : array
        As in `Fold`.
    intercept : bool
        Whether the model has an intercept.
    splits : list of pairs of index arrays
        The training and test rows of each fold.
    """

    def __init__(
        self,
        features: Any,
        target: np.ndarray,
        *,
        intercept: bool,
        splits: list[tuple[np.ndarray, np.ndarray]],
    ):
        self.count, self.width = features.shape
        self.target, self.intercept, self.splits = target, intercept, splits
        self.padding = -self.count % ROWS
        self.centre = features.mean(0) if intercept else np.zeros(self.width)
        scaled = features - self.centre
        lengths = np.sqrt(np.mean(scaled**2, axis=0))
        self.variance = float(np.mean(lengths**2)) or 1.0
        scale = np.where(lengths > 0, lengths, 1.0)
        self.scaled = scaled / scale
        scale = scale * self._normalised()
        self.shrink = 1 / scale

    def _normalised(self) -> float:
        """Divide the columns so that no fold has a curvature above one; return the divisor."""
        largest = 0.0
        for rows in [np.arange(self.count), *(train for train, _ in self.splits)]:
            part = self.scaled[rows]
            part = part - part.mean(0) if self.intercept else part
            gram = part @ part.T if len(part) < self.width else part.T @ part
            largest = max(largest, float(np.linalg.eigvalsh(gram)[-1]) / len(rows))
        divisor = np.sqrt(largest) or 1.0
        self.scaled = self.scaled / divisor
        return divisor

    @property
    def strongest(self) -> float:
        """The smallest absolute penalty that shrinks all coefficients of a lasso to zero."""
        target = self.target - self.intercept * self.target.mean()
        slopes = self.scaled.T @ target / (self.shrink * self.count)
        return float(np.max(np.abs(slopes))) or 1.0

    @property
    def start(self) -> Float[Array, "p ..."]:
        """Coefficients of zero; of a classifier, a row of intercepts follows."""
        one_more = self.intercept and self.target.ndim == 2
        return jnp.zeros((self.width + one_more, *self.target.shape[1:]))

    def fold(self, train: np.ndarray, test: np.ndarray) -> Fold:
        """Return the data of one fold, as NumPy arrays."""
        features, shrink = self.scaled, self.shrink
        if self.intercept and self.target.ndim == 2:
            features = np.hstack([features, np.ones((self.count, 1))])
            shrink = np.append(shrink, 0.0)
        below = (0, self.padding), (0, 0)
        return Fold(
            np.pad(features, below),
            np.pad(self.target, below[: self.target.ndim]),
            self._weights(train),
            self._weights(test),
            shrink,
            np.asarray(float(self.intercept)),
        )

    def _weights(self, rows: np.ndarray) -> np.ndarray:
        weights = np.zeros(self.count + self.padding)
        weights[rows] = 1 / len(rows)
        return weights

    def folds(self) -> Fold:
        """Return all folds with a leading axis."""
        every = [self.fold(train, test) for train, test in self.splits]
        return Fold(*(jnp.asarray(np.stack(part)) for part in zip(*every, strict=True)))

    def whole(self) -> Fold:
        """Return all data, to train and to test, as many times as there are folds.

        So the last fit needs no other program than those before.
        """
        rows = np.arange(self.count)
        copies = len(self.splits)
        return Fold(*(jnp.asarray(np.stack([v] * copies)) for v in self.fold(rows, rows)))

    def unscaled(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the coefficients and the intercept that belong to the columns as they were."""
        shrink = self.shrink.reshape(-1, *(1,) * (x.ndim - 1))
        coefficients = x[: self.width] * shrink
        if not self.intercept:
            return coefficients, np.zeros(x.shape[1:])
        last = x[-1] if x.ndim == 2 else self.target.mean()
        return coefficients, last - self.centre @ coefficients
