"""Error estimates of derivatives, against errors that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.accuracy.reasons import (
    AWAY,
    NO_VALUE,
    NOT_FINITE,
    OF_CORRECTED,
    OK,
    REASONS,
    SINGULAR,
    TOO_FAR,
)
from iterdiff.jaxtools import tree
from tests.cases import build
from tests.helpers import compiled, dot, fixed_direction, relative_error

FORMS = ("jacobian", "tangent", "cotangent", "loss")
# Curved problems, a tree, a linear one, a fixed point and a nonsmooth one. What a form does depends
# on no problem: a tree has all of them, and every other problem one of each direction.
FORMS_OF = {
    "coupled_tree": FORMS,
    "poisson": ("jacobian", "loss"),
    "spd_system": ("tangent", "cotangent"),
    "cosine": ("tangent", "loss"),
    "nonnegative_tree": ("jacobian", "cotangent"),
}
each_pair = pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, forms in FORMS_OF.items() for form in forms]
)


def loss(x, theta):
    """Depend on theta directly, too."""
    return dot(x, x) + dot(theta, theta)


def applied(form, solution, theta, x):
    """Return the derivative of `solution` in this form, and the keyword for the form."""
    v, w = fixed_direction(theta), fixed_direction(x)
    made = {
        "jacobian": lambda: (jax.jacfwd(solution)(theta), {}),
        "tangent": lambda: (jax.jvp(solution, (theta,), (v,))[1], {"tangent": v}),
        "cotangent": lambda: (jax.vjp(solution, theta)[1](w)[0], {"cotangent": w}),
        "loss": lambda: (jax.grad(lambda t: loss(solution(t), t))(theta), {"loss": loss}),
    }
    return made[form]()


def away(case, distance):
    """Return a point at this relative distance from the solution."""
    return jax.tree.map(lambda leaf: leaf * (1 + distance), case.solution(case.theta))


DISTANCES = (1e-3, 0.1)


@functools.cache
def all_estimates(name: str):
    """Return, by form, of the implicit derivative at both `DISTANCES`: estimate and truth."""
    case, theta = build(name), build(name).theta

    def all_forms(distance):
        x = away(case, distance)

        def at_x(theta):
            return itd.Implicit().attach(case.problem, x, theta, throw=False)

        found = {}
        for form in FORMS_OF[name]:
            wrong, options = applied(form, at_x, theta, x)
            right, _ = applied(form, case.solution, theta, x)
            estimate = itd.derivative_error(case.problem, x, theta, wrong, **options)
            error, size = tree.norm(tree.sub(wrong, right)), tree.norm(right)
            better = tree.norm(tree.sub(estimate.corrected, right))
            found[form] = (estimate, error, size, better)
        return found

    return compiled(jax.vmap(all_forms))(jnp.array(DISTANCES))


def estimates(name: str, distance: float):
    """Return, by form: the estimate of the implicit derivative's error, and the truth."""
    at = DISTANCES.index(distance)
    found = jax.tree.map(lambda leaf: leaf[at], all_estimates(name))
    return {form: (got[0], *map(float, got[1:])) for form, got in found.items()}


@each_pair
def test_estimates_the_error_of_an_implicit_derivative(name, form):
    estimate, error, size, better = estimates(name, 1e-3)[form]
    assert estimate.trusted
    assert estimate.reason == ""
    assert error > 1e-5  # else nothing is measured
    assert estimate.absolute == pytest.approx(error, rel=0.02)
    assert estimate.relative == pytest.approx(error / size, rel=0.02)
    # to second order in the distance
    assert better < 0.02 * error
    assert abs(estimate.absolute - error) <= 1.1 * estimate.uncertainty + 1e-12


@each_pair
def test_what_is_trusted_is_within_a_factor_of_two(name, form):
    # a tenth of the solution away
    estimate, error, _, better = estimates(name, 0.1)[form]
    # At this distance, coordinates at zero are on the other side of their kink.
    assert bool(estimate.trusted) == (name != "nonnegative_tree")
    if estimate.trusted:
        assert 0.5 * error <= estimate.absolute <= 2 * error
    assert better < 0.5 * error


