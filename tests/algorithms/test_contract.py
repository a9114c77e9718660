"""The contract of an algorithm, checked for every algorithm that iterdiff exports."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.cases import NAMES, build
from tests.helpers import dot, fixed_direction, relative_error

PUBLIC = {name: getattr(itd, name) for name in itd.__all__}
EXPORTED = {
    name: value
    for name, value in PUBLIC.items()
    if isinstance(value, type) and issubclass(value, itd.Algorithm) and value is not itd.Algorithm
}
FAMILIES = {
    kind.__name__: kind
    for kind in PUBLIC.values()
    if isinstance(kind, type) and issubclass(kind, itd.Problem) and kind is not itd.Problem
}
each_algorithm = pytest.mark.parametrize("algorithm", EXPORTED)


# One problem a family that x = theta solves exactly, also in floating point.
def _square(x, theta):
    return jnp.sum((x - theta) ** 2)


def _far(x, theta):
    del theta
    return jnp.sum(x) - 100


EXACT = {
    "Minimization": itd.Minimization(_square),
    "RootFinding": itd.RootFinding(lambda x, theta: 2 * (x - theta)),
    "LinearSystem": itd.LinearSystem(
        2 * np.eye(3), lambda theta: 2 * theta, positive_definite=True
    ),
    "FixedPoint": itd.FixedPoint(lambda x, theta: (x + theta) / 2),
    "CompositeMinimization": itd.CompositeMinimization(_square, lambda x, *_: x),
    "LeastSquares": itd.LeastSquares(lambda x, theta: x - theta),
    "ConstrainedMinimization": itd.ConstrainedMinimization(_square, inequality=_far),
    "QuadraticProgram": itd.QuadraticProgram(
        2 * np.eye(3), lambda theta: -2 * theta, G=np.ones((1, 3)), h=np.full(1, 100.0)
    ),
}
NEVER_AT_REST = {"Bisection"}  # continues with the midpoints of its bracket


@functools.cache
def examples() -> dict[str, list[tuple[str, int]]]:
    """Return, for every algorithm, the cases that it solves."""
    found: dict[str, list[tuple[str, int]]] = {}
    for name in NAMES:
        for index, entry in enumerate(build(name).algorithms):
            found.setdefault(entry.name, []).append((name, index))
    return found


def pick(algorithm: str, dtype: str, *, as_tree: bool):
    """Return a case and its algorithm; if there is one, with a tree (or an array) as unknown."""

    def fits(pair):
        return (len(jax.tree.leaves(build(pair[0]).x0)) > 1) == as_tree

    pairs = examples()[algorithm]
    name, index = next(filter(fits, pairs), pairs[0])
    case = build(name, dtype)
    return case, case.algorithms[index].algorithm


def differentiable_part(a):
    """Split a tree into the leaves to differentiate with respect to, and the rest."""
    return eqx.partition(a, eqx.is_inexact_array)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def signature(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def run(acting, problem, x0, theta, count):
    """Return the first state and the one after `count` steps; a scan, to compile one step only."""
    start = acting.init(problem, x0, theta)
    end, _ = jax.lax.scan(lambda s, _: (acting.step(problem, s, theta), None), start, None, count)
    return start, end


class Numbers(NamedTuple):
    """What one compiled program returns of an algorithm."""

    # A step in float64, on an unknown that is a tree where there is such a case. Derivatives are
    # in state, theta and hyper-parameters.
    start: Any
    before: Any
    after: Any
    batch: Any  # the same step under vmap, twice
    pushed: Any
    pulled: Any
    products: tuple  # <w, J v>, <J^T w, v>, and the sum of |w_i (J v)_i|
    # Two steps in float32, on an array where there is such a case.
    single: tuple
    single_pushed: Any
    # Three steps along the hyper-parameters: derivative, and central difference.
    hyper: Any
    # Three steps from an exact solution: value, pulled back, pushed forward.
    resting: Any


@functools.cache
def numbers(algorithm: str) -> Numbers:
    case, acting = pick(algorithm, "float64", as_tree=True)
    in_single, acting_in_single = pick(algorithm, "float32", as_tree=False)

    @jax.jit
    def everything():
        start = acting.init(case.problem, case.x0, case.theta)
        before = acting.step(case.problem, start, case.theta)
        return Numbers(
            start,
            before,
            *_transformed(case, acting, before),
            *_two_steps(in_single, acting_in_single),
            _along_hyper_parameters(case, acting) if algorithm in HYPER else None,
            _from_an_exact_solution(algorithm, acting_in_single),
        )

    return everything()


def _transformed(case, acting, state):
    """Return a step, under jvp, under vmap and under vjp."""
    moving, frozen = differentiable_part((state, case.theta, acting))

    def step(moving):
        state, theta, acting = eqx.combine(moving, frozen)
        after = acting.step(case.problem, state, theta)
        return differentiable_part(after)[0], after

    batch = jax.vmap(lambda m: step(m)[0])(jax.tree.map(lambda a: jnp.stack([a, a]), moving))
    v = fixed_direction(moving)
    value, pushed, after = jax.jvp(step, (moving,), (v,), has_aux=True)
    w = fixed_direction(value)
    pulled = jax.vjp(step, moving, has_aux=True)[1](w)[0]
    size = dot(*(jax.tree.map(jnp.abs, part) for part in (w, pushed)))
    return after, batch, pushed, pulled, (dot(w, pushed), dot(pulled, v), size)


def _two_steps(case, acting):
    """Return first and last state of two steps, and the last iterate's derivative in theta."""

    def steps(theta):
        states = run(acting, case.problem, case.x0, theta, 2)
        return states[1].x, states

    direction = fixed_direction(case.theta)
    _, pushed, states = jax.jvp(steps, (case.theta,), (direction,), has_aux=True)
    return states, pushed


