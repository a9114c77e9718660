"""Data and problems that several benchmarks share, each with its true answer.

A `Case` spells out objective, residual, Hessian and loss as functions of their data, so that
hand-written variants and libraries do the same work on the same arrays. The truths come from
dense factorisations in NumPy, refined once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import iterdiff as itd


class Data(NamedTuple):
    """A regression's samples, and those that its answer is judged by."""

    features: Any
    targets: Any
    held_features: Any
    held_targets: Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem with a loss of its answer, at the solution.

    Attributes
    ----------
    name : str
        What it is called.
    residual : callable
        ``residual(x, theta, data)`` vanishes at the solution.
    objective : callable or None
        ``objective(x, theta, data)``, of which the residual is the gradient.
    jacobian : callable
        ``jacobian(x, theta, data)`` is d residual / dx, spelled out.
    loss : callable
        ``loss(x, data)``.
    data : Data
        Arrays.
    theta : array
        The parameters.
    solution : array
        Where the residual vanishes.
    gradient : array
        Of the loss of the solution, in theta.
    step_size : float
        Of gradient descent.
    """

    name: str
    residual: Callable
    objective: Callable | None
    jacobian: Callable
    loss: Callable
    data: Data
    theta: jax.Array
    solution: jax.Array
    gradient: jax.Array
    step_size: float = 0.0

    @property
    def inputs(self) -> tuple[Any, Any, Any]:
        """What variants are called with: solution, theta, data."""
        return self.solution, self.theta, self.data

    def problem(self, data: Data) -> itd.Problem:
        """Return the problem as a user of ours would state it."""
        if self.objective is None:
            return itd.RootFinding(lambda x, theta: self.residual(x, theta, data))
        objective = self.objective
        return itd.Minimization(lambda x, theta: objective(x, theta, data))

    def step(self, x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
        """Return the next iterate of gradient descent."""
        return x - self.step_size * self.residual(x, theta, data)


def _numpy(data: Data) -> Data:
    return Data(*(np.asarray(part) for part in data))


def logistic_objective(x, theta, data):
    """Return the penalised log-loss, one log-penalty a feature."""
    margins = -data.targets * (data.features @ x)
    return jnp.mean(jnp.logaddexp(0.0, margins)) + jnp.exp(theta) @ x**2 / 2


@jax.custom_jvp
def softplus(margins):
    """Return ``log(1 + exp(margins))``, its slope given as a sigmoid."""
    return jnp.logaddexp(0.0, margins)


@softplus.defjvp
def _(primals, tangents):
    return softplus(*primals), jax.nn.sigmoid(*primals) * tangents[0]


def slope_by_hand(case: Case) -> Case:
    """Return a case of logistic regression whose loss brings its slope, as users may."""

    def objective(x, theta, data):
        margins = -data.targets * (data.features @ x)
        return jnp.mean(softplus(margins)) + jnp.exp(theta) @ x**2 / 2

    return dataclasses.replace(case, objective=objective, residual=jax.grad(objective))


def logistic_loss(x, data):
    """Return the log-loss on the samples that judge."""
    return jnp.mean(jnp.logaddexp(0.0, -data.held_targets * (data.held_features @ x)))


def logistic_hessian(x, theta, data):
    """Return X' D X / m + diag(exp(theta))."""
    s = jax.nn.sigmoid(data.features @ x)
    weighted = data.features.T * (s * (1 - s))[None, :]
    return weighted @ data.features / data.features.shape[0] + jnp.diag(jnp.exp(theta))


def ridge_objective(x, theta, data):
    """Return the penalised mean square, one log-penalty a feature."""
    misfit = data.features @ x - data.targets
    return jnp.mean(misfit**2) / 2 + jnp.exp(theta) @ x**2 / 2


def ridge_loss(x, data):
    """Return the mean square on the samples that judge."""
    return jnp.mean((data.held_features @ x - data.held_targets) ** 2) / 2


def ridge_hessian(x, theta, data):
    """Return X' X / m + diag(exp(theta))."""
    del x
    gram = data.features.T @ data.features / data.features.shape[0]
    return gram + jnp.diag(jnp.exp(theta))


