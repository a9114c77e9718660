"""`check_derivative` names the part that is wrong."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

THETA = jnp.array([1.0, 2.0])
START = jnp.zeros(2)
LONG = itd.Steps(100)


def cubic(x, theta):
    """Vanish at a root that bends with theta."""
    return x + 0.1 * x**3 - theta


class Own(itd.Algorithm):
    """A user's own algorithm: half a step down some function."""

    function: Callable
    accepts: ClassVar[tuple[type[itd.Problem], ...]] = (itd.Problem,)

    def init(self, problem, x0, theta):
        """Return the iterate."""
        del problem, theta
        return itd.Iterate(x0)

    def step(self, problem, state, theta):
        """Step."""
        del problem
        return itd.Iterate(state.x - 0.5 * self.function(state.x, theta))


def with_wrong_rule(right: Callable, factor: float) -> Callable:
    """Return the function with its derivative multiplied."""

    @jax.custom_jvp
    def function(x):
        return right(x)

    function.defjvp(lambda p, dots: (right(p[0]), factor * jax.jvp(right, p, dots)[1]))
    return function


def constant(theta):
    """Hide theta from differentiation."""
    return jax.lax.stop_gradient(theta)


square = with_wrong_rule(jnp.square, -1.0)
cube = with_wrong_rule(lambda x: x**3, 3.0)
SKEW = jnp.array([[2.0, 1.0], [0.0, 2.0]])


class NotSymmetric(itd.Problem):
    """Declare what is not so."""

    @property
    def symmetric(self):
        """Say so."""
        return True

    def residual(self, x, theta):
        """Return a residual whose derivative is not symmetric."""
        return SKEW @ x / 3 - theta


WRONG = {
    "not converged": (cubic, Own(cubic), itd.Steps(2), "residual vanishes", "not converged"),
    "another problem": (
        lambda x, t: cubic(x, 1.05 * t), Own(cubic), LONG, "residual vanishes",
        "different problems",
    ),
    "residual hides theta": (
        lambda x, t: cubic(x, constant(t)), Own(cubic), LONG, "residual: derivative in theta",
        "stop_gradient",
    ),
    "step hides theta": (
        cubic, Own(lambda x, t: cubic(x, constant(t))), LONG, "step: derivative in theta",
        "stop_gradient",
    ),
    "step rounds": (
        cubic, Own(lambda x, t: jnp.round(cubic(x, t) * 1e7) / 1e7), LONG, "step: derivative in x",
        "not differentiable",
    ),
    "sign in theta": (
        lambda x, t: cubic(x, square(t)), Own(lambda x, t: cubic(x, t**2)), LONG,
        "residual: derivative in theta", "wrong sign",
    ),
    "rule in x": (
        lambda x, t: x + 0.1 * cube(x) - t, Own(cubic), LONG, "residual: derivative in x",
        "custom derivative rule",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_names_the_part_that_is_wrong(name):
    residual, algorithm, stop, part, why = WRONG[name]
    found = itd.check_derivative(itd.RootFinding(residual), algorithm, START, THETA, stop=stop)
    assert not found.ok
    assert found.culprit.name.startswith(part)
    assert why in found.culprit.explanation
    text = str(found)
    assert found.culprit.name in text and max(map(len, text.splitlines())) <= 80


def test_a_symmetry_that_is_not_there():
    algorithm = Own(lambda x, t: SKEW @ x / 3 - t)
    found = itd.check_derivative(NotSymmetric(), algorithm, START, THETA, stop=LONG)
    assert "symmetric" in found.culprit.name


@pytest.mark.parametrize("algorithm", [itd.Newton(), Own(cubic)], ids=["newton", "own"])
def test_passes_what_is_right(algorithm):
    problem = itd.RootFinding(cubic)
    found = itd.check_derivative(problem, algorithm, START, THETA, stop=LONG)
    assert found.ok and found.culprit is None
    assert "Nothing wrong" in str(found)


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_a_solver_of_ones_own(factor):
    def solver(x0, theta):
        x = np.asarray(x0)
        for _ in range(40):
            x = x - cubic(x, np.asarray(theta)) / (1 + 0.3 * x**2)
        return x

    problem = itd.RootFinding(lambda x, t: cubic(x, factor * t))
    found = itd.check_derivative(problem, solver, START, THETA)
    assert found.ok == (factor == 1)
    if not found.ok:
        assert "another problem" in found.culprit.explanation


def test_a_stopping_rule_goes_with_an_algorithm():
    problem = itd.RootFinding(cubic)
    with pytest.raises(ValueError, match="`stop`"):
        itd.check_derivative(problem, itd.Newton(), START, THETA)
    with pytest.raises(ValueError, match="`stop`"):
        itd.check_derivative(problem, lambda x0, theta: x0, START, THETA, stop=LONG)