@pytest.mark.parametrize("form", FORMS)
def test_any_derivative_is_judged_however_it_came_about(form):
    # at the solution, a derivative with a known mistake in it
    case = build("coupled_tree")

    @compiled
    def judged(theta):
        x = case.solution(theta)
        right, options = applied(form, case.solution, theta, x)
        mistake = tree.scale(0.05, fixed_direction(right))
        wrong = tree.add(right, mistake)
        estimate = itd.derivative_error(case.problem, x, theta, wrong, **options)
        return estimate, tree.norm(mistake), right

    estimate, mistake, right = judged(case.theta)
    assert estimate.trusted
    assert estimate.absolute == pytest.approx(float(mistake), rel=1e-9)
    assert relative_error(estimate.corrected, right) < 1e-12


def test_exact_where_x_enters_affinely_however_far():
    case = build("matrix_quadratic")

    @compiled
    def judged(theta):
        x = 100.0 * case.x0
        wrong = jax.jacfwd(lambda t: itd.Implicit().attach(case.problem, x, t, throw=True))(theta)
        estimate = itd.derivative_error(case.problem, x, theta, wrong, near=np.inf)
        return estimate, tree.norm(tree.sub(wrong, case.jacobian(theta)))

    estimate, error = judged(case.theta)
    assert error > 10
    assert estimate.trusted
    assert estimate.absolute == pytest.approx(float(error), rel=1e-10)


SQRT = itd.RootFinding(lambda x, theta: x**2 - theta)


def test_too_far():
    # at x = 0.1 Newton's correction is 10 away from sqrt(2)
    estimate = itd.derivative_error(SQRT, 0.1, 2.0, 1 / 0.2)
    assert not estimate.trusted
    assert estimate.reason_code == TOO_FAR
    assert estimate.reason == REASONS[TOO_FAR] + OF_CORRECTED
    assert estimate.exceeds(1e-2)


@pytest.mark.parametrize("overflowing", ["loss", "objective"])
def test_an_overflow_is_no_agreement(overflowing):
    """Where a square overflows, the gradient of its logarithm is zero: that of the truth is not."""

    def overflows(x, theta):
        return jnp.sum(jnp.log1p((x - 0.5) ** 2))

    def square(x, theta):
        return jnp.sum((x - theta) ** 2) / 2

    convex = itd.Minimization(lambda x, theta: overflows(x, theta) + square(x, theta))
    problem, loss = {
        "loss": (itd.RootFinding(lambda x, theta: x - theta), overflows),
        "objective": (convex, lambda x, theta: jnp.tanh(jnp.sum(x))),
    }[overflowing]
    at = problem, jnp.full(2, -2e287), jnp.array(0.0)
    estimate = itd.derivative_error(*at, -0.0, loss=loss, near=np.inf)
    assert estimate.reason_code == NO_VALUE
    assert not estimate.trusted
    assert np.isinf([estimate.absolute, estimate.relative, estimate.uncertainty]).all()
    assert estimate.exceeds(1e3)


@pytest.mark.parametrize("x", [0.0, 1e-310])
def test_singular(x):
    estimate = itd.derivative_error(SQRT, x, 0.0, 1.0)
    assert not estimate.trusted
    assert estimate.reason_code == SINGULAR
    assert np.isinf(estimate.absolute)
    assert estimate.exceeds(1e3)


def test_singular_but_consistent():
    # the Hessian is singular, yet the system of the derivative has solutions, without a residual
    problem = itd.Minimization(lambda x, theta: (jnp.sum(x) - theta) ** 2)
    estimate = itd.derivative_error(problem, jnp.zeros(2), 1.0, jnp.array([0.5, 0.5]))
    assert not estimate.trusted
    assert estimate.exceeds(1e-2)


def test_the_floor_of_float32():
    case = build("spd_system", "float32")

    @compiled
    def judged(theta):
        x = case.solution(theta)
        given = jax.jacfwd(lambda t: itd.Implicit().attach(case.problem, x, t, throw=True))(theta)
        return itd.derivative_error(case.problem, x, theta, given)

    estimate = judged(case.theta)
    assert estimate.absolute.dtype == jnp.float32
    assert estimate.trusted  # to be at rounding level, though not within a factor of two
    assert not estimate.exceeds(1e-3)
    assert estimate.exceeds(1e-9)


def test_float32_off_the_floor():
    estimate = itd.derivative_error(
        SQRT, jnp.float32(1.43), jnp.float32(2.0), jnp.float32(1 / 2.86)
    )
    assert estimate.reason_code == OK
    assert estimate.absolute == pytest.approx(abs(1 / 2.86 - 1 / 8**0.5), rel=0.05)