def _refined(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    factors = scipy.linalg.cho_factor(matrix, lower=True)
    x = scipy.linalg.cho_solve(factors, rhs)
    return x + scipy.linalg.cho_solve(factors, rhs - matrix @ x)


def _largest_eigenvalue(matrix: np.ndarray) -> float:
    """Return it by power iteration, from below, to about a per mille."""
    v = np.ones(matrix.shape[0])
    for _ in range(200):
        v = matrix @ (v / np.linalg.norm(v))
    return float(np.linalg.norm(v))


def logistic(name: str, data: Data, penalty: float) -> Case:
    """Return logistic regression on `data`, solved by Newton's method."""
    features, targets, held_features, held_targets = _numpy(data)
    count, size = features.shape
    weights = np.full(size, penalty)
    x = np.zeros(size)
    for _ in range(40):
        s = 1 / (1 + np.exp(targets * (features @ x)))
        slope = -(features.T @ (targets * s)) / count + weights * x
        hessian = (features.T * (s * (1 - s))) @ features / count + np.diag(weights)
        move = _refined(hessian, slope)
        x = x - move * min(1.0, 2.0 / np.linalg.norm(features @ move, np.inf).clip(1e-300))
        if np.linalg.norm(move) <= 1e-15 * np.linalg.norm(x):
            break
    s = 1 / (1 + np.exp(held_targets * (held_features @ x)))
    adjoint = _refined(hessian, -(held_features.T @ (held_targets * s)) / len(held_targets))
    return Case(
        name,
        jax.grad(logistic_objective),
        logistic_objective,
        logistic_hessian,
        logistic_loss,
        Data(*map(jnp.asarray, data)),
        jnp.full(size, np.log(penalty)),
        jnp.asarray(x),
        jnp.asarray(-weights * x * adjoint),
        1 / (_largest_eigenvalue(features.T @ features) / (4 * count) + penalty),
    )


def ridge(name: str, data: Data, penalty: float) -> Case:
    """Return ridge regression on `data`."""
    features, targets, held_features, held_targets = _numpy(data)
    count, size = features.shape
    hessian = features.T @ features / count + penalty * np.eye(size)
    x = _refined(hessian, features.T @ targets / count)
    slope = held_features.T @ (held_features @ x - held_targets) / len(held_targets)
    return Case(
        name,
        jax.grad(ridge_objective),
        ridge_objective,
        ridge_hessian,
        ridge_loss,
        Data(*map(jnp.asarray, data)),
        jnp.full(size, np.log(penalty)),
        jnp.asarray(x),
        jnp.asarray(-penalty * x * _refined(hessian, slope)),
        1 / _largest_eigenvalue(hessian),
    )


@functools.cache
def samples() -> tuple[jax.Array, jax.Array]:
    """Return the breast-cancer data: 569 x 30 features, standardised, and signs of the classes."""
    from sklearn.datasets import load_breast_cancer

    features, classes = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    return jnp.asarray(features), jnp.asarray(2.0 * classes - 1)


def breast_cancer() -> Data:
    """Return all samples to fit, and every third of them to judge."""
    features, signs = samples()
    return Data(features, signs, features[::3], signs[::3])


def synthetic(kind: str, count: int, size: int, seed: int = 0) -> Data:
    """Return random samples.

    Parameters
    ----------
    kind : {"signs", "numbers", "ill"}
        Targets that are signs, with features whose scales span a decade; numbers, with features
        of one scale; or numbers, with as many samples as features and the squares of the
        features' singular values spanning six decades.
    count, size : int
        Samples to fit, and unknowns.
    seed : int
        Of the generator.
    """
    rng = np.random.default_rng(seed)
    held = max(20, count // 5)
    if kind == "ill":
        left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
        singular = np.sqrt(np.logspace(-6, 0, size) * size)
        features = (left * singular) @ right.T
        extra = rng.standard_normal((held, size))
    else:
        both = rng.standard_normal((count + held, size))
        if kind == "signs":
            both *= np.logspace(0, -1, size)
        features, extra = both[:count], both[count:]
    weights = rng.standard_normal(size) / np.sqrt(size if kind == "numbers" else 1)
    exact = np.concatenate([features, extra]) @ weights
    noise = rng.standard_normal(exact.size)
    targets = np.sign(exact + noise) if kind == "signs" else exact + 0.05 * noise
    fitted = len(features)
    return Data(features, targets[:fitted], extra, targets[fitted:])


def layer(size: int, seed: int = 0) -> Case:
    """Return a layer defined by its fixed point, x = tanh(W x + theta): nonsymmetric."""
    rng = np.random.default_rng(seed)
    weights = 0.9 * rng.standard_normal((size, size)) / np.sqrt(size)
    theta = rng.standard_normal(size) / 2
    wanted = rng.standard_normal(size)
    x = np.zeros(size)
    for _ in range(2000):
        x, old = np.tanh(weights @ x + theta), x
        if np.linalg.norm(x - old) <= 1e-15 * np.linalg.norm(x):
            break
    slopes = 1 - x**2
    matrix = (np.eye(size) - slopes[:, None] * weights).T
    factors = scipy.linalg.lu_factor(matrix)
    rhs = (x - wanted) / size
    adjoint = scipy.linalg.lu_solve(factors, rhs)
    adjoint += scipy.linalg.lu_solve(factors, rhs - matrix @ adjoint)

    def residual(x, theta, data):
        return x - jnp.tanh(data.features @ x + theta)

    def jacobian(x, theta, data):
        slopes = 1 - jnp.tanh(data.features @ x + theta) ** 2
        return jnp.eye(x.size) - slopes[:, None] * data.features

    return Case(
        f"nonsymmetric n={size}",
        residual,
        None,
        jacobian,
        lambda x, data: jnp.mean((x - data.targets) ** 2) / 2,
        Data(jnp.asarray(weights), jnp.asarray(wanted), jnp.zeros(0), jnp.zeros(0)),
        jnp.asarray(theta),
        jnp.asarray(x),
        jnp.asarray(slopes * adjoint),
        1.0,
    )
