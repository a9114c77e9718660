"""Checked modes act on every wrong derivative; the rule that judges derivatives stops in time."""

import warnings
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.accuracy.reasons import DISAGREES, NO_VALUE, NOT_REPORTED
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_tolerance
from tests.cases import build
from tests.helpers import compiled, derivatives, relative_error

POISSON = build("poisson")
FEW, MANY = 8, 70
INNER = {"implicit": itd.Implicit(), "unrolled": itd.Unrolled(), "late": itd.Unrolled(last=3)}
each_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
SLOW = itd.GradientDescent(0.2)


def solution(theta, mode, steps=FEW, algorithm=SLOW):
    task = (POISSON.problem, algorithm, POISSON.x0, theta)
    return itd.solve(*task, stop=itd.Steps(steps), mode=mode).x


def grad(mode, steps=FEW, theta=POISSON.theta):
    return jax.grad(lambda theta: jnp.sum(solution(theta, mode, steps)))(theta)


def push(mode, steps=FEW, theta=POISSON.theta):
    return jax.jvp(lambda t: solution(t, mode, steps), (theta,), (jnp.ones(3),))[1]


def done(a):
    """Wait for the callbacks too."""
    jax.block_until_ready(a)
    jax.effects_barrier()
    return a


@pytest.mark.parametrize("derive", [grad, push], ids=["reverse", "forward"])
@each_inner
def test_warns_of_a_wrong_derivative(inner, derive):
    mode = itd.Checked(inner, rtol=1e-2)
    with pytest.warns(itd.DerivativeWarning, match="rtol=0.01"):
        checked = done(compiled(lambda: derive(mode))())
    np.testing.assert_allclose(checked, derive(inner), rtol=1e-12)  # the derivative stays


@pytest.mark.parametrize(
    ("inner", "derive", "action"),
    [
        ("implicit", grad, "warn"),
        ("implicit", push, "raise"),
        ("unrolled", grad, "nan"),
        ("unrolled", push, "warn"),
    ],
)
def test_is_silent_of_a_right_derivative(inner, derive, action):
    # warnings are errors here
    mode = itd.Checked(INNER[inner], rtol=1e-4, on_failure=action)
    checked = done(compiled(lambda: derive(mode, 5 * MANY))())
    np.testing.assert_allclose(checked, 1 / POISSON.theta, rtol=1e-4)


@pytest.mark.parametrize("derive", [grad, push], ids=["reverse", "forward"])
def test_raises(derive):
    mode = itd.Checked(itd.Implicit(), rtol=1e-3, on_failure="raise")
    with pytest.raises(RuntimeError, match="Checked.*`rtol`"):
        done(compiled(lambda: derive(mode))())


@pytest.mark.parametrize("derive", [grad, push], ids=["reverse", "forward"])
def test_returns_nan(derive):
    mode = itd.Checked(itd.Implicit(), rtol=1e-3, on_failure="nan")
    assert np.all(np.isnan(derive(mode)))


def test_the_value_is_never_touched():
    for action in ("raise", "nan", "warn"):
        mode = itd.Checked(itd.Unrolled(), on_failure=action)
        plain = solution(POISSON.theta, itd.Unrolled())
        assert np.array_equal(solution(POISSON.theta, mode), plain)


def test_members_of_a_batch_are_judged_one_by_one():
    # from theta = 1 the start x0 = 0 is the solution
    batch = jnp.stack([POISSON.theta, jnp.ones(3)])
    mode = itd.Checked(itd.Implicit(), rtol=1e-3, on_failure="nan")
    slopes = compiled(jax.vmap(lambda theta: grad(mode, theta=theta)))(batch)
    assert np.all(np.isnan(slopes[0]))
    np.testing.assert_allclose(slopes[1], 1.0, rtol=1e-12)
    loud = itd.Checked(itd.Implicit(), rtol=1e-3)
    with pytest.warns(itd.DerivativeWarning):
        done(compiled(jax.vmap(lambda theta: grad(loud, theta=theta)))(batch))


