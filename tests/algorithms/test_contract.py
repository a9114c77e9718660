"""The contract of an algorithm, held against every one that is exported."""

import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.algorithms.base import State
from tests.cases import DTYPES, NAMES, build
from tests.helpers import compiled, dot, fixed_direction, relative_error

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


@functools.cache
def examples() -> dict[str, list[tuple[str, int]]]:
    """Return, for every algorithm, the problems of the zoo that it solves."""
    found: dict[str, list[tuple[str, int]]] = {}
    for name in NAMES:
        for index, entry in enumerate(build(name).algorithms):
            found.setdefault(entry.name, []).append((name, index))
    return found


def pick(algorithm: str, dtype: str, *, as_tree: bool):
    """Return a case and its algorithm; where there is one, with a tree (or no tree) as unknown."""

    def fits(pair):
        return (len(jax.tree.leaves(build(pair[0]).x0)) > 1) == as_tree

    pairs = examples()[algorithm]
    name, index = next(filter(fits, pairs), pairs[0])
    case = build(name, dtype)
    return case, case.algorithms[index].algorithm


def split(a):
    """Split what one differentiates in from the rest."""
    return eqx.partition(a, eqx.is_inexact_array)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def signature(tree):
    return [
        (leaf.shape, leaf.dtype)
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.ShapeDtypeStruct | jax.Array)
    ]


def test_no_algorithm_is_forgotten():
    assert len(EXPORTED) >= 18
    assert set(examples()) == set(EXPORTED), "give every algorithm a problem in tests/cases"


@each_algorithm
def test_declares_what_it_accepts(algorithm):
    accepts = EXPORTED[algorithm].accepts
    assert accepts
    assert all(issubclass(kind, itd.Problem) for kind in accepts)


@pytest.mark.parametrize("as_tree", [False, True], ids=["array", "tree"])
@pytest.mark.parametrize("dtype", DTYPES)
@each_algorithm
def test_a_step_keeps_structure_shapes_and_dtypes(algorithm, dtype, as_tree):
    case, acting = pick(algorithm, dtype, as_tree=as_tree)

    def init():
        return acting.init(case.problem, case.x0, case.theta)

    before = eqx.filter_eval_shape(init)
    after = eqx.filter_eval_shape(lambda: acting.step(case.problem, init(), case.theta))
    assert isinstance(before, State)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert signature(before) == signature(after)
    assert signature(before.x) == signature(case.x0)


@each_algorithm
def test_steps_in_float32_move_and_are_differentiable(algorithm):
    case, acting = pick(algorithm, "float32", as_tree=False)

    def two_steps(theta):  # the first one of Sobolev does not move
        state = acting.init(case.problem, case.x0, theta)
        for _ in range(2):
            state = acting.step(case.problem, state, theta)
        return state.x

    value, pushed = compiled(lambda v: jax.jvp(two_steps, (case.theta,), (v,)))(
        fixed_direction(case.theta)
    )
    assert np.all(np.isfinite(flat((value, pushed))))
    assert np.any(flat(value) != flat(case.x0))
    assert {leaf.dtype for leaf in jax.tree.leaves((value, pushed))} == {np.dtype("float32")}


def step_of(case, acting, state):
    """Return the step as a function of the floating leaves of state, theta, hyper-parameters."""
    frozen = split((state, case.theta, acting))[1]

    def step(moving):
        state, theta, acting = eqx.combine(moving, frozen)
        return split(acting.step(case.problem, state, theta))[0]

    return step, split((state, case.theta, acting))[0]


@each_algorithm
def test_a_step_transforms_consistently(algorithm):
    # vmap of the step is the step; <w, J v> = <J^T w, v>, in state, theta and hyper-parameters
    case, acting = pick(algorithm, "float64", as_tree=True)

    @compiled
    def everything():
        start = acting.init(case.problem, case.x0, case.theta)
        step, moving = step_of(case, acting, acting.step(case.problem, start, case.theta))
        value, v = step(moving), fixed_direction(moving)
        w = fixed_direction(value)
        pushed, pulled = jax.jvp(step, (moving,), (v,))[1], jax.vjp(step, moving)[1](w)[0]
        pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), moving)
        products = (
            (u * z).astype(float)
            for u, z in zip(jax.tree.leaves(w), jax.tree.leaves(pushed), strict=True)
        )
        size = sum(jnp.sum(jnp.abs(product)) for product in products)
        return value, jax.vmap(step)(pair), (pushed, pulled), dot(w, pushed), dot(pulled, v), size

    value, pair, both, forward, reverse, size = everything()
    assert np.all(np.isfinite(flat(value)))
    assert np.all(np.isfinite(flat(both)))
    assert abs(forward - reverse) <= 1e-10 * size
    if acting.differentiable:
        assert size > 1e-3
    for row in (0, 1):
        alike = jax.tree.map(lambda leaf, row=row: leaf[row], pair)
        assert relative_error(alike, value) <= 1e-10


