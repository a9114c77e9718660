"""Linear solves: every method of the policy, which one is chosen, and failures that show."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from iterdiff.jaxtools.jaxpr import does
from iterdiff.jaxtools.linear_map import LinearMap
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from iterdiff.linalg.solve import Inverse, Method
from tests.helpers import compiled, relative_error
from tests.linalg.systems import (
    DEFINITE,
    GENERAL,
    INDEFINITE,
    MIDDLE,
    NONSYMMETRIC,
    RHS,
    SINGULAR,
    SIZE,
    SPD,
    WEIGHTS,
    both_ways,
    every_method,
    solve,
    spread,
)

# An indefinite matrix that is claimed to be definite: Cholesky and conjugate gradients notice.
OPERATORS = {
    "definite": (SPD, DEFINITE),
    "not_definite_after_all": (INDEFINITE, DEFINITE),
    "general": (NONSYMMETRIC, GENERAL),
}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("definite", "factored"),
        ("definite", "fallback"),
        ("definite", "krylov"),
        ("not_definite_after_all", "factored"),
        ("not_definite_after_all", "fallback"),
        ("not_definite_after_all", "krylov"),
        ("general", "lu"),
        ("general", "fallback"),
        ("general", "krylov"),
    ],
)
def test_solves_transposes_and_batches(kind, method):
    matrix, structure = OPERATORS[kind]
    not_finite = np.where(np.arange(SIZE) == 3, np.nan, RHS)
    several = np.stack([RHS, 1e-200 * RHS[::-1], np.zeros(SIZE), 1e150 * RHS, not_finite])

    @compiled
    def everything(matrix, b, several):
        def by(v):
            return solve(matrix, v, structure, method)

        def loud(v):
            return solve(matrix, v, structure, method, throw=kind != "not_definite_after_all")

        return *both_ways(by, b, b), jax.vmap(loud)(several)

    x, transposed, batch = everything(matrix, RHS, several)
    if kind == "not_definite_after_all" and method == "krylov":
        # Conjugate gradients stop at negative curvature, and there is no dense method.
        assert np.all(np.isnan(x)) and np.all(np.isnan(transposed))
        assert np.all(np.isnan(batch))
        return
    np.testing.assert_allclose(x, np.linalg.solve(matrix, RHS), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(transposed, np.linalg.solve(matrix.T, RHS), rtol=1e-8, atol=1e-8)
    for row, b in zip(batch[:-1], several, strict=False):
        size = np.max(np.abs(b)) or 1.0
        np.testing.assert_allclose(row / size, np.linalg.solve(matrix, b / size), atol=1e-8)
    # A right-hand side that is not finite is not a failure of this solve: it does not raise.
    assert np.any(np.isnan(batch[-1]))


def test_each_policy_has_its_factorisations():
    def factorisations(method, structure):
        jaxpr = jax.make_jaxpr(lambda m, b: solve(m, b, structure, method))(SPD, RHS).jaxpr
        return {name for name in ("lu", "cholesky", "qr") if does(jaxpr, (name,))}

    assert factorisations("factored", GENERAL) == {"lu"}
    assert factorisations("lu", DEFINITE) == {"lu"}
    assert factorisations("factored", DEFINITE) == {"cholesky", "qr"}
    assert factorisations("fallback", DEFINITE) == {"cholesky", "qr"}
    assert factorisations("krylov", DEFINITE) == set()


@every_method
def test_a_singular_operator_is_a_failure(method):
    structure = DEFINITE if method == "krylov" else GENERAL
    matrix = SINGULAR if method == "krylov" else np.diag(np.arange(SIZE) / SIZE)
    quiet = compiled(lambda m, b: solve(m, b, structure, method))
    for scale in (1.0, 1e-200, 1e200):  # the square of the norm may be 0 or infinite
        assert np.all(np.isnan(quiet(matrix, scale * RHS)))
    if method in ("factored", "krylov"):
        loud = compiled(lambda m, b: solve(m, b, structure, method, throw=True))
        with pytest.raises(RuntimeError, match="linear solve.*`throw=False`"):
            jax.block_until_ready(loud(matrix, RHS))


@pytest.mark.parametrize("method", ["factored", "fallback", "krylov"])
def test_batches_of_operators(method):
    # Some members need the dense method, others do not.
    matrices = np.stack([SPD, INDEFINITE, SPD + np.eye(SIZE)])
    structure = DEFINITE if method != "krylov" else GENERAL
    batch = compiled(jax.vmap(lambda m, b: solve(m, b, structure, method), in_axes=(0, None)))
    for row, matrix in zip(batch(matrices, RHS), matrices, strict=True):
        np.testing.assert_allclose(row, np.linalg.solve(matrix, RHS), rtol=1e-8, atol=1e-8)


def second_derivatives(by):
    """Return the Hessian of ``w^T A(p)^{-1} b(p)``; ``by(matrix, b)`` solves."""

    def value(p):
        matrix = SPD + jnp.diag(p[0] * jnp.linspace(0, 1, SIZE)) + p[1] ** 2 * jnp.eye(SIZE)
        return WEIGHTS @ by(matrix, RHS * p[0])

    return compiled(jax.jacfwd(jax.grad(value)))(jnp.array([0.7, 0.4]))


@lru_cache
def expected_second_derivatives():
    """Return the Hessian by JAX's own dense solve."""
    return second_derivatives(jnp.linalg.solve)


