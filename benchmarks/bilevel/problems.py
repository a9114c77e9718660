"""Outer problems on real and simulated data, each with a solve of its own for the truth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

import iterdiff as itd

PENALTIES, LOGITS = (-8.0, 0.0), (-6.0, 6.0)
"""Bounds of the outer parameters. The step sizes are safe for penalties up to one."""

TRUTH_STEPS, TRUTH_NEWTON, TRUTH_PROXIMAL = 500, 25, 2_000
"""The truth of a smooth problem: steps of Nesterov's method, then Newton steps. Of a lasso: steps
of FISTA, then Newton corrections on the support."""


class Case(NamedTuple):
    """An outer problem at one seed.

    Attributes
    ----------
    name : str
    loss, problem, algorithm, x0, theta0
        As `iterdiff.bilevel.minimize` takes them.
    bounds : tuple
        Of theta.
    unknowns : int
        Of the inner problem.
    true_loss : callable
        ``true_loss(theta)`` is the outer loss after a direct solve; ``jax.grad`` differentiates it.
    """

    name: str
    loss: Callable
    problem: itd.Problem
    algorithm: itd.Algorithm
    x0: Any
    theta0: Any
    bounds: tuple[float, float]
    unknowns: int
    true_loss: Callable


def _case(name, loss, problem, step_size, x0, theta0, bounds=PENALTIES) -> Case:
    smooth = isinstance(problem, itd.Minimization)
    algorithm = (itd.GradientDescent if smooth else itd.ProximalGradient)(step_size)

    def true_loss(theta):
        if not smooth:
            fista, stop = itd.FISTA(step_size), itd.Steps(TRUTH_PROXIMAL)
            mode = itd.Implicit(refine=2)
            return loss(itd.solve(problem, fista, x0, theta, stop=stop, mode=mode).x, theta)
        accelerated, stop = itd.Nesterov(step_size, 0.9), itd.Steps(TRUTH_STEPS)
        start = jax.lax.stop_gradient(itd.solve(problem, accelerated, x0, theta, stop=stop).x)
        stop = itd.Steps(TRUTH_NEWTON)
        return loss(itd.solve(problem, itd.Newton(), start, theta, stop=stop).x, theta)

    size = sum(leaf.size for leaf in jax.tree.leaves(x0))
    return Case(name, loss, problem, algorithm, x0, theta0, bounds, size, true_loss)


def _standardised(features: np.ndarray) -> np.ndarray:
    return (features - features.mean(0)) / features.std(0)


def _split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(count)
    return order[: 2 * count // 3], order[2 * count // 3 :]


def cancer(seed: int, *, shared: bool) -> Case:
    """Logistic regression on breast cancer, one log-penalty or one for each feature."""
    data = sklearn.datasets.load_breast_cancer()
    features, signs = jnp.asarray(_standardised(data.data)), jnp.asarray(2.0 * data.target - 1)
    train, test = _split(len(signs), seed)
    matrix, held_out = features[train] * signs[train, None], features[test] * signs[test, None]

    def objective(x, theta):
        fit = jnp.mean(jnp.logaddexp(0.0, -(matrix @ x)))
        return fit + jnp.sum(jnp.exp(theta) * x**2) / 2

    def loss(x, theta):
        del theta
        return jnp.mean(jnp.logaddexp(0.0, -(held_out @ x)))

    largest = float(np.linalg.eigvalsh(np.asarray(matrix.T @ matrix))[-1]) / (4 * len(train))
    theta0 = jnp.array(-1.0) if shared else jnp.full(30, -2.0)
    problem = itd.Minimization(objective)
    name = "logistic, cancer, " + ("one penalty" if shared else "30 penalties")
    return _case(name, loss, problem, 1 / (largest + 1.0), jnp.zeros(30), theta0)


def diabetes(seed: int) -> Case:
    """Ridge regression on diabetes, one log-penalty for each feature."""
    data = sklearn.datasets.load_diabetes()
    features = jnp.asarray(_standardised(data.data))
    target = jnp.asarray((data.target - data.target.mean()) / data.target.std())
    train, test = _split(len(target), seed)
    matrix, wanted = features[train], target[train]

    def objective(x, theta):
        fit = jnp.mean((matrix @ x - wanted) ** 2) / 2
        return fit + jnp.sum(jnp.exp(theta) * x**2) / 2

    def loss(x, theta):
        del theta
        return jnp.mean((features[test] @ x - target[test]) ** 2) / 2

    largest = float(np.linalg.eigvalsh(np.asarray(matrix.T @ matrix))[-1]) / len(train)
    problem = itd.Minimization(objective)
    theta0 = jnp.full(10, -1.0)
    return _case(
        "ridge, diabetes, 10 penalties", loss, problem, 1 / (largest + 1), jnp.zeros(10), theta0
    )


def wine(seed: int) -> Case:
    """Three-class logistic regression on wine, one log-penalty for each class."""
    data = sklearn.datasets.load_wine()
    features, labels = jnp.asarray(_standardised(data.data)), jnp.asarray(data.target)
    train, test = _split(len(data.target), seed)

    def entropy(x, rows):
        logits = features[rows] @ x
        chosen = jnp.take_along_axis(logits, labels[rows][:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    def objective(x, theta):
        return entropy(x, train) + jnp.sum(jnp.exp(theta) * x**2) / 2

    def loss(x, theta):
        del theta
        return entropy(x, test)

    rows = np.asarray(features[train])
    largest = float(np.linalg.eigvalsh(rows.T @ rows)[-1]) / (2 * len(train))
    problem = itd.Minimization(objective)
    start, theta0 = jnp.zeros((13, 3)), jnp.full(3, -2.0)
    return _case("softmax, wine, 3 penalties", loss, problem, 1 / (largest + 1), start, theta0)


def lasso(seed: int, rows: int = 60, columns: int = 200, held_out: int = 200) -> Case:
    """Lasso with more columns than rows, simulated: one log-penalty."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows + held_out, columns))
    true = np.where(np.arange(columns) < 8, rng.choice([-1.0, 1.0], columns), 0.0)
    target = matrix @ true + 0.5 * rng.standard_normal(rows + held_out)
    matrix, target = jnp.asarray(matrix), jnp.asarray(target)
    largest = float(np.linalg.norm(np.asarray(matrix[:rows]), 2)) ** 2 / rows

    def smooth(x, theta):
        del theta
        return jnp.sum((matrix[:rows] @ x - target[:rows]) ** 2) / (2 * rows)

    def prox(x, step, theta):
        return itd.prox.soft_threshold(x, step * jnp.exp(theta))

    def loss(x, theta):
        del theta
        return jnp.mean((matrix[rows:] @ x - target[rows:]) ** 2) / 2

    problem = itd.CompositeMinimization(smooth, prox, residual_step=1 / largest)
    return _case(
        "lasso, simulated, 60×200", loss, problem, 1 / largest, jnp.zeros(columns), jnp.array(-1.0)
    )