def test_a_solution_that_does_not_depend_on_theta():
    problem = itd.RootFinding(lambda x, theta: x**3 - 1 + 0 * theta)
    none = itd.derivative_error(problem, 1.0, 2.0, 0.0)
    assert none.absolute == none.relative == 0
    some = itd.derivative_error(problem, 1.0, 2.0, 0.5)
    assert some.absolute == 0.5
    assert np.isinf(some.relative)


def test_under_jit_and_vmap():
    xs, thetas = jnp.array([1.43, 0.1, 0.0]), jnp.array([2.0, 2.0, 0.0])

    def judge(x, theta):
        return itd.derivative_error(SQRT, x, theta, jnp.float64(0.4))

    batch = jax.jit(jax.vmap(judge))(xs, thetas)
    assert batch.reason_code.tolist() == [OK, TOO_FAR, SINGULAR]
    one = judge(xs[0], thetas[0])
    assert batch.absolute[0] == pytest.approx(float(one.absolute), rel=1e-12)
    assert batch.trusted.tolist() == [True, False, False]


def test_the_unrolled_derivative_is_judged_as_solution_derivative():
    # x_t of the closed form: see test_trace
    problem = itd.Minimization(lambda x, theta: theta * x**2 / 2 - x)
    theta, step, t = 0.5, 0.1, 20

    def solution(theta):
        task = (problem, itd.GradientDescent(step), 0.0, theta)
        return itd.solve(*task, stop=itd.Steps(t), mode=itd.Unrolled()).x

    given = jax.grad(solution)(theta)
    point = solution(theta)
    estimate = itd.derivative_error(problem, point, theta, given, near=np.inf)
    assert estimate.trusted
    assert estimate.absolute == pytest.approx(abs(float(given) + 1 / theta**2), rel=1e-9)
    assert estimate.corrected == pytest.approx(-1 / theta**2, rel=1e-9)
    # For a point that should be a solution, the estimate reports that it is not one.
    doubtful = itd.derivative_error(problem, point, theta, given)
    assert doubtful.reason_code == AWAY and not doubtful.trusted and doubtful.exceeds(10.0)
    assert doubtful.absolute == estimate.absolute


def test_a_linear_solver_of_ones_own_is_used():
    import lineax as lx

    weak = lx.GMRES(rtol=1e-12, atol=1e-12, max_steps=1, restart=1)
    case = build("spd_system")
    given = case.jacobian(case.theta)
    estimate = itd.derivative_error(case.problem, case.x0, case.theta, given, linear_solver=weak)
    assert estimate.reason_code == SINGULAR  # its failure is not hidden


def test_the_corrected_derivative_is_no_better_than_its_uncertainty():
    problem = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) + 0.1 * x**4))
    theta = jnp.array([1.0, 2.0])
    x = itd.solve(problem, itd.GradientDescent(0.1), jnp.zeros(2), theta, stop=itd.Steps(20)).x
    start = jnp.eye(2)
    corrected = itd.derivative_error(problem, x, theta, start).corrected
    same = itd.derivative_error(problem, x, theta, corrected)
    assert same.absolute == 0
    assert same.uncertainty > 0
    assert same.exceeds(1e-12)
    assert not same.exceeds(1.0)


@pytest.mark.parametrize("loss", [lambda x: x, lambda x, theta: jnp.stack([x, theta])])
def test_a_loss_that_is_none_is_named(loss):
    with pytest.raises(TypeError, match="`loss`"):
        itd.derivative_error(SQRT, 1.4, 2.0, 0.3, loss=loss)


def test_an_estimate_prints_its_numbers():
    estimate = itd.derivative_error(SQRT, jnp.array(1.43), jnp.array(2.0), jnp.array(0.3))
    assert f"relative={float(estimate.relative):.3g}" in repr(estimate)
    assert "trusted=True" in repr(estimate) and "reason=''" in repr(estimate)
    shown = []
    jax.jit(lambda x: shown.append(repr(itd.derivative_error(SQRT, x, 2.0, 0.3))))(1.43)
    assert "f64[]" in shown[0]


def test_a_derivative_that_is_not_finite_is_said_to_be_so():
    problem = itd.RootFinding(lambda x, theta: x**2 - theta)
    estimate = itd.derivative_error(problem, 2.0, 4.0, jnp.nan)
    assert estimate.reason_code == NOT_FINITE
    assert estimate.exceeds(1e9)