def has_hyper_parameters(algorithm: str) -> bool:
    acting = pick(algorithm, "float64", as_tree=True)[1]
    return acting.differentiable and bool(jax.tree.leaves(split(acting)[0]))


HYPER = [name for name in EXPORTED if has_hyper_parameters(name)]


def test_hyper_parameters_are_array_leaves():
    assert {"GradientDescent", "HeavyBall", "Picard", "Richardson", "SOR", "FISTA"} <= set(HYPER)


@pytest.mark.parametrize("algorithm", HYPER)
def test_hyper_parameters_are_differentiated(algorithm):
    # against central differences over three unrolled steps
    case, acting = pick(algorithm, "float64", as_tree=True)
    moving, frozen = split(acting)
    widths = fixed_direction(moving)

    def moved(by):
        hyper = jax.tree.map(lambda leaf, width: leaf + by * width, moving, widths)
        task = (case.problem, eqx.combine(hyper, frozen), case.x0, case.theta)
        return itd.solve(*task, stop=itd.Steps(3), mode=itd.Unrolled()).x

    @compiled
    def both():
        h = 1e-5
        return jax.jvp(moved, (0.0,), (1.0,))[1], jax.vmap(moved)(jnp.array([-h, h]))

    with _caveats(acting):
        slope, ends = both()
    difference = jax.tree.map(lambda leaf: (leaf[1] - leaf[0]) / 2e-5, ends)
    assert relative_error(slope, difference) < 1e-6


def _caveats(acting):
    """Expect the warning of an algorithm that has a caveat, and none of another."""
    if acting.caveat:
        return pytest.warns(UserWarning, match=f"Unrolled.*{type(acting).__name__}")
    return contextlib.nullcontext()


# One problem a family that is solved exactly, in floating point too, by x = theta.
def _square(x, theta):
    return jnp.sum((x - theta) ** 2)


EXACT = {
    "Minimization": itd.Minimization(_square),
    "RootFinding": itd.RootFinding(lambda x, theta: 2 * (x - theta)),
    "LinearSystem": itd.LinearSystem(
        2 * np.eye(3), lambda theta: 2 * theta, positive_definite=True
    ),
    "FixedPoint": itd.FixedPoint(lambda x, theta: (x + theta) / 2),
    "CompositeMinimization": itd.CompositeMinimization(_square, lambda x, *_: x),
}


def test_every_family_has_an_exact_problem():
    assert set(EXACT) == set(FAMILIES)


@each_algorithm
def test_is_finite_at_an_exact_solution(algorithm):
    # value and derivative of steps that go on after the solution was reached
    _, acting = pick(algorithm, "float64", as_tree=False)
    problem = EXACT[acting.accepts[0].__name__]
    theta = jnp.array([1.25, 0.5, 1.5])[: 1 if algorithm == "Bisection" else 3]

    @compiled
    def after_three(theta):
        def run(theta, x0):
            state = acting.init(problem, x0, theta)
            for _ in range(3):
                state = acting.step(problem, state, theta)
            return state.x

        pulled = jax.vjp(run, theta, theta)[1](jnp.ones_like(theta))
        return run(theta, theta), jax.jacfwd(run, (0, 1))(theta, theta), pulled

    value, pushed, pulled = after_three(theta)
    if algorithm != "Bisection":  # it goes on with the midpoints of its bracket
        np.testing.assert_allclose(value, theta, rtol=1e-14)
    assert np.all(np.isfinite(flat((value, pushed, pulled))))


REFUSED = [
    (name, family)
    for name, kind in EXPORTED.items()
    for family, problem in FAMILIES.items()
    if not issubclass(problem, kind.accepts)
]


@pytest.mark.parametrize(("algorithm", "family"), REFUSED)
def test_refuses_what_it_cannot_solve(algorithm, family):
    _, acting = pick(algorithm, "float64", as_tree=False)
    with pytest.raises(
        ValueError, match=f"{algorithm} cannot solve a {family}; it solves "
    ) as info:
        itd.solve(EXACT[family], acting, jnp.ones(1), jnp.ones(1), stop=itd.Steps(2))
    for kind in acting.accepts:
        assert kind.__name__ in str(info.value)