def test_an_absolute_tolerance_lets_small_errors_pass():
    exact = 1 / POISSON.theta
    error = float(jnp.linalg.norm(grad(itd.Implicit(), 25) - exact))
    for atol, passes in ((1.2 * error, True), (0.8 * error, False)):
        mode = itd.Checked(itd.Implicit(), rtol=1e-9, atol=atol, on_failure="nan")
        assert np.all(np.isfinite(grad(mode, 25))) == passes


@pytest.mark.parametrize("inner", ["implicit", "unrolled"])
def test_the_report_says_how_wrong_the_gradient_is(inner):
    def loss(theta, report, steps):
        mode = itd.Checked(INNER[inner], rtol=1e-2, on_failure="nan", report=report)
        return jnp.sum(solution(theta, mode, steps))

    for steps, flagged in ((25, True), (5 * MANY, False)):

        @compiled
        def reported(theta, steps=steps):
            return itd.value_and_grad_with_report(lambda t, r: loss(t, r, steps))(theta)

        value, gradient, report = reported(POISSON.theta)
        plain = grad(INNER[inner], steps)
        error = float(jnp.linalg.norm(plain - 1 / POISSON.theta))
        size = float(jnp.linalg.norm(1 / POISSON.theta))
        assert bool(report.flagged) == flagged
        assert np.all(np.isnan(gradient)) == flagged
        assert value == pytest.approx(float(jnp.sum(solution(POISSON.theta, INNER[inner], steps))))
        if flagged:
            assert report.trusted
            assert report.absolute == pytest.approx(error, rel=0.3)
            assert report.relative == pytest.approx(error / size, rel=0.3)
        else:
            assert abs(report.absolute - error) <= report.uncertainty + 1e-12


def test_a_report_that_is_not_passed_on_is_flagged():
    def loss(theta, report):
        del report
        return jnp.sum(solution(theta, itd.Checked(itd.Implicit(), on_failure="nan"), MANY))

    report = compiled(itd.value_and_grad_with_report(loss))(POISSON.theta)[2]
    assert report.flagged and not report.trusted and np.isnan(report.relative)
    assert report.reason_code == NOT_REPORTED and "`report`" in report.reason


def test_reports_of_a_batch():
    def loss(theta, report):
        mode = itd.Checked(itd.Implicit(), rtol=1e-2, on_failure="nan", report=report)
        return jnp.sum(solution(theta, mode))

    batch = jnp.stack([POISSON.theta, jnp.ones(3)])
    _, _, report = compiled(jax.vmap(itd.value_and_grad_with_report(loss)))(batch)
    assert report.flagged.tolist() == [True, False]


HIGHER = ("batched", "reverse_over_reverse")  # forward over reverse: in test_transformations


@pytest.mark.parametrize(("inner", "action"), [("implicit", "warn"), ("unrolled", "nan")])
def test_derivatives_of_higher_order_are_unharmed(inner, action):
    # to be told apart from what the check might do, both run to the end
    mode = itd.Checked(INNER[inner], rtol=1e-4, on_failure=action)

    def by(mode):
        algorithm = itd.GradientDescent(0.8)
        return derivatives(lambda t: solution(t, mode, MANY, algorithm), POISSON, HIGHER)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = done(compiled(lambda: by(mode))())
    expected = compiled(lambda: derivatives(POISSON.solution, POISSON, HIGHER))()
    for kind in expected:
        assert relative_error(found[kind], expected[kind]) < 1e-8, kind


def test_a_derivative_that_cannot_be_computed_is_reported():
    problem = itd.RootFinding(lambda x, theta: x**2 - theta)

    def root(theta):
        mode = itd.Checked(itd.Implicit(), on_failure="warn")
        stop = itd.Steps(1)
        task = (itd.FixedPoint(lambda x, t: x - problem.residual(x, t)), itd.Picard(), 0.0, theta)
        return itd.solve(*task, stop=stop, mode=mode, throw=False).x

    with pytest.warns(itd.DerivativeWarning, match="singular"):
        slope = done(jax.grad(root)(0.0))
    assert np.isnan(slope)


