"""What a problem tells about itself: its objective and its structure."""

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.problems.problem import objective_of, structure_of
from tests.cases import NAMES, build


@pytest.mark.parametrize("name", NAMES)
def test_only_minimisations_have_an_objective_and_a_hessian(name):
    problem = build(name).problem
    structure = structure_of(problem)
    smooth = isinstance(problem, itd.Minimization)
    known = isinstance(problem, itd.CompositeMinimization) and problem.penalty is not None
    assert (objective_of(problem) is not None) == (smooth or known)
    assert structure == (problem.symmetric, problem.positive_definite, smooth)


def test_the_objective_of_a_composite_problem_includes_the_penalty():
    problem = itd.CompositeMinimization(
        lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
        lambda x, step, theta: itd.prox.soft_threshold(x, step * theta),
        penalty=lambda x, theta: theta * jnp.sum(jnp.abs(x)),
    )
    objective = objective_of(problem)
    assert objective is not None
    x, theta = jnp.array([1.0, -2.0]), jnp.array(0.5)
    np.testing.assert_allclose(objective(x, theta), (0.25 + 6.25) / 2 + 0.5 * 3)
