"""Factors of a matrix that should be positive definite: LU solves, and Cholesky tells whether."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.linalg.factor import factor, substitute


@pytest.mark.parametrize("size", [1, 4])
def test_lu_solves_and_cholesky_tells_whether_it_is_definite(size):
    rng = np.random.default_rng(size)
    root, skew = rng.normal(size=(2, size, size))
    definite = root @ root.T + np.eye(size)
    matrices = np.stack([definite, -definite, definite + skew - skew.T, np.nan * definite])
    b = jnp.asarray(rng.normal(size=size))

    @jax.jit
    @jax.vmap
    def solved(matrix):
        factors = factor(matrix, positive_definite=True, keep=False, by_lu=True)
        both = substitute(factors, b), substitute(factors, b, transpose=True)
        return factors.definite, *both

    found, solutions, transposed = (np.asarray(v) for v in solved(matrices))
    assert found.tolist() == [True, False, size == 1, False]
    expected = np.stack([np.linalg.solve(m, b) for m in matrices])
    np.testing.assert_allclose(solutions, expected, rtol=1e-12)
    expected = np.stack([np.linalg.solve(m.T, b) for m in matrices])
    np.testing.assert_allclose(transposed, expected, rtol=1e-12)
