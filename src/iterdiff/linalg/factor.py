r"""Factor a matrix once; solve with it, and with its transpose, as often as needed.

The matrix ``A`` is equilibrated first: ``B = R A C``, where the diagonal matrices ``R`` and ``C``
make the largest entry of every row and column about one. An equation or an unknown in other units
then changes neither the pivots nor the condition number. The scales are powers of two, so that
scaling rounds nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if

Vector = Float[Array, " n"]


class Equilibration(NamedTuple):
    """The diagonals of ``R`` and ``C`` in ``B = R A C``.

    Attributes
    ----------
    rows, columns : array, shape (n,)
        Powers of two.
    """

    rows: Vector
    columns: Vector

    def transposed(self) -> "Equilibration":
        """Return that of the transpose."""
        return Equilibration(rows=self.columns, columns=self.rows)


class Factors(NamedTuple):
    """The factors of a square matrix ``A``, after equilibration, by Cholesky, QR or LU.

    Attributes
    ----------
    left, right : array, shape (n, n)
        By Cholesky or QR, ``B = left @ right.T`` with `right` lower triangular; `left` equals
        `right` after Cholesky, and is orthogonal after QR. By LU, `left` is None and `right` is the
        packed array of LAPACK: ``B[order] = L U``, with `U` in the upper triangle and `L` below the
        diagonal (its unit diagonal is not stored).
    order : array of int, shape (n,), or None
        The row permutation of LU; None if there is none to make.
    definite : bool or None
        Whether ``A`` is symmetric and positive definite; None if that was not asked for.
    matrix : array, shape (n, n), or None
        ``B``, if it was kept to check answers.
    scales : Equilibration
        What makes ``B`` of ``A``.
    """

    left: Float[Array, "n n"] | None
    right: Float[Array, "n n"]
    order: Int[Array, " n"] | None
    definite: Bool[Array, ""] | None
    matrix: Float[Array, "n n"] | None
    scales: Equilibration

    def inverted_twice(self, g: Vector) -> tuple[Vector, Vector]:
        """Return ``B^{-1} g`` and ``B^{-T} B^{-1} g``, without the permutation of LU."""
        unordered = self._replace(order=None)
        once = substitute_scaled(unordered, g[:, None])
        return once[:, 0], substitute_scaled(unordered, once, transpose=True)[:, 0]


def factor(
    matrix: Float[Array, "n n"], *, positive_definite: bool, keep: bool, by_lu: bool
) -> Factors:
    """Factor a matrix by LU; by Cholesky, or QR if that fails, if it should be positive definite.

    Parameters
    ----------
    matrix : array, shape (n, n)
        ``A``. Cholesky reads its lower triangle only.
    positive_definite : bool
        Whether it should be symmetric and positive definite.
    keep : bool
        Whether to keep the matrix; LU then factors a copy.
    by_lu : bool
        Whether to use LU for a positive definite matrix, too. Cholesky then only tells whether it
        is one: two factorisations without a fallback compile in half the time.
    """
    rows, columns = _scales_of_definite(matrix) if positive_definite else _scales(matrix)
    matrix = rows[:, None] * matrix * columns[None]
    kept, scales = matrix if keep else None, Equilibration(rows, columns)
    if not positive_definite:
        return Factors(None, *_by_lu(matrix), None, kept, scales)
    if by_lu:
        return Factors(None, *_by_lu(matrix), _by_cholesky(matrix)[1], kept, scales)
    left, right, definite = _by_cholesky_or_qr(matrix)
    return Factors(left, right, None, definite, kept, scales)


def factor_by_qr(matrix: Float[Array, "n n"]) -> Factors:
    """Factor a matrix by QR.

    It takes four times as many operations as LU, and makes a smaller program: there is no
    permutation. So it is for a matrix that is seldom factored at all.
    """
    rows, columns = _scales(matrix)
    q, r = jax.lax.linalg.qr(rows[:, None] * matrix * columns[None], full_matrices=False)
    scales = Equilibration(rows, columns)
    return Factors(q, _without_zero_pivots(r.T), None, None, None, scales)


def _by_lu(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Int[Array, " n"] | None]:
    """Return the packed factors of LU, and their order."""
    if matrix.shape[0] == 1:  # a batch of scalar systems needs no routine for matrices
        return _without_zero_pivots(matrix), None
    packed, _, order = jax.lax.linalg.lu(matrix)
    return _without_zero_pivots(packed), order


def _by_cholesky(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Bool[Array, ""]]:
    """Return the factor of Cholesky, and whether the matrix has one."""
    if matrix.shape[0] == 1:
        lower = jnp.sqrt(matrix)
        return lower, (matrix[0, 0] > 0) & jnp.isfinite(matrix[0, 0])
    lower = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    # A value that is not finite in any row makes the last row not finite.
    return lower, tree.all_finite(jax.lax.slice_in_dim(lower, -1, None)) & _symmetric(matrix)


def _by_cholesky_or_qr(matrix: Float[Array, "n n"]) -> tuple:
    """Return `left`, `right` and `definite` of `Factors`."""
    lower, definite = _by_cholesky(matrix)

    def by_qr() -> tuple:
        q, r = jax.lax.linalg.qr(matrix, full_matrices=False)
        return q, _without_zero_pivots(r.T)

    left, right = only_if(~definite, by_qr, (lower, lower))
    return left, right, definite


def _symmetric(matrix: Float[Array, "n n"]) -> Bool[Array, ""]:
    """Whether an equilibrated matrix is symmetric, to half the digits."""
    return jnp.max(jnp.abs(matrix - matrix.T)) <= float(jnp.finfo(matrix.dtype).eps) ** 0.5


def _without_zero_pivots(triangle: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return a triangular factor of ``B`` whose diagonal is at least eps.

    That perturbs ``B`` within its rounding errors. A singular system with solutions then has one
    of them as its answer, as it would have after another rounding.
    """
    eps = jnp.finfo(triangle.dtype).eps
    tiny = jnp.abs(triangle) < eps
    return jnp.where(jnp.eye(triangle.shape[0], dtype=bool) & tiny, eps, triangle)


