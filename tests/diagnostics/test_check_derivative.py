"""`check_derivative` names the part that is wrong."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import iterdiff as itd
from tests.cases import DTYPES, NAMES, build

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
    "a root at zero": (
        lambda x, t: x - jnp.sqrt(jnp.abs(t - 1)), Own(lambda x, t: x - jnp.sqrt(jnp.abs(t - 1))),
        LONG, "residual: derivative in theta", "not finite",
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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("steps", [100, 200, 500])
def test_a_solution_of_zero_is_no_alarm(steps, dtype):
    problem = itd.Minimization(lambda x, t: jnp.sum((1 + t**2) * x**2))
    run = itd.GradientDescent(0.1), jnp.ones(2, dtype), jnp.asarray(0.5, dtype)
    found = itd.check_derivative(problem, *run, stop=itd.Steps(steps))
    assert found.ok, str(found)


def test_nor_is_it_a_licence():
    problem = itd.Minimization(lambda x, t: jnp.sum((1 + t**2) * x**2))
    run = itd.GradientDescent(0.05), jnp.ones(2), jnp.array(0.5)
    found = itd.check_derivative(problem, *run, stop=itd.Steps(10))
    assert "not converged" in found.culprit.explanation


def shrink(x, by, theta):
    """Be the proximal operator of the l1 norm."""
    del theta
    return itd.prox.soft_threshold(x, by)


def maximum(x0, theta):
    """Solve, without a rule for what JAX sees at a tie."""
    del x0
    return np.maximum(np.asarray(theta), np.ones((), theta.dtype))


LASSO = itd.CompositeMinimization(lambda x, t: jnp.sum((x - t) ** 2) / 2, shrink)
KINKS = {
    "lasso": (LASSO, itd.ProximalGradient(0.5), [1.0, 3.0]),
    "fixed point": (itd.FixedPoint(lambda x, t: 0.5 * jnp.abs(x) + t), itd.Picard(), [0.0, 0.5]),
    "root": (
        itd.RootFinding(lambda x, t: 2 * x + jnp.abs(x - 1) - t - 1), itd.Newton(), [1.0, 3.0],
    ),
    "theta": (
        itd.RootFinding(lambda x, t: x + 0.1 * x**3 - jnp.abs(t - 1)), itd.Newton(), [1.0, 2.0],
    ),
    "solver": (itd.RootFinding(lambda x, t: x - jnp.maximum(t, 1)), maximum, [1.0, 2.0]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", KINKS)
def test_a_kink_is_not_a_matter_of_more_steps(name, dtype):
    problem, algorithm, theta = KINKS[name]
    stop = itd.Steps(200) if isinstance(algorithm, itd.Algorithm) else None
    run = algorithm, jnp.zeros(2, dtype), jnp.array(theta, dtype)
    found = itd.check_derivative(problem, *run, stop=stop)
    assert found.culprit.name.startswith("solution: slope")
    assert "one-sided" in found.culprit.explanation
    assert ("weakly_active" in found.culprit.explanation) == (name == "lasso")


@pytest.mark.parametrize("at", [0.9, 1.001])
def test_a_kink_that_is_near_is_none(at):
    run = itd.ProximalGradient(0.5), jnp.zeros(2), jnp.array([at, 3.0])
    assert itd.check_derivative(LASSO, *run, stop=itd.Steps(200)).ok


def with_wrong_sign(x, theta):
    """Vanish where `cubic` does, with the derivative of minus it."""
    return wrong_cubic(x - theta, x)


@jax.custom_jvp
def wrong_cubic(a, x):
    """Return ``a + x^3 / 10``."""
    return a + 0.1 * x**3


wrong_cubic.defjvp(lambda p, d: (wrong_cubic(*p), -d[0] - 0.3 * p[1] ** 2 * d[1]))


def solver_of(residual, sign=1):
    """Return a solver by Newton's method."""

    def solver(x0, theta):
        return sign * itd.solve(itd.RootFinding(residual), itd.Newton(), x0, theta, stop=LONG).x

    return solver


OPPOSED = {
    "rule in a residual": (with_wrong_sign, itd.Newton(), "residual: derivative in x"),
    "rule in a step": (cubic, Own(with_wrong_sign), "step: derivative in x"),
    "residual": (lambda x, t: cubic(x, -t), Own(cubic), "residual vanishes"),
    "a term of a residual": (
        lambda x, t: jnp.exp(x) - 1 + t, solver_of(lambda x, t: jnp.exp(x) - 1 - t),
        "residual vanishes",
    ),
    "answer": (cubic, solver_of(cubic, -1), "residual vanishes"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPPOSED)
def test_a_wrong_sign_is_called_so(name, dtype):
    residual, algorithm, part = OPPOSED[name]
    stop = LONG if isinstance(algorithm, itd.Algorithm) else None
    run = algorithm, START.astype(dtype), THETA.astype(dtype)
    found = itd.check_derivative(itd.RootFinding(residual), *run, stop=stop)
    assert found.culprit.name.startswith(part)
    assert "wrong sign" in found.culprit.explanation


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_of_two_ways_is_hidden(dtype):
    def residual(x, theta):
        return x + 0.1 * constant(theta) * x**3 - theta

    run = itd.Newton(), START.astype(dtype), THETA.astype(dtype)
    found = itd.check_derivative(itd.RootFinding(residual), *run, stop=LONG)
    assert found.culprit.name.startswith("residual: derivative in theta")
    assert "stop_gradient hides one of the ways" in found.culprit.explanation
    assert "made of: stop_gradient" in found.culprit.explanation


def test_an_objective_with_a_wrong_rule():
    sinks = with_wrong_rule(lambda x: jnp.sum(x**2), 0.5)
    problem = itd.Minimization(lambda x, t: sinks(x) - x @ t)
    run = itd.GradientDescent(0.3), jnp.ones(2), THETA
    found = itd.check_derivative(problem, *run, stop=LONG)
    assert found.culprit.name.startswith("objective")


def test_a_run_that_diverges_says_so():
    problem = itd.Minimization(lambda x, t: jnp.sum((x - t) ** 4))
    run = itd.GradientDescent(9.0), jnp.zeros(2), THETA
    found = itd.check_derivative(problem, *run, stop=LONG)
    assert "step size smaller" in found.culprit.explanation


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-9, "float64"), (1e9, "float64"), (1e4, "float32")]
)
def test_units_do_not_matter(scale, dtype):
    # one parameter and one unknown in each of two units that are far apart
    units = jnp.array([1.0, scale], dtype)
    problem = itd.RootFinding(lambda x, t: x / units + (x / units) ** 3 - t["p"] - t["q"] / scale)
    theta = {"p": jnp.array([1.0, 2.0], dtype), "q": jnp.asarray(scale, dtype)}
    found = itd.check_derivative(problem, itd.Newton(), units, theta, stop=itd.Steps(30))
    assert found.ok, str(found)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_passes_the_zoo(number):
    case = build(NAMES[number], DTYPES[number % 2])
    suited = case.algorithms[-1]
    run = suited.algorithm, case.x0, case.theta
    found = itd.check_derivative(case.problem, *run, stop=suited.fixed)
    assert found.ok, str(found)


@pytest.mark.parametrize("tol", [0, -1.0, "a", np.ones(2), float("nan")])
def test_a_tolerance_is_a_positive_number(tol, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    kind = ValueError if isinstance(tol, int | float) else TypeError
    with pytest.raises(kind, match="`tol` must be"):
        itd.check_derivative(itd.RootFinding(cubic), itd.Newton(), START, THETA, stop=LONG, tol=tol)
