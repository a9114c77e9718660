"""The zoo's closed forms are true: other tests lean on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import DTYPES, NAMES, build, push, suited

EACH = [(name, dtype) for name in NAMES for dtype in DTYPES]
each_case = pytest.mark.parametrize(("name", "dtype"), EACH)
# Of a few operations on numbers near 1, with conditions below 10.
ROUNDING = {"float64": 1e-13, "float32": 2e-5}


def largest(tree) -> float:
    """Return the largest absolute entry."""
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree))


def difference(a, b):
    """Return ``a - b``, refusing trees, shapes or dtypes that differ."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (u.shape, u.dtype) == (v.shape, v.dtype)
    return jax.tree.map(np.subtract, a, b)


def random_like(getkey, tree):
    """Return normal numbers in the structure of a tree."""
    return jax.tree.map(lambda leaf: jax.random.normal(getkey(), leaf.shape, leaf.dtype), tree)


@each_case
def test_residual_vanishes_at_the_solution_alone(name, dtype):
    case = build(name, dtype)
    residual = jax.jit(case.problem.residual)
    at_solution = residual(jax.jit(case.solution)(case.theta), case.theta)
    assert largest(difference(at_solution, jax.tree.map(jnp.zeros_like, case.x0))) < ROUNDING[dtype]
    assert largest(residual(case.x0, case.theta)) > 1e-2


@each_case
def test_jacobian_by_hand_is_that_of_the_solution(name, dtype):
    case = build(name, dtype)
    by_hand = jax.jit(case.jacobian)(case.theta)
    assert largest(by_hand) > 0.1
    by_jax = jax.jit(jax.jacobian(case.solution))(case.theta)
    assert largest(difference(by_hand, by_jax)) < ROUNDING[dtype]


@each_case
def test_implicit_function_theorem(name, dtype, getkey):
    # d/de residual(x* + e J v, theta + e v) = 0 in every direction v
    case = build(name, dtype)
    theta, tangent = case.theta, random_like(getkey, case.theta)
    elsewhere = random_like(getkey, case.x0)

    @jax.jit
    def slopes():
        x = case.solution(theta)
        moved = push(case.jacobian(theta), tangent, x)
        slope, other = (
            jax.jvp(case.problem.residual, (x, theta), (direction, tangent))[1]
            for direction in (moved, elsewhere)
        )
        return slope, other

    slope, other = slopes()
    assert largest(slope) < 10 * ROUNDING[dtype]
    assert largest(other) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_structure_is_as_declared(name):
    case = build(name)
    flat, unravel = jax.flatten_util.ravel_pytree(jax.jit(case.solution)(case.theta))

    def residual(vector):
        value = case.problem.residual(unravel(vector), case.theta)
        return jax.flatten_util.ravel_pytree(value)[0]

    matrix = np.asarray(jax.jit(jax.jacobian(residual))(flat))
    asymmetric = np.max(np.abs(matrix - matrix.T))
    if case.problem.symmetric:
        assert asymmetric < 1e-13
    if case.problem.positive_definite:
        assert case.problem.symmetric
        assert np.linalg.eigvalsh(matrix)[0] > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "index"), suited())
def test_suited_algorithms_arrive_in_the_steps_given(name, index, dtype):
    case = build(name, dtype)
    entry = case.algorithms[index]
    problem, algorithm, theta = case.problem, entry.algorithm, case.theta

    def body(_, state):
        return algorithm.step(problem, state, theta)

    @jax.jit
    def run():
        start = algorithm.init(problem, case.x0, theta)
        return jax.lax.fori_loop(0, entry.steps, body, start).x, case.solution(theta)

    assert largest(difference(*run())) < 10 * ROUNDING[dtype]