def _scales(matrix: Float[Array, "n n"]) -> tuple[Vector, Vector]:
    """Return scales that make the largest entries of rows, then of columns, about one."""
    sizes = jnp.abs(matrix)
    rows = inverse_power_of_two(_largest(sizes, 1))
    return rows, inverse_power_of_two(_largest(rows[:, None] * sizes, 0))


def _scales_of_definite(matrix: Float[Array, "n n"]) -> tuple[Vector, Vector]:
    """Return equal scales of rows and columns that make the diagonal about one."""
    diagonal = jnp.diagonal(matrix)
    positive = jnp.where(diagonal > 0, diagonal, _largest(jnp.abs(matrix), 1))
    scale = inverse_power_of_two(jnp.sqrt(positive))
    return scale, scale


def _largest(sizes: Float[Array, "n n"], axis: int) -> Vector:
    """Return the largest entries along an axis; a tiny number where all are zero."""
    return jnp.max(sizes, axis=axis, initial=float(jnp.finfo(sizes.dtype).tiny))


def inverse_power_of_two(sizes: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return ``1 / sizes``, with the sizes rounded to powers of two."""
    return 1 / jax.lax.reduce_precision(sizes, jnp.finfo(sizes.dtype).nexp, 0)


def substitute(factors: Factors, b: Vector, *, transpose: bool = False) -> Vector:
    """Return ``A^{-1} b``, or ``A^{-T} b``, unchecked."""
    scales = factors.scales.transposed() if transpose else factors.scales
    y = substitute_scaled(factors, (scales.rows * b)[:, None], transpose=transpose)
    return scales.columns * y[:, 0]


def substitute_scaled(
    factors: Factors, b: Float[Array, "n k"], *, transpose: bool = False
) -> Float[Array, "n k"]:
    """Return ``B^{-1} b``, or ``B^{-T} b``, for several right-hand sides; unchecked."""
    left, right, order = factors.left, factors.right, factors.order
    if left is not None:
        definite = factors.definite
        if transpose:
            y = _triangular(right, b, lower=True)
            if definite is None:
                return left @ y
            return jnp.where(definite, _triangular(right, y, lower=True, transpose=True), left @ y)
        y = left.T @ b
        if definite is not None:
            y = jnp.where(definite, _triangular(left, b, lower=True), y)
        return _triangular(right, y, lower=True, transpose=True)
    if transpose:
        y = _triangular(right, b, lower=False, transpose=True)
        z = _triangular(right, y, lower=True, unit=True, transpose=True)
        if order is None:
            return z
        return jnp.zeros_like(b).at[order].set(z, mode="promise_in_bounds")
    permuted = b if order is None else b.at[order].get(mode="promise_in_bounds")
    y = _triangular(right, permuted, lower=True, unit=True)
    return _triangular(right, y, lower=False)


def _triangular(
    a: Float[Array, "n n"],
    b: Float[Array, "n k"],
    *,
    lower: bool,
    transpose: bool = False,
    unit: bool = False,
) -> Float[Array, "n k"]:
    if a.shape[0] == 1:
        return b if unit else b / a
    return jax.lax.linalg.triangular_solve(
        a, b, left_side=True, lower=lower, transpose_a=transpose, unit_diagonal=unit
    )