# Stop by the error of the derivative

RTOLS = np.array([0.1, 1e-3, 1e-6])
EVERY = 5
JUDGED = [
    ("ridge", 0.3, itd.Unrolled()),
    ("poisson", 0.3, itd.Unrolled()),
    ("coupled_tree", 0.3, itd.Implicit()),
]


@pytest.mark.parametrize(("name", "step", "mode"), JUDGED)
def test_stops_when_the_derivative_is_right(name, step, mode):
    case, algorithm = build(name), itd.GradientDescent(step)
    limit = 600

    @compiled
    @jax.vmap
    def run(rtol):
        stop = itd.DerivativeErrorBelow(rtol, limit, every=EVERY)

        def final(theta):
            solution = itd.solve(case.problem, algorithm, case.x0, theta, stop=stop, mode=mode)
            return solution.x, (solution.steps, solution.status)

        jacobian, (steps, status) = jax.jacrev(final, has_aux=True)(case.theta)
        error = tree.norm(tree.sub(jacobian, case.jacobian(case.theta)))
        return error / tree.norm(case.jacobian(case.theta)), steps, status

    error, steps, status = run(RTOLS)
    assert np.all(status == itd.Status.CONVERGED)
    assert np.all(error <= 1.1 * RTOLS)
    # an oracle looks at the true error after every step
    data = itd.trace(
        case.problem,
        algorithm,
        case.x0,
        case.theta,
        steps=limit,
        modes={"it": mode},
        reference=case.solution,
    )
    true = data.jacobian_error[0].values / data.jacobian_error.attrs["reference_norm"]
    for rtol, taken in zip(RTOLS, steps, strict=True):
        oracle = int(np.argmax(true <= rtol))
        assert int(taken) <= 1.1 * oracle + EVERY


def test_max_steps_where_the_derivative_is_never_right():
    stop = itd.DerivativeErrorBelow(1e-3, max_steps=7)
    task = (POISSON.problem, itd.GradientDescent(0.01), POISSON.x0, POISSON.theta)
    solution = itd.solve(*task, stop=stop, throw=False)
    assert solution.status == itd.Status.MAX_STEPS_REACHED
    assert solution.steps == 7


# Solvers and algorithms from elsewhere


class Own(itd.Algorithm):
    """A user's own algorithm, which solves ``x + x**3 / 10 = theta``."""

    accepts: ClassVar[tuple[type[itd.Problem], ...]] = (itd.Problem,)

    def init(self, problem, x0, theta):
        """Return the iterate."""
        del problem, theta
        return itd.Iterate(x0)

    def step(self, problem, state, theta):
        """Step."""
        del problem
        x = state.x
        return itd.Iterate(x - 0.5 * (x + 0.1 * x**3 - theta))


@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_an_algorithm_of_another_problem_is_found_out(factor):
    problem = itd.RootFinding(lambda x, theta: x + 0.1 * x**3 - factor * theta)

    def loss(theta, report):
        mode = itd.Checked(itd.Implicit(), rtol=2e-2, on_failure="nan", report=report)
        task = (problem, Own(), jnp.zeros(2), theta)
        return jnp.sum(itd.solve(*task, stop=itd.Steps(60), mode=mode).x)

    wrong = factor != 1
    report = compiled(itd.value_and_grad_with_report(loss))(jnp.array([1.0, 2.0]))[2]
    # the estimate alone finds it right: it is, by the equation as stated
    assert report.relative < 2e-2
    assert bool(report.flagged) == wrong
    assert (report.reason_code == DISAGREES) == wrong
    assert ("different problems" in report.reason) == wrong


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_solver_that_jax_cannot_trace_is_checked(factor):
    problem = itd.RootFinding(lambda x, theta: x**3 - factor * theta)

    @itd.implicit(problem, mode=itd.Checked(itd.Implicit(), on_failure="nan"))
    def cube_root(x0, theta):
        del x0
        return np.cbrt(np.asarray(theta))

    slope = jax.jit(jax.grad(lambda theta: cube_root(1.0, theta)))(8.0)
    if factor == 1:
        assert slope == pytest.approx(1 / 12, rel=1e-12)
    else:
        assert np.isnan(slope)


