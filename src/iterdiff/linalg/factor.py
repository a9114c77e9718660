"""Factor a matrix once; solve with it, and its transpose, as often as needed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if

Vector = Float[Array, " n"]


class Factors(NamedTuple):
    """What is left of a square matrix ``A`` by Cholesky's method, QR or LU.

    Attributes
    ----------
    left, right : array
        Of a matrix that should be positive definite, `right` is the transpose of a triangular
        matrix: ``A = left @ right.T``, and `left` is `right` after Cholesky's method, orthogonal
        after QR. In general both are the array that LAPACK's LU leaves: ``A[order] = L U`` with
        `L` below the diagonal (ones on it, not stored) and `U` above.
    order : array of int, or None
        The rows of ``A`` in the order of the factors, after LU.
    definite : bool or None
        Whether Cholesky's method came through; None where it was not tried.
    matrix : array or None
        ``A``, where it was kept: products with it check answers.
    """

    left: Float[Array, "n n"]
    right: Float[Array, "n n"]
    order: Int[Array, " n"] | None
    definite: Bool[Array, ""] | None
    matrix: Float[Array, "n n"] | None


def factor(matrix: Float[Array, "n n"], *, positive_definite: bool, keep: bool) -> Factors:
    """Return the factors: Cholesky's where it should be definite (QR where it is not), else LU.

    Parameters
    ----------
    matrix : array
        ``A``; where it should be definite, Cholesky's method does not read its upper triangle.
    positive_definite : bool
        Whether it should be.
    keep : bool
        Whether the matrix is kept. LU then takes a copy.
    """
    kept = matrix if keep else None
    if not positive_definite:
        packed, _, order = jax.lax.linalg.lu(matrix)
        return Factors(packed, packed, order, None, kept)
    lower = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    # What is not finite anywhere else makes the last row so.
    definite = tree.all_finite(jax.lax.slice_in_dim(lower, -1, None))

    def by_qr() -> tuple:
        q, r = jax.lax.linalg.qr(matrix, full_matrices=False)
        return q, r.T

    left, right = only_if(~definite, by_qr, (lower, lower))
    return Factors(left, right, None, definite, kept)


def substitute(factors: Factors, b: Vector, *, transpose: bool = False) -> Vector:
    """Return ``A^{-1} b``, or ``A^{-T} b``, unchecked; what should be definite is symmetric."""
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