def cleaning(seed: int, count: int = 120, features: int = 16) -> Case:
    """Hyper-cleaning of digits: half of the labels are wrong, each sample has a weight."""
    data = sklearn.datasets.load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.target))[: 2 * count]
    pixels = _standardised(data.data[:, data.data.std(0) > 0])
    _, _, axes = np.linalg.svd(pixels, full_matrices=False)
    inputs = jnp.asarray(_standardised(pixels @ axes[:features].T)[order])
    labels = data.target[order]
    wrong = rng.random(count) < 0.5
    noisy = np.where(wrong, rng.integers(0, 10, count), labels[:count])
    labels, noisy = jnp.asarray(labels), jnp.asarray(noisy)

    def entropy(x, rows, targets):
        logits = inputs[rows] @ x
        chosen = jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - chosen

    train, test = slice(None, count), slice(count, None)

    def objective(x, theta):
        weighted = jax.nn.sigmoid(theta) * entropy(x, train, noisy)
        return jnp.mean(weighted) + 0.01 * jnp.sum(x**2)

    def loss(x, theta):
        del theta
        return jnp.mean(entropy(x, test, labels[count:]))

    rows = np.asarray(inputs[train])
    largest = float(np.linalg.eigvalsh(rows.T @ rows)[-1]) / (2 * count) + 0.02
    start = jnp.zeros((features, 10))
    problem = itd.Minimization(objective)
    theta0 = jnp.zeros(count)
    return _case("hyper-cleaning, digits", loss, problem, 1 / largest, start, theta0, LOGITS)


CASES: dict[str, Callable[[int], Case]] = {
    "cancer": lambda seed: cancer(seed, shared=True),
    "cancer-each": lambda seed: cancer(seed, shared=False),
    "diabetes": diabetes,
    "wine": wine,
    "lasso": lasso,
    "cleaning": cleaning,
}
"""Each case, by its name on the command line."""
