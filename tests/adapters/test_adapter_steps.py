"""Derivatives of other libraries' steps: of the last ones, and where steps have none."""

import jax
import jax.numpy as jnp
import jaxopt
import optimistix as optx
import pytest

import iterdiff as itd
from iterdiff.adapters import from_jaxopt, from_optimistix
from tests.helpers import compiled

# The last steps of solvers that propose a point in one step and go there in the next

CURVATURES = jnp.array([1.0, 2.0])
BOWL = lambda x, theta: jnp.sum(CURVATURES * (x - theta) ** 2)  # noqa: E731
PULL = lambda x, theta: CURVATURES * (x - theta)  # noqa: E731
LOOSE = {"rtol": 1e-9, "atol": 1e-9}
TIGHT = {"rtol": 1e-14, "atol": 1e-14}
SEARCHING = {
    # call, function, solver, and the derivative of its last k steps where that is known
    "GradientDescent": (
        *(optx.minimise, BOWL, optx.GradientDescent(0.1, **LOOSE)),
        lambda last: 1 - (1 - 0.2 * CURVATURES) ** last,
    ),
    "BFGS": (optx.minimise, BOWL, optx.BFGS(**LOOSE), None),
    "LBFGS": (optx.minimise, BOWL, optx.LBFGS(**LOOSE), None),
    "LevenbergMarquardt": (optx.least_squares, PULL, optx.LevenbergMarquardt(**LOOSE), None),
    "GaussNewton": (optx.least_squares, PULL, optx.GaussNewton(**LOOSE), lambda last: 1.0),
    "GaussNewton for a root": (optx.root_find, PULL, optx.GaussNewton(**LOOSE), lambda last: 1.0),
}


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize("name", SEARCHING)
def test_optimistix_differentiates_the_last_steps(name, last):
    call, function, solver, known = SEARCHING[name]
    adjoint = itd.adapters.as_optimistix_adjoint(itd.Unrolled(last=last))

    def solution(theta):
        options = {"adjoint": adjoint, "max_steps": 400}
        return call(function, solver, jnp.array([2.0, 1.5]), theta, **options).value

    theta = jnp.array([1.0, 0.5])
    x, pull = jax.vjp(solution, theta)
    slope = pull(jnp.ones(2))[0]
    assert jnp.max(jnp.abs(x - theta)) < 1e-6
    truth = 1.0 if known is None else known(last)
    assert jnp.max(jnp.abs(slope - truth)) < (0.5 if known is None else 1e-7)


@pytest.mark.parametrize("checked", [False, True])
def test_one_step_of_a_solver_that_proposes_is_not_zero(checked):
    descent = from_optimistix(optx.GradientDescent(0.1, **LOOSE))
    mode = itd.Checked(itd.OneStep(), rtol=10.0) if checked else itd.OneStep()
    task = (itd.Minimization(BOWL), descent, jnp.array([2.0, 1.5]))

    def total(theta, stop):
        return itd.solve(*task, theta, stop=stop, mode=mode, throw=False).x.sum()

    for stop in (itd.Steps(150), itd.ResidualBelow(rtol=1e-8, max_steps=400)):
        slope = jax.grad(total)(jnp.array([1.0, 0.5]), stop)
        assert jnp.max(jnp.abs(slope - 0.2 * CURVATURES)) < 1e-7
    if not checked:  # of one step there is nothing before the last
        assert jnp.all(jax.grad(total)(jnp.array([1.0, 0.5]), itd.Steps(1)) == 0)


def test_a_trace_counts_the_last_steps_as_a_solve_does():
    problem, descent = itd.Minimization(BOWL), from_optimistix(optx.GradientDescent(0.1, **LOOSE))
    run = (problem, descent, jnp.array([2.0, 1.5]), jnp.array([1.0, 0.5]))
    for last in (1, 3):
        ds = itd.trace(*run, steps=60, modes={"late": itd.Unrolled(last=last)})
        error = float(jnp.linalg.norm((1 - 0.2 * CURVATURES) ** last))
        assert float(ds.jacobian_error.sel(mode="late")[-1]) == pytest.approx(error, rel=1e-6)