def test_a_refined_answer_is_not_refined_again():
    refined = itd.Implicit(refine=1)
    checked = itd.Checked(refined, rtol=1.0, atol=10.0)
    np.testing.assert_allclose(grad(checked, 25), grad(refined, 25), rtol=1e-12)


@pytest.mark.parametrize("kind", [np.float32, jnp.asarray])
def test_tolerances_may_be_arrays(kind):
    loose, tight = (itd.Checked(itd.Implicit(), kind(rtol), "nan", kind(0.0)) for rtol in (9, 1e-3))
    assert np.all(np.isfinite(grad(loose)))
    assert np.all(np.isnan(grad(tight)))


def test_tolerances_may_be_batched():
    tolerances = jnp.array([9.0, 1e-3])
    found = jax.vmap(lambda rtol: grad(itd.Checked(itd.Implicit(), rtol, "nan")))(tolerances)
    assert np.isfinite(found).all(1).tolist() == [True, False]


@pytest.mark.parametrize("value", ["a", None, True, [1.0], 1j, np.ones(2), jnp.ones(1)])
def test_refuses_a_tolerance_that_is_no_number(value):
    with pytest.raises(TypeError, match="`rtol`"):
        check_tolerance("rtol", value)
    for rule in (itd.DerivativeErrorBelow, partial(itd.Checked, itd.Implicit())):
        with pytest.raises(TypeError):
            rule(value)


def test_a_kink_is_named_when_it_raises():
    problem = itd.CompositeMinimization(
        lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
        lambda v, theta, step: itd.prox.soft_threshold(v, step),
    )
    mode = itd.Checked(itd.Implicit(), on_failure="raise")

    def loss(theta):
        run = problem, itd.ProximalGradient(1.0), jnp.zeros(2), theta
        return jnp.sum(itd.solve(*run, stop=itd.Steps(5), mode=mode).x)

    with pytest.raises(RuntimeError, match="One-sided"):
        done(jax.grad(loss)(jnp.array([3.0, 1.0])))


def test_a_derivative_that_is_zero_asks_for_an_absolute_tolerance():
    problem = itd.Minimization(lambda x, theta: jnp.sum((1 + theta**2) * x**2))

    def loss(theta):
        run = problem, itd.GradientDescent(0.2), jnp.ones(2), theta
        mode = itd.Checked(itd.Implicit())
        return jnp.sum(itd.solve(*run, stop=itd.Steps(20), mode=mode).x)

    with pytest.warns(itd.DerivativeWarning, match="`atol`"):
        done(jax.grad(loss)(jnp.array(0.5)))


def test_nothing_is_known_of_a_run_that_diverged():
    """The gradient of the loss is zero where its square overflows; so is every product with it."""
    problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))

    def loss(theta, report):
        mode = itd.Checked(itd.Implicit(), on_failure="nan", report=report)
        run = problem, itd.GradientDescent(50.0), jnp.zeros(2), theta
        stop = itd.ResidualBelow(1e-6)
        return jnp.sum(jnp.log1p(itd.solve(*run, stop=stop, mode=mode, throw=False).x ** 2))

    _, gradient, report = itd.value_and_grad_with_report(loss)(jnp.array(0.5))
    assert jnp.isnan(gradient)
    assert report.flagged
    assert not report.trusted
    assert report.reason_code == NO_VALUE
    assert "relative=inf" in repr(report) and "flagged=True" in repr(report)
    with pytest.raises(TypeError, match=r"`loss` is called as loss\(theta, report"):
        itd.value_and_grad_with_report(lambda theta: theta)(1.0)