@pytest.mark.parametrize(
    ("method", "structure"),
    [
        ("factored", DEFINITE),
        ("fallback", GENERAL),
        ("krylov", DEFINITE),
    ],
    ids=["factored", "fallback", "krylov"],
)
def test_second_derivatives_through_the_operator(method, structure):
    found = second_derivatives(lambda m, b: solve(m, b, structure, method))
    assert relative_error(found, expected_second_derivatives()) < 1e-8


@pytest.mark.parametrize("method", ["lu", "factored", "krylov"])
def test_float32_has_its_own_tolerance(method):
    matrix, b = SPD.astype(np.float32), RHS.astype(np.float32)
    by = compiled(lambda m, b: solve(m, b, DEFINITE, method, throw=True))
    x = by(matrix, b)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, np.linalg.solve(SPD, RHS), atol=1e-5)
    tiny = np.float32(1e-30)
    np.testing.assert_allclose(by(matrix, tiny * b) / tiny, x, atol=1e-5)


def programs(function, *args) -> tuple[str, str]:
    """Return a compiled program, and the part of it that always runs: no body of a loop."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return text, text[text.index("ENTRY") :]


def test_only_the_failing_branch_of_a_batch_runs():
    # XLA hoists what no round changes out of a loop, where it would run for every member.
    matrices, rows = np.stack([SPD, SPD + np.eye(SIZE)]), np.stack([RHS, RHS])
    batch = jax.vmap(lambda m, b: solve(m, b, DEFINITE, "factored", throw=True))
    text, always = programs(batch, matrices, rows)
    assert "potrf" in always
    for skipped in ("geqrf", "callback"):
        assert skipped in text
        assert skipped not in always


def test_reverse_mode_estimates_a_condition_number_only_if_the_residual_does_not_decide():
    by = jax.jit(lambda m, w: jax.vjp(lambda b: solve(m, b, GENERAL, "lu"), w)[1](w)[0])
    text, always = programs(by, SPD, RHS)
    # Two for the solution, one that rounds the right-hand side once; four for the condition.
    assert (always.count("trsm"), text.count("trsm")) == (3, 7)


# Which method: counted work, and observed convergence

# A single right-hand side has time for 15 products if definite, else 31; three for a third of them.
PATIENT = Limits(0, 0, MIDDLE, product_slowdown=1.0, trial_max_time_share=1.0)


@pytest.mark.parametrize("definite", [True, False])
def test_the_trial_takes_a_small_share_of_the_time_of_the_dense_method(definite):
    policy, limits = DenseOrKrylov(), Limits()
    size = limits.factored_max_unknowns + 40
    matrix = jnp.ones((size, size))
    linear_map = LinearMap.of(lambda v: matrix @ v, matrix[0])
    budget = policy.budget(linear_map, definite)
    factoring = (1 if definite else 2) * size**3 / 3
    trial_time = budget.trial_products * limits.product_slowdown * 2 * size**2
    assert trial_time <= limits.trial_max_time_share * factoring
    # Each of many right-hand sides takes its products; the matrix is factored once.
    assert policy.budget(linear_map, definite, size).trial_products < limits.trial_min_products
    # With eight times as many rows of data, forming the matrix costs more than eight products.
    tall = jnp.concatenate([matrix] * 8)
    gram = policy.budget(LinearMap.of(lambda v: tall.T @ (tall @ v), matrix[0]), definite)
    assert gram.max_products > budget.max_products


@pytest.mark.parametrize("structure", [DEFINITE, GENERAL], ids=["definite", "general"])
def test_slow_and_fast_convergence_end_in_the_same_answer(structure):
    weights = np.random.default_rng(7).normal(size=(3, MIDDLE))
    policy = DenseOrKrylov(limits=PATIENT)

    @compiled
    def everything(matrix, b):
        def by(v):
            return solve(matrix, v, structure, policy)

        return jax.vmap(by)(b), *both_ways(by, b[0], b[1])

    for condition in (1.5, 1e6):
        matrix = spread(condition)
        several, one, transposed = everything(matrix, weights)
        expected = np.linalg.solve(matrix, weights.T).T
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(one / scale, expected[0] / scale, atol=1e-8)
        np.testing.assert_allclose(several / scale, expected / scale, atol=1e-8)
        np.testing.assert_allclose(transposed / scale, expected[1] / scale, atol=1e-8)
        # The backward error tells the methods apart: an iteration stops at its tolerance.
        backward = np.linalg.norm(matrix @ one - weights[0])
        backward /= np.linalg.norm(one) + np.linalg.norm(weights[0])
        assert (backward > 1e-14) == (condition == 1.5)


def test_many_right_hand_sides_share_one_factorisation():
    # One alone is worth a trial of a Krylov method.
    matrix, solver = spread(1.5), DenseOrKrylov(limits=PATIENT)

    def by(b):
        return solve(matrix, b, GENERAL, solver)

    assert "getrf" not in programs(by, np.ones(MIDDLE))[1]
    assert programs(jax.vmap(by), np.eye(MIDDLE))[1].count("getrf") == 1
    found = compiled(jax.vmap(by))(np.eye(MIDDLE))
    np.testing.assert_allclose(found.T, np.linalg.inv(matrix), atol=1e-12)


@pytest.mark.parametrize("structure", [DEFINITE, GENERAL], ids=["definite", "general"])
def test_one_factorisation_serves_several_solves(structure):
    # Three products cost more than one with their product: the factors keep that matrix.
    def operator(v):
        return {"x": SPD @ (SPD @ (SPD @ v["x"]))}

    b, matrix = {"x": jnp.asarray(RHS)}, SPD @ SPD @ SPD
    assert Inverse(operator, b, structure, Method(lx.LU()), factor=True).factors is None
    by = Inverse(operator, b, structure, factor=True)
    assert by.factors is not None
    assert (by.factors.definite is None) == (structure is GENERAL)
    expected = np.linalg.solve(matrix, RHS)
    np.testing.assert_allclose(by.factored(b)["x"], expected, atol=1e-8)
    np.testing.assert_allclose(by(b)["x"], expected, atol=1e-8)
    np.testing.assert_allclose(by.product(b)["x"], matrix @ RHS, rtol=1e-12)
    by.factors = by.factors._replace(matrix=None)
    np.testing.assert_allclose(by.product(b)["x"], matrix @ RHS, rtol=1e-12)
