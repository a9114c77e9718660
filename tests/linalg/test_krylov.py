"""Krylov methods: the Arnoldi relation, and when a method gives up."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.linalg.krylov import Budget, arnoldi, conjugate_gradients, gmres
from tests.helpers import compiled

SIZE = 80
RTOL = 1e-10
METHODS = pytest.mark.parametrize("method", [conjugate_gradients, gmres])


@lru_cache
def spread(condition: float) -> np.ndarray:
    """Return a symmetric matrix with eigenvalues from 1 / condition to 1, in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(6).normal(size=(SIZE, SIZE)))[0]
    return (basis * np.logspace(-np.log10(condition), 0, SIZE)) @ basis.T


def counter(method, budget: Budget):
    """Return a function of (matrix, b): number of products, whether it converged, true residual."""
    calls = []

    @compiled
    def solve(matrix, unit):
        def matvec(v):
            jax.debug.callback(lambda: calls.append(1))
            return matrix @ v

        x, solved = method(matvec, unit, budget, RTOL)
        return solved, jnp.linalg.norm(matrix @ x - unit)

    def count(matrix, b):
        calls.clear()
        solved, residual = solve(matrix, b / np.linalg.norm(b))
        jax.effects_barrier()
        return len(calls), bool(solved), float(residual)

    return count


@METHODS
def test_it_gives_up_unless_its_progress_predicts_an_end_within_the_budget(method):
    budget = Budget(trial_products=6, max_products=60)
    run = counter(method, budget)
    count, solved, _ = run(spread(1e8), np.ones(SIZE))
    assert not solved
    assert count <= budget.trial_products + 1
    count, solved, residual = run(spread(1.5), np.ones(SIZE))
    assert solved
    assert budget.trial_products < count <= budget.max_products
    assert residual <= 2 * RTOL
    # Fast at first, while the large, well-conditioned part of the right-hand side is solved for.
    half = SIZE // 2
    easy, hard = np.linspace(1, 1.5, half), np.logspace(-8, -1, half)
    count, solved, _ = run(np.diag(np.r_[easy, hard]), np.repeat([1.0, 1e-4], half))
    assert not solved
    assert budget.trial_products < count <= budget.max_products


def test_gmres_converges_across_restarts():
    matrix = np.eye(SIZE) + np.diag(np.full(SIZE - 1, 0.5), 1)
    run = counter(lambda *args: gmres(*args, restart=10), Budget(10**4, 10**4))
    count, solved, residual = run(matrix, np.ones(SIZE))
    assert solved
    assert residual <= 2 * RTOL
    assert count > 10


def test_conjugate_gradients_stop_at_negative_curvature():
    run = counter(conjugate_gradients, Budget(10**4, 10**4))
    count, solved, _ = run(np.diag(np.r_[np.ones(SIZE - 1), -1.0]), np.ones(SIZE))
    assert not solved
    assert count <= 2


def test_arnoldi_relation_until_the_krylov_space_is_exhausted():
    # The start has components along three eigenvectors: the fourth vector is zero.
    matrix = np.diag(np.arange(1.0, 9.0))
    steps = 5

    def run(start):
        return arnoldi(lambda v: matrix @ v, start, steps)

    full = np.ones(8)
    basis, columns = compiled(run)(full)
    np.testing.assert_allclose(basis @ basis.T, np.eye(steps + 1), atol=1e-12)
    np.testing.assert_allclose(matrix @ basis[:steps].T, basis.T @ columns.T, atol=1e-12)
    assert np.all(np.tril(columns.T, -2) == 0)
    exhausted, columns = compiled(run)(np.r_[1.0, 1.0, 1.0, np.zeros(5)])
    assert np.all(exhausted[3:] == 0)
    assert columns[2, 3] == 0
    values = np.sort(np.linalg.eigvals(columns.T[:3, :3]))
    np.testing.assert_allclose(values, [1, 2, 3], rtol=1e-12)