def _along_hyper_parameters(case, acting, width=1e-5):
    moving, frozen = differentiable_part(acting)
    direction = fixed_direction(moving)

    def end(by):
        moved = jax.tree.map(lambda leaf, v: leaf + by * v, moving, direction)
        return run(eqx.combine(moved, frozen), case.problem, case.x0, case.theta, 3)[1].x

    ends = jax.vmap(end)(jnp.array([-width, width]))
    difference = jax.tree.map(lambda leaf: (leaf[1] - leaf[0]) / (2 * width), ends)
    return jax.jvp(end, (0.0,), (1.0,))[1], difference


def _from_an_exact_solution(algorithm, acting):
    problem, solution = EXACT[_family(acting)], exact_solution(algorithm)

    def end(theta, x0):
        start = problem.start(x0, theta)
        return problem.answer(run(acting, problem, start, theta, 3)[1].x)

    both, ones = (solution, solution), jnp.ones_like(solution)
    value, pull = jax.vjp(end, *both)
    return value, pull(ones), jax.jvp(end, both, (ones, ones))[1]


def _family(acting):
    """Return the first family of problems that an algorithm accepts."""
    return next(name for name, kind in FAMILIES.items() if issubclass(kind, acting.accepts))


def exact_solution(algorithm):
    return jnp.array([1.25, 0.5, 1.5])[: 1 if algorithm == "Bisection" else 3]


def test_no_algorithm_is_forgotten():
    assert len(EXPORTED) >= 18
    assert set(examples()) == set(EXPORTED), "give every algorithm a case in tests/cases"
    assert set(EXACT) == set(FAMILIES)
    for kind in EXPORTED.values():
        assert kind.accepts
        assert all(issubclass(family, itd.Problem) for family in kind.accepts)


@each_algorithm
def test_a_step_keeps_structure_shapes_and_dtypes(algorithm):
    found = numbers(algorithm)
    for states, as_tree, dtype in (
        ((found.start, found.before, found.after), True, "float64"),
        (found.single, False, "float32"),
    ):
        x0 = pick(algorithm, dtype, as_tree=as_tree)[0].x0
        start = states[0]
        assert isinstance(start, itd.State)
        assert signature(start.x) == signature(x0)
        for state in states[1:]:
            assert jax.tree.structure(state) == jax.tree.structure(start)
            assert signature(state) == signature(start)


@each_algorithm
def test_steps_in_float32_move_and_are_differentiable(algorithm):
    found = numbers(algorithm)  # two steps, since the first one of Sobolev does not move
    start, end, pushed = found.single[0].x, found.single[1].x, found.single_pushed
    assert np.all(np.isfinite(flat((end, pushed))))
    assert np.any(flat(end) != flat(start))
    assert {leaf.dtype for leaf in jax.tree.leaves((end, pushed))} == {np.dtype("float32")}


@each_algorithm
def test_a_step_transforms_consistently(algorithm):
    # vmap of the step is the step, and <w, J v> = <J^T w, v>
    found = numbers(algorithm)
    value = differentiable_part(found.after)[0]
    assert np.all(np.isfinite(flat((value, found.pushed, found.pulled))))
    for row in (0, 1):
        member = jax.tree.map(lambda leaf, row=row: leaf[row], found.batch)
        assert relative_error(member, value) <= 1e-10
    forward, reverse, size = found.products
    assert abs(forward - reverse) <= 1e-10 * size
    if pick(algorithm, "float64", as_tree=True)[1].differentiable:
        assert size > 1e-3


def has_hyper_parameters(algorithm: str) -> bool:
    acting = pick(algorithm, "float64", as_tree=True)[1]
    return acting.differentiable and bool(jax.tree.leaves(differentiable_part(acting)[0]))


HYPER = [name for name in EXPORTED if has_hyper_parameters(name)]


def test_hyper_parameters_are_array_leaves():
    assert {"GradientDescent", "HeavyBall", "Picard", "Richardson", "SOR", "FISTA"} <= set(HYPER)


@pytest.mark.parametrize("algorithm", HYPER)
def test_hyper_parameters_are_differentiated(algorithm):
    derivative, difference = numbers(algorithm).hyper
    assert relative_error(derivative, difference) < 1e-6


@each_algorithm
def test_is_finite_at_an_exact_solution(algorithm):
    # value and derivative of steps that continue after the solution was reached
    value, pulled, pushed = numbers(algorithm).resting
    assert np.all(np.isfinite(flat((value, pulled, pushed))))
    if algorithm not in NEVER_AT_REST:
        np.testing.assert_allclose(value, exact_solution(algorithm), rtol=1e-14)


@each_algorithm
def test_rejects_problems_that_it_cannot_solve(algorithm):
    acting, stop = pick(algorithm, "float64", as_tree=False)[1], itd.Steps(2)
    rejected = [name for name, family in FAMILIES.items() if not issubclass(family, acting.accepts)]
    assert rejected
    for family in rejected:
        with pytest.raises(ValueError, match=f"`algorithm`.*{algorithm}.*{family}") as info:
            itd.solve(EXACT[family], acting, jnp.ones(1), jnp.ones(1), stop=stop)
        accepted = [kind for kind in acting.accepts if kind in FAMILIES.values()]
        assert all(kind.__name__ in str(info.value) for kind in accepted)
