"""Data and problems that several benchmarks share, each with its true answer.

The truths come from dense factorisations in NumPy with one step of iterative refinement.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from benchmarks.speed.case import Case, Data


def _penalised(fit: Callable) -> Callable:
    """Return the objective: fit plus a quadratic penalty with one log-weight per feature."""
    return lambda x, theta, data: fit(x, data.features, data.targets) + jnp.exp(theta) @ x**2 / 2


def logistic_fit(x, features, signs):
    """Return the log-loss."""
    return jnp.mean(jnp.logaddexp(0.0, -signs * (features @ x)))


@jax.custom_jvp
def softplus(margins):
    """Return ``log(1 + exp(margins))`` with a derivative rule: a sigmoid."""
    return jnp.logaddexp(0.0, margins)


@softplus.defjvp
def _(primals, tangents):
    return softplus(*primals), jax.nn.sigmoid(*primals) * tangents[0]


def slope_by_hand(case: Case) -> Case:
    """Return a case of logistic regression whose loss has a derivative rule, as users may give."""
    objective = _penalised(lambda x, features, signs: jnp.mean(softplus(-signs * (features @ x))))
    return dataclasses.replace(case, objective=objective, residual=jax.grad(objective))


def logistic_hessian(x, theta, data):
    """Return X' D X / m + diag(exp(theta))."""
    s = jax.nn.sigmoid(data.features @ x)
    weighted = data.features.T * (s * (1 - s))[None, :]
    return weighted @ data.features / data.features.shape[0] + jnp.diag(jnp.exp(theta))


def ridge_fit(x, features, targets):
    """Return half the mean square of the misfit."""
    return jnp.mean((features @ x - targets) ** 2) / 2


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
    """Return a lower bound by power iteration, accurate to about 0.1 %."""
    v = np.ones(matrix.shape[0])
    for _ in range(200):
        v = matrix @ (v / np.linalg.norm(v))
    return float(np.linalg.norm(v))


def logistic(name: str, data: Data, penalty: float) -> Case:
    """Return logistic regression on `data`, solved by Newton's method."""
    features, signs, held_features, held_signs = map(np.asarray, data)
    count, size = features.shape
    x = np.zeros(size)
    for _ in range(40):
        s = 1 / (1 + np.exp(signs * (features @ x)))
        slope = -(features.T @ (signs * s)) / count + penalty * x
        hessian = (features.T * (s * (1 - s))) @ features / count + penalty * np.eye(size)
        move = _refined(hessian, slope)
        x = x - move * min(1.0, 2.0 / np.linalg.norm(features @ move, np.inf).clip(1e-300))
        if np.linalg.norm(move) <= 1e-15 * np.linalg.norm(x):
            break
    s = 1 / (1 + np.exp(held_signs * (held_features @ x)))
    held_slope = -(held_features.T @ (held_signs * s)) / len(held_signs)
    adjoint = _refined(hessian, held_slope)
    curvature = _largest_eigenvalue(features.T @ features) / (4 * count) + penalty
    answer = x, -penalty * x * adjoint, 1 / curvature
    return _regression(name, (logistic_fit, logistic_hessian), data, penalty, answer)


def ridge(name: str, data: Data, penalty: float) -> Case:
    """Return ridge regression on `data`."""
    features, targets, held_features, held_targets = map(np.asarray, data)
    count, size = features.shape
    hessian = features.T @ features / count + penalty * np.eye(size)
    x = _refined(hessian, features.T @ targets / count)
    held_slope = held_features.T @ (held_features @ x - held_targets) / len(held_targets)
    adjoint = _refined(hessian, held_slope)
    answer = x, -penalty * x * adjoint, 1 / _largest_eigenvalue(hessian)
    return _regression(name, (ridge_fit, ridge_hessian), data, penalty, answer)


def _regression(name: str, model: tuple, data: Data, penalty: float, answer: tuple) -> Case:
    """Return the case of a model (fit, Hessian) with its answer (x, gradient, step size)."""
    (fit, hessian), (x, gradient, step_size) = model, answer
    objective = _penalised(fit)
    return Case(
        name,
        objective,
        jax.grad(objective),
        hessian,
        lambda x, data: fit(x, data.held_features, data.held_targets),
        Data(*map(jnp.asarray, data)),
        jnp.full(x.size, np.log(penalty)),
        step_size,
        jnp.asarray(x),
        jnp.asarray(gradient),
    )


@functools.cache
def samples() -> tuple[jax.Array, jax.Array]:
    """Return the breast-cancer data: 569 x 30 standardised features, and classes as signs."""
    from sklearn.datasets import load_breast_cancer

    features, classes = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    return jnp.asarray(features), jnp.asarray(2.0 * classes - 1)


def breast_cancer() -> Data:
    """Return all samples for training, and every third of them for the loss."""
    features, signs = samples()
    return Data(features, signs, features[::3], signs[::3])


def synthetic(kind: str, count: int, size: int, seed: int = 0) -> Data:
    """Return random samples.

    Parameters
    ----------
    kind : {"signs", "numbers", "ill"}
        "signs": the targets are signs; the scales of the features span a decade. "numbers": the
        targets are numbers; all features have one scale. "ill": the targets are numbers; there
        are as many samples as features, whose squared singular values span six decades.
    count, size : int
        Number of training samples and of unknowns.
    seed : int
        Seed of the generator.
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
    """Return an implicit layer, x = tanh(W x + theta), whose Jacobian is nonsymmetric."""
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
        None,
        residual,
        jacobian,
        lambda x, data: jnp.mean((x - data.targets) ** 2) / 2,
        Data(jnp.asarray(weights), jnp.asarray(wanted), jnp.zeros(0), jnp.zeros(0)),
        jnp.asarray(theta),
        1.0,
        jnp.asarray(x),
        jnp.asarray(slopes * adjoint),
    )
