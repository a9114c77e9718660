"""Factors of a matrix: by LU, beside which Cholesky tells whether it is definite, and by QR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.linalg.factor import factor, factor_by_qr, substitute


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


@pytest.mark.parametrize("size", [1, 4])
def test_qr_solves_with_the_matrix_and_with_its_transpose(size):
    rng = np.random.default_rng(size)
    units = np.logspace(-8, 8, size)[::-1]
    matrix, b = units[:, None] * rng.normal(size=(size, size)), rng.normal(size=size)
    factors = factor_by_qr(jnp.asarray(matrix))
    found = substitute(factors, jnp.asarray(b))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, b), rtol=1e-10)
    found = substitute(factors, jnp.asarray(b), transpose=True)
    np.testing.assert_allclose(found, np.linalg.solve(matrix.T, b), rtol=1e-10)
