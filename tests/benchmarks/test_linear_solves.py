"""The benchmark of large adjoint solves, on small grids: it solves what it claims to solve."""

import math

import jax
import numpy as np

from benchmarks.linear_solves import run
from benchmarks.linear_solves.convection_diffusion import Case
from iterdiff.linalg.handed import STALE_MAX_PRODUCTS


def test_the_operator_is_the_matrix_that_the_truth_comes_from():
    case = Case(7)
    vectors = np.random.default_rng(0).normal(size=(2, 7, 7))
    matrix = case.matrix().toarray()
    with jax.numpy_rank_promotion("allow"):
        forward, back = jax.vjp(lambda u: case.operator(u, 0.0), vectors[0])
        adjoint = back(vectors[1])[0]
    np.testing.assert_allclose(forward.ravel(), matrix @ vectors[0].ravel(), rtol=1e-10)
    np.testing.assert_allclose(adjoint.ravel(), matrix.T @ vectors[1].ravel(), rtol=1e-10)
    assert case.products.take() == 2


def test_a_warm_start_saves_products():
    with jax.numpy_rank_promotion("allow"):
        table = run.sequence(16, 8)
    cold, warm, recycled, factors, _ = table.column("products of the others")
    assert recycled < warm < 0.9 * cold
    assert factors < 7 * STALE_MAX_PRODUCTS
    assert max(table.column("largest relative error")) < 1e-7
    assert all(math.isfinite(seconds) for seconds in table.column("time"))