COMPARING = {
    "NelderMead": (optx.minimise, BOWL, optx.NelderMead(**LOOSE), "only compares values"),
    "BestSoFar": (
        *(optx.minimise, BOWL, optx.BestSoFarMinimiser(optx.NelderMead(**LOOSE))),
        "only compares values",
    ),
    "NelderMead for a root": (optx.root_find, PULL, optx.NelderMead(**LOOSE), "only compares"),
    "Bisection": (
        *(optx.root_find, lambda x, theta: x - theta, optx.Bisection(**LOOSE)),
        "points of brackets",
    ),
}


@pytest.mark.parametrize("mode", [itd.Unrolled(), itd.Unrolled(last=3), itd.OneStep()])
@pytest.mark.parametrize("name", COMPARING)
def test_steps_that_compare_values_are_no_adjoint(name, mode):
    call, function, solver, reason = COMPARING[name]
    options = {"lower": -4.0, "upper": 4.0} if name == "Bisection" else None
    x0 = jnp.array(1.0) if name == "Bisection" else jnp.array([2.0, 1.5])
    adjoint = itd.adapters.as_optimistix_adjoint(mode)
    with pytest.raises(ValueError, match=f"cannot differentiate .*: .*{reason}.*Modes that work"):
        call(function, solver, x0, 0.5 * x0, options, adjoint=adjoint, max_steps=400)


def test_the_best_iterate_may_be_older_than_the_last_steps():
    best = optx.BestSoFarMinimiser(optx.BFGS(**LOOSE))

    def total(theta, mode):
        adjoint, x0 = itd.adapters.as_optimistix_adjoint(mode), jnp.array([2.0, 1.5])
        return optx.minimise(BOWL, best, x0, theta, adjoint=adjoint, max_steps=64).value.sum()

    theta = jnp.array([1.0, 0.5])
    slope = jax.grad(total)(theta, itd.Unrolled())
    assert jnp.max(jnp.abs(slope - 1)) < 1e-5
    with pytest.raises(ValueError, match="best iterate of BFGS.*iterdiff.Unrolled()"):
        total(theta, itd.Unrolled(last=3))


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


@pytest.mark.parametrize("mode", [itd.Unrolled(), itd.Unrolled(last=3), itd.OneStep()])
def test_simplices_are_differentiated_implicitly_alone(mode):
    algorithm = from_optimistix(optx.BestSoFarMinimiser(optx.NelderMead(**LOOSE)))
    for simplex in (algorithm, from_optimistix(optx.NelderMead(**LOOSE))):

        def total(theta, mode=None, simplex=simplex):
            stop, x0 = itd.Steps(150), jnp.ones(2)
            return itd.solve(itd.Minimization(BOWL), simplex, x0, theta, stop=stop, mode=mode).x

        assert jnp.max(jnp.abs(jax.jacfwd(total)(jnp.array([0.4, 0.7])) - jnp.eye(2))) < 1e-9
        with pytest.raises(ValueError, match=r"only compares values.*Modes that work"):
            total(jnp.array([0.4, 0.7]), mode)


@pytest.mark.parametrize("name", BRACKETING)
def test_brackets_are_differentiated_implicitly_alone(name):
    algorithm, problem = BRACKETING[name]

    def solution(theta, mode=None):
        stop = itd.Steps(60)
        return itd.solve(problem, algorithm, jnp.array(1.0), theta, stop=stop, mode=mode).x

    with jax.numpy_dtype_promotion("standard"):
        x, slope = compiled(jax.value_and_grad(solution))(jnp.array(8.0))
        assert abs(x - 2) < 1e-7
        assert abs(slope - 1 / 12) < 1e-8
        with pytest.raises(ValueError, match=r"points of brackets.*Modes that work"):
            solution(jnp.array(8.0), itd.Unrolled())
