"""Factor a matrix once; solve with it, and with its transpose, as often as needed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if

Vector = Float[Array, " n"]


class Factors(NamedTuple):
    """The factors of a square matrix ``A`` by Cholesky, QR or LU.

    Attributes
    ----------
    left, right : array, shape (n, n)
        If ``A`` should be positive definite: ``A = left @ right.T`` with `right` lower triangular.
        Then `left` equals `right` after Cholesky, and is orthogonal after QR. Otherwise both are
        the packed array of LAPACK's LU: ``A[order] = L U``, with `U` in the upper triangle and
        `L` below the diagonal (its unit diagonal is not stored).
    order : array of int, shape (n,), or None
        The row permutation of LU.
    definite : bool or None
        Whether Cholesky succeeded; None if it was not tried.
    matrix : array, shape (n, n), or None
        ``A``, if it was kept to check answers.
    """

    left: Float[Array, "n n"]
    right: Float[Array, "n n"]
    order: Int[Array, " n"] | None
    definite: Bool[Array, ""] | None
    matrix: Float[Array, "n n"] | None


def factor(matrix: Float[Array, "n n"], *, positive_definite: bool, keep: bool) -> Factors:
    """Factor a matrix by LU; by Cholesky, or QR if that fails, if it should be positive definite.

    Parameters
    ----------
    matrix : array, shape (n, n)
        ``A``. Cholesky reads its lower triangle only.
    positive_definite : bool
        Whether it should be positive definite.
    keep : bool
        Whether to keep the matrix; LU then factors a copy.
    """
    kept = matrix if keep else None
    if not positive_definite:
        packed, _, order = jax.lax.linalg.lu(matrix)
        return Factors(packed, packed, order, None, kept)
    lower = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    # A value that is not finite in any row makes the last row not finite.
    definite = tree.all_finite(jax.lax.slice_in_dim(lower, -1, None))

    def by_qr() -> tuple:
        q, r = jax.lax.linalg.qr(matrix, full_matrices=False)
        return q, r.T

    left, right = only_if(~definite, by_qr, (lower, lower))
    return Factors(left, right, None, definite, kept)


def substitute(factors: Factors, b: Vector, *, transpose: bool = False) -> Vector:
    """Return ``A^{-1} b``, or ``A^{-T} b``, unchecked.

    A matrix that should be positive definite is taken to be symmetric: `transpose` is ignored.
    """
    left, right, order, definite, _ = factors
    if definite is not None:
        y = jnp.where(definite, _triangular(left, b, lower=True), b @ left)
        return _triangular(right, y, lower=True, transpose=True)
    if transpose:
        y = _triangular(right, b, lower=False, transpose=True)
        z = _triangular(left, y, lower=True, unit=True, transpose=True)
        return jnp.zeros_like(b).at[order].set(z, mode="promise_in_bounds")
    permuted = b.at[order].get(mode="promise_in_bounds")
    y = _triangular(left, permuted, lower=True, unit=True)
    return _triangular(right, y, lower=False)


def _triangular(
    a: Float[Array, "n n"],
    b: Vector,
    *,
    lower: bool,
    transpose: bool = False,
    unit: bool = False,
) -> Vector:
    return jax.lax.linalg.triangular_solve(
        a, b[:, None], left_side=True, lower=lower, transpose_a=transpose, unit_diagonal=unit
    )[:, 0]
