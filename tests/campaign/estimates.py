"""Estimates of errors that are known: a wrong derivative must not pass, unless it says so."""

import random
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from tests.campaign.call import Call

SEED = 7
COUNT = 120
FACTOR = 2.0
"""A trusted estimate is within this factor of the truth."""

ROOTS = {  # residual, and the root as a function of theta
    "square": (lambda x, t: x**2 - t, lambda t: jnp.sqrt(t)),
    "exponential": (lambda x, t: jnp.exp(x) - t, lambda t: jnp.log(t)),
    "logarithm": (lambda x, t: jnp.log(x) - jnp.log(t) / 2, lambda t: jnp.sqrt(t)),
    "linear": (lambda x, t: 3 * x - t, lambda t: t / 3),
    "cubic": (lambda x, t: x**3 + x - t**3 - t, lambda t: t),
    "scaled": (lambda x, t: 1e-9 * (x**2 - t), lambda t: jnp.sqrt(t)),
}


def _estimate(name: str, theta: Any, shift: float, factor: float) -> tuple[Any, float, Any]:
    residual, root = ROOTS[name]
    solution = root(theta)
    exact = jax.vmap(jax.grad(root))(theta)
    derivative = jnp.diag(exact * factor)
    estimate = itd.derivative_error(
        itd.RootFinding(residual), solution * (1 + shift), theta, derivative, near=jnp.inf
    )
    truth = float(jnp.linalg.norm(derivative - jnp.diag(exact)))
    return estimate, truth, exact


def _within(name: str, theta: Any, shift: float, factor: float) -> Call:
    def run() -> Any:
        estimate, truth, exact = _estimate(name, theta, shift, factor)
        size = float(jnp.linalg.norm(exact))
        said = float(estimate.absolute)
        if truth <= 1e-9 * size:  # right: must not be called wrong
            return float(bool(estimate.exceeds(1e-2)) and bool(estimate.trusted))
        if not bool(estimate.trusted):
            return 0.0
        return float(not truth / FACTOR <= said <= truth * FACTOR)

    return Call(
        f"trusted: {name}, theta {theta}, x off by {shift:.2g}, derivative times {factor:.3g}",
        run,
        right=lambda: 0.0,
    )


def _flagged(name: str, theta: Any, shift: float, factor: float) -> Call:
    def run() -> Any:
        estimate, truth, exact = _estimate(name, theta, shift, factor)
        wrong = truth > 3e-2 * float(jnp.linalg.norm(exact))
        return float(wrong and not bool(estimate.exceeds(1e-2)))

    return Call(
        f"flagged: {name}, theta {theta}, x off by {shift:.2g}, derivative times {factor:.3g}",
        run,
        right=lambda: 0.0,
    )


def calls() -> Iterator[Call]:
    """Yield estimates of derivatives that are wrong by a known factor, at points that are off."""
    draw = random.Random(SEED)
    for _ in range(COUNT):
        name = draw.choice(sorted(ROOTS))
        theta = jnp.asarray(np.round([draw.uniform(0.5, 3.0), draw.uniform(0.5, 3.0)], 2))
        shift = draw.choice([0.0, 1.0, -1.0]) * 10 ** draw.uniform(-12, -1.3)
        factor = 1 + draw.choice([0.0, 1.0, -1.0]) * 10 ** draw.uniform(-6, 0.5)
        yield _within(name, theta, shift, factor)
        yield _flagged(name, theta, shift, factor)
