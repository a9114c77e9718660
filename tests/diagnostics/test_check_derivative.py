"""`check_derivative` names the part that is wrong."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import iterdiff as itd
from tests.cases import build


class Case(NamedTuple):
    """A call of `check_derivative`, and what it must find.

    `culprit` starts the name of the first check that fails, and `cause` is part of its
    explanation; None and empty if every check passes.
    """

    problem: itd.Problem
    algorithm: Any
    culprit: str | None = None
    cause: str = ""
    x0: Any = (0.0, 0.0)
    theta: Any = (1.0, 2.0)
    steps: int = 100
    dtype: str = "float64"

    def check(self) -> itd.Checkup:
        """Run the check: once per case, since it compiles about ten programs."""
        x0, theta = (
            jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), value, is_leaf=is_numbers)
            for value in (self.x0, self.theta)
        )
        stop = itd.Steps(self.steps) if isinstance(self.algorithm, itd.Algorithm) else None
        return itd.check_derivative(self.problem, self.algorithm, x0, theta, stop=stop)


def is_numbers(value):
    return isinstance(value, tuple) and all(isinstance(number, float) for number in value)


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


class WithMemory(Own):
    """The same, with a state that holds more than the iterate."""

    def init(self, problem, x0, theta):
        """Return the iterate and a counter."""
        del problem, theta
        return Counted(x0, jnp.zeros((), x0.dtype))

    def step(self, problem, state, theta):
        """Step."""
        del problem
        return Counted(state.x - 0.5 * self.function(state.x, theta), state.count + 1)


class Counted(itd.State):
    """A state that counts steps."""

    x: jax.Array
    count: jax.Array


def cubic(x, theta):
    """Vanish at a root that is nonlinear in theta."""
    return x + 0.1 * x**3 - theta


def with_wrong_rule(right: Callable, factor: float) -> Callable:
    """Return the function with its derivative multiplied by a factor."""

    @jax.custom_jvp
    def function(x):
        return right(x)

    function.defjvp(lambda p, t: (right(p[0]), factor * jax.jvp(right, p, t)[1]))
    return function


@jax.custom_jvp
def wrong_cubic(a, x):
    """Return ``a + x^3 / 10``, with minus its derivative."""
    return a + 0.1 * x**3


wrong_cubic.defjvp(lambda p, t: (wrong_cubic(*p), -t[0] - 0.3 * p[1] ** 2 * t[1]))


def wrong_transpose(x):
    """Return ``x``, with a transpose that is wrong by a factor of two."""
    return jax.custom_derivatives.linear_call(lambda _, x: x, lambda _, w: 2 * w, (), x)


hidden = jax.lax.stop_gradient
square = with_wrong_rule(jnp.square, -1.0)
fold = with_wrong_rule(lambda x: jnp.where(x < 0, -x, x), 5.0)
cube = with_wrong_rule(lambda x: x**3, 3.0)
skewed = jnp.array([[2.0, 1.0], [0.0, 2.0]])


class NotSymmetric(itd.Problem):
    """Declare a symmetry that the residual does not have."""

    @property
    def symmetric(self):
        """Declare it."""
        return True

    def residual(self, x, theta):
        """Return a residual whose derivative is not symmetric."""
        return skewed @ x / 3 - theta


def root(function) -> itd.RootFinding:
    return itd.RootFinding(function)


WRONG = {
    "not converged": Case(
        root(cubic), Own(cubic), "residual vanishes", "not converged", steps=2
    ),
    "not converged to zero": Case(
        itd.Minimization(lambda x, t: jnp.sum((1 + t[0] ** 2) * x**2)), itd.GradientDescent(0.05),
        "residual vanishes", "not converged", x0=(1.0, 1.0), theta=(0.5,), steps=10,
    ),
    "another problem": Case(
        root(lambda x, t: cubic(x, 1.05 * t)), Own(cubic), "residual vanishes",
        "different problems",
    ),
    "another problem, with memory": Case(
        root(lambda x, t: cubic(x, 1.05 * t)), WithMemory(cubic), "residual vanishes",
        "another problem",
    ),
    "residual hides theta": Case(
        root(lambda x, t: cubic(x, hidden(t))), Own(cubic), "residual: derivative in theta",
        "stop_gradient",
    ),
    "residual hides theta in one term": Case(
        root(lambda x, t: x + 0.1 * hidden(t) * x**3 - t), itd.Newton(),
        "residual: derivative in theta", "uses stop_gradient", dtype="float32",
    ),
    "step hides theta": Case(
        root(cubic), Own(lambda x, t: cubic(x, hidden(t))), "step: derivative in theta",
        "stop_gradient",
    ),
    "step rounds": Case(
        root(cubic), Own(lambda x, t: jnp.round(cubic(x, t) * 1e7) / 1e7), "step: derivative in x",
        "uses round",
    ),
    "sign of a rule in theta": Case(
        root(lambda x, t: cubic(x, square(t))), Own(lambda x, t: cubic(x, t**2)),
        "residual: derivative in theta", "wrong sign",
    ),
    "sign of a rule in x": Case(
        root(lambda x, t: wrong_cubic(x - t, x)), itd.Newton(), "residual: derivative in x",
        "wrong sign", dtype="float32",
    ),
    "sign of a rule in the step": Case(
        root(cubic), Own(lambda x, t: wrong_cubic(x - t, x)), "step: derivative in x", "wrong sign",
    ),
    "sign of theta": Case(
        root(lambda x, t: cubic(x, -t)), Own(cubic), "residual vanishes", "wrong sign"
    ),
    "sign of a term": Case(
        root(lambda x, t: jnp.exp(x) - 1 + t),
        lambda x0, t: np.log1p(np.asarray(t)), "residual vanishes", "wrong sign",
    ),
    "derivative not finite": Case(
        root(lambda x, t: x - jnp.sqrt(jnp.abs(t - 1))),
        Own(lambda x, t: x - jnp.sqrt(jnp.abs(t - 1))), "residual: derivative in theta",
        "not finite",
    ),
    "rule in x": Case(
        root(lambda x, t: x + 0.1 * cube(x) - t), Own(cubic), "residual: derivative in x",
        "custom derivative rule",
    ),
    "rule at a kink": Case(
        root(lambda x, t: cubic(x, fold(t - 1))), Own(lambda x, t: cubic(x, jnp.abs(t - 1))),
        "residual: derivative in theta", "kink",
    ),
    "rule of a constant": Case(
        root(lambda x, t: cubic(x, t + hidden(jnp.round(t) - t))),
        Own(lambda x, t: cubic(x, jnp.round(t))), "residual: derivative in theta",
        "uses round, stop_gradient",
    ),
    "transpose in theta": Case(
        root(lambda x, t: cubic(x, wrong_transpose(t))), Own(cubic), "residual: forward in theta",
        "custom derivative rule",
    ),
    "rule in the objective": Case(
        itd.Minimization(
            lambda x, t: with_wrong_rule(lambda x: jnp.sum(x**2), 0.5)(x) - x @ t
        ),
        itd.GradientDescent(0.3), "objective", "uses custom_jvp", x0=(1.0, 1.0),
    ),
    "symmetry": Case(NotSymmetric(), Own(lambda x, t: skewed @ x / 3 - t), "d residual", "declare"),
    "divergence": Case(
        itd.Minimization(lambda x, t: jnp.sum((x - t) ** 4)), itd.GradientDescent(9.0),
        "the run ends", "smaller",
    ),
    "not finite at the start": Case(
        root(lambda x, t: jnp.log(x) - t), itd.Newton(), "the run ends", "x0", x0=(-1.0, -1.0),
    ),
    "answer not finite": Case(
        root(cubic), lambda x0, t: np.full_like(x0, np.nan), "the run ends", "not finite",
    ),
    "neither start nor answer finite": Case(
        root(lambda x, t: jnp.log(x) - t), lambda x0, t: np.full_like(x0, np.nan),
        "the run ends", "x0", x0=(-1.0, -1.0),
    ),
    "singular": Case(
        root(lambda x, t: (x - t) ** 2), lambda x0, t: np.asarray(t), "residual vanishes",
        "singular",
    ),
    "solver of another problem": Case(
        root(lambda x, t: cubic(x, 1.3 * t)), lambda x0, t: newton_in_numpy(x0, t),
        "residual vanishes", "another problem",
    ),
}  # fmt: skip


def newton_in_numpy(x0, theta):
    """Solve `cubic` where JAX cannot look."""
    x = np.asarray(x0)
    for _ in range(40):
        x = x - cubic(x, np.asarray(theta)) / (1 + 0.3 * x**2)
    return x


@pytest.mark.parametrize("name", WRONG)
def test_names_the_part_that_is_wrong(name):
    case = WRONG[name]
    found = case.check()
    assert not found.ok
    assert found.culprit.name.startswith(case.culprit), found.culprit.name
    assert case.cause in found.culprit.explanation, found.culprit.explanation
    text = str(found)
    assert found.culprit.name in text and max(map(len, text.splitlines())) <= 80


def shrink(x, by, theta):
    """Be the proximal operator of the l1 norm."""
    del theta
    return itd.prox.soft_threshold(x, by)


LASSO = itd.CompositeMinimization(lambda x, t: jnp.sum((x - t) ** 2) / 2, shrink)
KINKS = {
    "lasso": Case(LASSO, itd.ProximalGradient(0.5), cause="weakly_active", theta=(1.0, 3.0)),
    "fixed point": Case(
        itd.FixedPoint(lambda x, t: 0.5 * jnp.abs(x) + t), itd.Picard(), theta=(0.0, 0.5)
    ),
    "root": Case(
        root(lambda x, t: 2 * x + jnp.abs(x - 1) - t - 1), itd.Newton(), theta=(1.0, 3.0),
        dtype="float32",
    ),
    "theta": Case(root(lambda x, t: x + 0.1 * x**3 - jnp.abs(t - 1)), itd.Newton()),
    # NumPy has no rule for the derivative at a tie.
    "solver": Case(
        root(lambda x, t: x - jnp.maximum(t, 1)),
        lambda x0, t: np.maximum(np.asarray(t), np.ones((), t.dtype)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINKS)
def test_a_kink_is_told_apart_from_a_run_that_is_too_short(name):
    case = KINKS[name]
    found = case.check()
    assert found.culprit.name.startswith("solution: slope")
    assert "one-sided" in found.culprit.explanation
    assert ("weakly_active" in found.culprit.explanation) == (name == "lasso")


def ridge_to_zero(x, theta):
    """Be smallest at zero, whatever theta is."""
    return jnp.sum((1 + theta[0] ** 2) * x**2)


def in_two_units(x, theta):
    """Have an unknown and a parameter in each of two units that are far apart."""
    units = jnp.asarray([1.0, 1e4], x.dtype)
    return x / units + (x / units) ** 3 - theta["p"] - theta["q"] / jnp.asarray(1e4, x.dtype)


def from_the_zoo(name: str, dtype: str = "float64") -> Case:
    case = build(name, dtype)
    suited = case.algorithms[-1]
    steps = suited.fixed.max_steps
    return Case(
        case.problem, suited.algorithm, x0=case.x0, theta=case.theta, steps=steps, dtype=dtype
    )


RIGHT = {
    "newton": lambda: Case(root(cubic), itd.Newton()),
    "own algorithm": lambda: Case(root(cubic), Own(cubic)),
    "own solver": lambda: Case(root(cubic), newton_in_numpy),
    "start outside the domain": lambda: Case(
        root(lambda x, t: jnp.log(x) - t), lambda x0, t: np.exp(t), x0=(-1.0, -1.0)
    ),
    # A Newton step that is long only relative to the solution, which is zero.
    "zero after 100 steps": lambda: Case(
        itd.Minimization(ridge_to_zero), itd.GradientDescent(0.1), x0=(1.0, 1.0), theta=(0.5,)
    ),
    "zero to rounding": lambda: Case(
        itd.Minimization(ridge_to_zero), itd.GradientDescent(0.1), x0=(1.0, 1.0), theta=(0.5,),
        steps=500, dtype="float32",
    ),
    "next to a kink": lambda: Case(LASSO, itd.ProximalGradient(0.5), theta=(1.001, 3.0)),
    "on the flat side of a kink": lambda: Case(LASSO, itd.ProximalGradient(0.5), theta=(0.9, 3.0)),
    "two units": lambda: Case(
        root(in_two_units), itd.Newton(), x0=(1.0, 1e4), theta={"p": (1.0, 2.0), "q": (1e4, 1e4)},
        steps=30, dtype="float32",
    ),
    "krylov": lambda: from_the_zoo("spd_system"),
    "tree": lambda: from_the_zoo("coupled_tree", "float32"),
    "tree of equations": lambda: from_the_zoo("cubic_tree"),
    "fixed points": lambda: from_the_zoo("babylonian_tree"),
    "prox": lambda: from_the_zoo("nonnegative_tree"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_passes_what_is_right(name):
    found = RIGHT[name]().check()
    assert found.ok and found.culprit is None, str(found)
    assert not any(finding.explanation for finding in found.findings)
    assert max(map(len, str(found).splitlines())) <= 80


STOP = itd.Steps(100)
WRONG_CALLS = {
    "no stop": ({"stop": None}, ValueError, "`stop`"),
    "stop of a solver": ({"algorithm": newton_in_numpy}, ValueError, "`stop`"),
    "no algorithm": ({"algorithm": "newton"}, TypeError, "`algorithm`"),
    "tol of zero": ({"tol": 0}, ValueError, "`tol`"),
    "negative tol": ({"tol": -1.0}, ValueError, "`tol`"),
    "tol not a number": ({"tol": float("nan")}, ValueError, "`tol`"),
    "tol in words": ({"tol": "a"}, TypeError, "`tol`"),
    "several tols": ({"tol": np.ones(2)}, TypeError, "`tol`"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    changed, error, argument = WRONG_CALLS[name]
    arguments = {"algorithm": itd.Newton(), "stop": STOP} | changed
    algorithm = arguments.pop("algorithm")
    with pytest.raises(error, match=argument):
        itd.check_derivative(root(cubic), algorithm, jnp.zeros(2), jnp.ones(2), **arguments)


def test_a_tolerance_of_ones_own():
    found = itd.check_derivative(
        root(lambda x, t: cubic(x, 1.05 * t)), Own(cubic), jnp.zeros(2), jnp.ones(2), stop=STOP,
        tol=0.2,
    )  # fmt: skip
    assert found.ok, str(found)
