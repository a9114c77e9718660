"""The closed forms of the cases are true: all other tests lean on them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.cases import BUILT, IN_FLOAT32, NAMES, build, push
from tests.helpers import fixed_direction

each_case = pytest.mark.parametrize(("name", "dtype"), BUILT)
# Of a few operations on numbers near 1, with condition numbers below 10.
ROUNDING = {"float64": 1e-13, "float32": 2e-5}


class Numbers(NamedTuple):
    """What one compiled program returns of a case."""

    solution: Any
    residual_at_solution: Any
    residual_at_start: Any
    jacobian_by_hand: Any
    jacobian_by_jax: Any
    residual_along_jacobian: Any  # d/de residual(x* + e J v, theta + e v): zero
    residual_elsewhere: Any  # the same in another direction of x: not zero
    matrix: Any  # d residual / dx at the solution
    ends: list[Any]  # where each suited algorithm ends


@functools.cache
def numbers(name: str, dtype: str) -> Numbers:
    case = build(name, dtype)
    problem, theta = case.problem, case.theta

    def end(entry):
        def body(_, state):
            return entry.algorithm.step(problem, state, theta)

        start = entry.algorithm.init(problem, case.x0, theta)
        return jax.lax.fori_loop(0, entry.steps, body, start).x

    @jax.jit
    def everything():
        x, by_hand, v = case.solution(theta), case.jacobian(theta), fixed_direction(theta)
        flat, unravel = jax.flatten_util.ravel_pytree(x)

        def along(direction):
            return jax.jvp(problem.residual, (x, theta), (direction, v))[1]

        def of_vector(vector):
            return jax.flatten_util.ravel_pytree(problem.residual(unravel(vector), theta))[0]

        return Numbers(
            x,
            problem.residual(x, theta),
            problem.residual(case.x0, theta),
            by_hand,
            jax.jacobian(case.solution)(theta),
            along(push(by_hand, v, x)),
            along(fixed_direction(x)),
            jax.jacobian(of_vector)(flat),
            [end(entry) for entry in case.algorithms],
        )

    return everything()


def largest(tree) -> float:
    """Return the largest absolute entry."""
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree))


def difference(a, b) -> float:
    """Return the largest entry of ``|a - b|``; structures, shapes and dtypes must agree."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (u.shape, u.dtype) == (v.shape, v.dtype)
    return largest(jax.tree.map(np.subtract, a, b))


def test_float32_covers_every_family_and_algorithm():
    def covered(names):
        cases = [build(name) for name in names]
        families = {type(case.problem) for case in cases}
        return families, {entry.name for case in cases for entry in case.algorithms}

    assert covered(IN_FLOAT32) == covered(NAMES)
    assert covered(NAMES)[0] == {
        itd.Minimization,
        itd.RootFinding,
        itd.LinearSystem,
        itd.FixedPoint,
        itd.CompositeMinimization,
        itd.LeastSquares,
        itd.QuadraticProgram,
    }


@each_case
def test_residual_vanishes_at_the_solution_only(name, dtype):
    case, found = build(name, dtype), numbers(name, dtype)
    zero = jax.tree.map(jnp.zeros_like, case.x0)
    assert difference(found.residual_at_solution, zero) < ROUNDING[dtype]
    assert largest(found.residual_at_start) > 1e-2


@each_case
def test_jacobian_by_hand_is_the_derivative_of_the_solution(name, dtype):
    found = numbers(name, dtype)
    assert largest(found.jacobian_by_hand) > 0.1
    assert difference(found.jacobian_by_hand, found.jacobian_by_jax) < ROUNDING[dtype]


@each_case
def test_implicit_function_theorem(name, dtype):
    found = numbers(name, dtype)
    assert largest(found.residual_along_jacobian) < 10 * ROUNDING[dtype]
    assert largest(found.residual_elsewhere) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_structure_is_as_declared(name):
    problem, matrix = build(name).problem, np.asarray(numbers(name, "float64").matrix)
    if problem.symmetric:
        assert np.max(np.abs(matrix - matrix.T)) < 1e-13
    if problem.positive_definite:
        assert problem.symmetric
        assert np.linalg.eigvalsh(matrix)[0] > 0.1


@each_case
def test_suited_algorithms_converge_in_the_steps_given(name, dtype):
    found = numbers(name, dtype)
    for entry, end in zip(build(name, dtype).algorithms, found.ends, strict=True):
        assert difference(end, found.solution) < 10 * ROUNDING[dtype], entry.name
