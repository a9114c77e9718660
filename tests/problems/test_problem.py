"""A problem's objective and structure, and leaves of theta that are not differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.linalg.operators import Structure
from tests.cases import NAMES, build
from tests.helpers import compiled


@pytest.mark.parametrize("name", NAMES)
def test_only_minimisations_have_an_objective(name):
    case = build(name)
    problem, value = case.problem, case.problem.value(case.x0, case.theta)
    smooth = isinstance(problem, itd.Minimization | itd.LeastSquares)
    known = isinstance(problem, itd.CompositeMinimization) and problem.penalty is not None
    constrained = isinstance(problem, itd.QuadraticProgram)
    assert (value is not None) == (smooth or known or constrained)
    # The gradient of the KKT potential is a gradient, too.
    declared = problem.symmetric, problem.positive_definite, smooth or constrained
    assert problem.structure == Structure(*declared)


def test_the_objective_of_a_composite_problem_includes_the_penalty():
    problem = itd.CompositeMinimization(
        lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
        lambda x, step, theta: itd.prox.soft_threshold(x, step * theta),
        penalty=lambda x, theta: theta * jnp.sum(jnp.abs(x)),
    )
    x, theta = jnp.array([1.0, -2.0]), jnp.array(0.5)
    np.testing.assert_allclose(problem.value(x, theta), (0.25 + 6.25) / 2 + 0.5 * 3)


def test_integer_leaves_are_data_without_derivative():
    def objective(x, theta):
        return jnp.sum((x - theta["p"][theta["index"]]) ** 2) * theta["weight"].astype(float)

    theta = {"p": jnp.array([3.0, 5.0]), "index": jnp.array([1, 0, 1]), "weight": jnp.array(2)}
    problem = itd.Minimization(objective)

    @compiled
    def slopes(theta):
        def total(theta, mode):
            task = (problem, itd.GradientDescent(0.125), jnp.zeros(3), theta)
            stop = itd.Steps(60)
            return jnp.sum(itd.solve(*task, stop=stop, mode=mode).x)

        return [
            jax.grad(total, allow_int=True)(theta, mode)
            for mode in (itd.Implicit(), itd.Unrolled())
        ]

    for slope in slopes(theta):
        np.testing.assert_allclose(slope["p"], [1.0, 2.0], rtol=1e-10)
        assert slope["index"].dtype == jax.dtypes.float0
        assert slope["weight"].dtype == jax.dtypes.float0


def test_leaves_of_theta_that_are_not_numbers_pass_through():
    problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta["to"]) ** 2))
    theta = {"to": jnp.ones(2), "name": "target"}
    solution = itd.solve(
        problem, itd.GradientDescent(0.25), jnp.zeros(2), theta, stop=itd.Steps(60)
    )
    np.testing.assert_allclose(solution.x, theta["to"])
