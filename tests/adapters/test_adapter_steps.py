"""Derivatives of the steps of other libraries: of the last steps, and of steps that have none."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix as optx
import pytest

import iterdiff as itd
from iterdiff.adapters import from_jaxopt, from_optimistix
from iterdiff.adapters.common import BRACKETS_CAVEAT, SIMPLICES_CAVEAT
from iterdiff.adapters.optimistix_loop import BoundedLoop, late_while_loop
from tests.helpers import compiled

# Solvers that propose a point in one step and move there in the next

CURVATURES = jnp.array([1.0, 2.0])
BOWL = lambda x, theta: jnp.sum(CURVATURES * (x - theta) ** 2)  # noqa: E731
PULL = lambda x, theta: CURVATURES * (x - theta)  # noqa: E731
START, THETA = jnp.array([2.0, 1.5]), jnp.array([1.0, 0.5])
LOOSE = {"rtol": 1e-9, "atol": 1e-9}
TIGHT = {"rtol": 1e-14, "atol": 1e-14}
# The call, the function and the solver; k, and the derivative of the last k steps if it is known.
SEARCHING = {
    "GradientDescent": (
        *(optx.minimise, BOWL, optx.GradientDescent(0.1, **LOOSE)),
        *(3, 1 - (1 - 0.2 * CURVATURES) ** 3),
    ),
    "BFGS": (optx.minimise, BOWL, optx.BFGS(**LOOSE), 1, None),
    "LBFGS": (optx.minimise, BOWL, optx.LBFGS(**LOOSE), 1, None),
    "LevenbergMarquardt": (optx.least_squares, PULL, optx.LevenbergMarquardt(**LOOSE), 1, None),
    "GaussNewton": (optx.least_squares, PULL, optx.GaussNewton(**LOOSE), 3, 1.0),
    "GaussNewton for a root": (optx.root_find, PULL, optx.GaussNewton(**LOOSE), 1, 1.0),
}


@pytest.mark.parametrize("name", SEARCHING)
def test_optimistix_differentiates_the_last_steps(name):
    call, function, solver, last, known = SEARCHING[name]
    adjoint = itd.adapters.as_optimistix_adjoint(itd.Unrolled(last=last))

    def solution(theta):
        options = {"adjoint": adjoint, "max_steps": 400}
        return call(function, solver, START, theta, **options).value

    @compiled
    def run(theta):
        x, pull = jax.vjp(solution, theta)
        return x, pull(jnp.ones(2))[0]

    x, slope = run(THETA)
    assert jnp.max(jnp.abs(x - THETA)) < 1e-6
    if known is None:  # close to that of the solution: not zero, as of a step that proposes
        assert jnp.max(jnp.abs(slope - 1.0)) < 0.5
    else:
        assert jnp.max(jnp.abs(slope - known)) < 1e-7


@pytest.mark.parametrize(
    "last, checkpoint", [(1, "none"), (2, "sqrt"), (5, "log"), (20, "iterates")]
)
def test_the_last_steps_are_found_for_every_number_of_steps(last, checkpoint):
    totals, theta, most = jnp.arange(16), jnp.array(0.5), 12

    @compiled
    def run(totals):
        def end(theta, total):
            # Each step adds theta: the derivative is the number of steps that carry one.
            body = lambda carry: (carry[0] + theta, carry[1] + 1)  # noqa: E731
            loop = BoundedLoop(lambda carry: carry[1] < total, body, most)
            return late_while_loop(loop, (jnp.array(0.0), jnp.array(0)), checkpoint, last)

        return jax.vmap(lambda t: jax.value_and_grad(end, has_aux=True)(theta, t))(totals)

    (x, steps), slope = run(totals)
    taken = jnp.minimum(totals, most)
    assert steps.tolist() == taken.tolist()
    assert x.tolist() == (0.5 * np.asarray(taken)).tolist()
    assert slope.tolist() == jnp.minimum(taken, last).tolist()


ONE_STEP = {
    "counted": (itd.OneStep(), itd.Steps(150)),
    "with a stopping rule": (itd.OneStep(), itd.ResidualBelow(rtol=1e-8, max_steps=400)),
    "checked": (itd.Checked(itd.OneStep(), rtol=10.0), itd.Steps(150)),
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_of_a_solver_that_proposes_is_not_zero(name):
    mode, stop = ONE_STEP[name]
    descent = from_optimistix(optx.GradientDescent(0.1, **LOOSE))

    def total(theta):
        task = (itd.Minimization(BOWL), descent, START, theta)
        return itd.solve(*task, stop=stop, mode=mode, throw=False).x.sum()

    slope = compiled(jax.grad(total))(THETA)
    assert jnp.max(jnp.abs(slope - 0.2 * CURVATURES)) < 1e-7


def test_nothing_comes_before_the_last_step_of_one():
    descent = from_optimistix(optx.GradientDescent(0.1, **LOOSE))
    task = (itd.Minimization(BOWL), descent, START)

    def total(theta):
        return itd.solve(*task, theta, stop=itd.Steps(1), mode=itd.OneStep()).x.sum()

    assert jnp.all(compiled(jax.grad(total))(THETA) == 0)


def test_a_trace_counts_the_last_steps_as_a_solve_does():
    problem, descent = itd.Minimization(BOWL), from_optimistix(optx.GradientDescent(0.1, **LOOSE))
    modes = {"one": itd.OneStep(), "three": itd.Unrolled(last=3)}
    trace = itd.trace(problem, descent, START, THETA, steps=60, modes=modes)
    for mode, last in (("one", 1), ("three", 3)):
        error = float(jnp.linalg.norm((1 - 0.2 * CURVATURES) ** last))
        found = float(trace.jacobian_error.sel(mode=mode)[-1])
        assert found == pytest.approx(error, rel=1e-6)


COMPARING = {
    "NelderMead": (optx.minimise, BOWL, optx.NelderMead(**LOOSE), SIMPLICES_CAVEAT),
    "best of NelderMead": (
        *(optx.minimise, BOWL, optx.BestSoFarMinimiser(optx.NelderMead(**LOOSE))),
        SIMPLICES_CAVEAT,
    ),
    "NelderMead for a root": (optx.root_find, PULL, optx.NelderMead(**LOOSE), SIMPLICES_CAVEAT),
    "Bisection": (
        *(optx.root_find, lambda x, theta: x - theta, optx.Bisection(**LOOSE)),
        BRACKETS_CAVEAT,
    ),
}


@pytest.mark.parametrize("mode", [itd.Unrolled(), itd.Unrolled(last=3), itd.OneStep()])
@pytest.mark.parametrize("name", COMPARING)
def test_steps_that_compare_values_are_not_unrolled(name, mode):
    call, function, solver, caveat = COMPARING[name]
    bracketing = name == "Bisection"
    options = {"lower": -4.0, "upper": 4.0} if bracketing else None
    x0 = jnp.array(1.0) if bracketing else START
    adjoint = itd.adapters.as_optimistix_adjoint(mode)
    kind = "Bisection" if bracketing else "NelderMead"
    with pytest.raises(ValueError, match=rf"`adjoint`.*{kind}.*iterdiff\.Implicit") as caught:
        call(function, solver, x0, 0.5 * x0, options, adjoint=adjoint, max_steps=400)
    assert caveat in str(caught.value)


def test_the_best_iterate_may_be_older_than_the_last_steps():
    best = optx.BestSoFarMinimiser(optx.BFGS(**LOOSE))

    def total(theta, mode):
        adjoint = itd.adapters.as_optimistix_adjoint(mode)
        return optx.minimise(BOWL, best, START, theta, adjoint=adjoint, max_steps=64).value.sum()

    slope = compiled(jax.grad(lambda theta: total(theta, itd.Unrolled())))(THETA)
    assert jnp.max(jnp.abs(slope - 1)) < 1e-5
    with pytest.raises(ValueError, match="`last`.*BFGS"):
        total(THETA, itd.Unrolled(last=3))


REJECTING = {
    "BFGS": (itd.Minimization(BOWL), optx.BFGS(**LOOSE)),
    "Dogleg": (itd.RootFinding(lambda x, theta: x - theta), optx.Dogleg(**LOOSE)),
}


@pytest.mark.parametrize("name", REJECTING)
def test_last_steps_that_a_search_rejects_are_refused(name):
    problem, solver = REJECTING[name]
    run = (problem, from_optimistix(solver), START, THETA)
    for mode in (itd.OneStep(), itd.Unrolled(last=3)):
        with pytest.raises(ValueError, match="`last`"):
            itd.solve(*run, stop=itd.Steps(30), mode=mode)


# Steps without a derivative

root = itd.RootFinding(lambda x, theta: x**3 - theta)
BRACKET = {"lower": jnp.array(0.0), "upper": jnp.array(4.0)}
BRACKETING = {
    "optimistix.Bisection": (from_optimistix(optx.Bisection(**TIGHT), BRACKET), root),
    "optimistix.GoldenSearch": (
        from_optimistix(optx.GoldenSearch(**TIGHT), BRACKET),
        itd.Minimization(lambda x, theta: x**4 / 4 - theta * x),
    ),
    "jaxopt.Bisection": (from_jaxopt(jaxopt.Bisection(None, 0.0, 4.0, check_bracket=False)), root),
}


SIMPLICES = {
    "NelderMead": from_optimistix(optx.NelderMead(**LOOSE)),
    "best of NelderMead": from_optimistix(optx.BestSoFarMinimiser(optx.NelderMead(**LOOSE))),
}


def simplex_solution(theta, algorithm, mode=None):
    task = (itd.Minimization(BOWL), algorithm, jnp.ones(2), theta)
    return itd.solve(*task, stop=itd.Steps(150), mode=mode).x


def test_simplices_are_differentiated_implicitly():
    @compiled
    def jacobians(theta):
        return [jax.jacfwd(simplex_solution)(theta, s) for s in SIMPLICES.values()]

    for jacobian in jacobians(jnp.array([0.4, 0.7])):
        assert jnp.max(jnp.abs(jacobian - jnp.eye(2))) < 1e-9


@pytest.mark.parametrize("mode", [itd.Unrolled(), itd.Unrolled(last=3), itd.OneStep()])
@pytest.mark.parametrize("name", SIMPLICES)
def test_simplices_are_not_unrolled(name, mode):
    with pytest.raises(ValueError, match="`mode`") as caught:
        simplex_solution(jnp.array([0.4, 0.7]), SIMPLICES[name], mode)
    assert SIMPLICES_CAVEAT in str(caught.value)


@pytest.mark.parametrize("name", BRACKETING)
def test_brackets_are_differentiated_implicitly_and_not_unrolled(name):
    algorithm, problem = BRACKETING[name]

    def solution(theta, mode=None):
        stop = itd.Steps(60)
        return itd.solve(problem, algorithm, jnp.array(1.0), theta, stop=stop, mode=mode).x

    with jax.numpy_dtype_promotion("standard"):
        x, slope = compiled(jax.value_and_grad(solution))(jnp.array(8.0))
        assert abs(x - 2) < 1e-7
        assert abs(slope - 1 / 12) < 1e-8
        with pytest.raises(ValueError, match="`mode`") as caught:
            solution(jnp.array(8.0), itd.Unrolled())
    assert BRACKETS_CAVEAT in str(caught.value)
