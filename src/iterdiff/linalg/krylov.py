r"""Krylov methods that give up when they do not get on.

Right-hand sides have norm one, answers start from zero. A method stops when its residual is
below `rtol`. It goes on, after a trial, only while its progress promises an end in time: k
products in, with the residual at :math:`\epsilon_k`, the whole is expected to take
:math:`k \log(\mathrm{rtol}) / \log \epsilon_k` of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iterdiff.jaxtools import tree

RESTART = 50
"""GMRES starts anew after so many products."""

Vector = Float[Array, " n"]
Matvec = Callable[[Vector], Vector]


class Limits(NamedTuple):
    """How many products a method may take.

    Attributes
    ----------
    trial : int
        Whatever comes of them.
    most : int
        In all, judged by the progress so far.
    """

    trial: int
    most: int


def _promising(
    residual: Float[Array, ""], count: Int[Array, ""], limits: Limits, rtol: float
) -> Bool[Array, ""]:
    digits = jnp.log(residual) / jnp.log(jnp.asarray(rtol, residual.dtype))
    return (count < limits.trial) | (digits * limits.most >= count.astype(digits.dtype))


def conjugate_gradients(
    matvec: Matvec, b: Vector, limits: Limits, rtol: float
) -> tuple[Vector, Bool[Array, ""]]:
    """Return the answer of conjugate gradients, and whether its residual fell below `rtol`.

    It also gives up on a direction of negative curvature: the operator is not positive definite.
    """
    threshold = rtol**2

    def going_on(carry):
        _, _, _, square, definite, count = carry
        promising = _promising(jnp.sqrt(square), count, limits, rtol)
        return (square > threshold) & definite & promising

    def step(carry):
        x, r, p, square, _, count = carry
        image = matvec(p)
        curvature = p @ image
        alpha = square / curvature
        r = r - alpha * image
        new = r @ r
        return x + alpha * p, r, r + (new / square) * p, new, curvature > 0, count + 1

    start = (jnp.zeros_like(b), b, b, b @ b, jnp.array(True), jnp.int32(0))
    x, _, _, square, definite, _ = jax.lax.while_loop(going_on, step, start)
    return x, (square <= threshold) & definite


class _Basis(NamedTuple):
    r"""An orthonormal basis of a Krylov space, and the operator in it.

    Attributes
    ----------
    vectors : array, shape (m + 1, n)
        The basis, zero where it does not reach yet.
    rotations : array, shape (m + 1, m + 1)
        Orthogonal; makes the operator's Hessenberg matrix triangular.
    triangle : array, shape (m, m)
        What it makes of it.
    count : int
        Products taken since the start of this basis.
    """

    vectors: Float[Array, "m_plus_1 n"]
    rotations: Float[Array, "m_plus_1 m_plus_1"]
    triangle: Float[Array, "m m"]
    count: Int[Array, ""]


def gmres(matvec: Matvec, b: Vector, limits: Limits, rtol: float) -> tuple[Vector, Bool[Array, ""]]:
    """Return the answer of restarted GMRES, and whether its residual fell below `rtol`.

    The basis is orthogonalised twice (classical Gram-Schmidt); the residual's norm is known after
    every product.

    References
    ----------
    Y. Saad and M. H. Schultz, *GMRES: a generalized minimal residual algorithm*, 1986.
    """
    size = min(RESTART, b.shape[0])

    def going_on(carry):
        _, _, residual, count = carry
        return (residual > rtol) & _promising(residual, count, limits, rtol)

    def cycle(carry):
        x, r, length, before = carry

        def unfinished(carry):
            basis, residual = carry
            return (basis.count < size) & going_on((x, r, residual, before + basis.count))

        def extend(carry):
            basis = _extended(matvec, carry[0])
            return basis, length * jnp.abs(basis.rotations[basis.count, 0])

        basis = _Basis(
            jnp.zeros((size + 1, b.shape[0]), b.dtype).at[0].set(r / length),
            jnp.eye(size + 1, dtype=b.dtype),
            jnp.eye(size, dtype=b.dtype),
            jnp.int32(0),
        )
        basis, residual = jax.lax.while_loop(unfinished, extend, (basis, length))
        first, last = basis.rotations[:, 0], basis.rotations[basis.count]
        used = jnp.arange(size, dtype=jnp.int32) < basis.count
        rhs = length * jnp.where(used, first[:size], 0.0)
        weights = jax.scipy.linalg.solve_triangular(basis.triangle, rhs)
        r = (length * last[0] * last) @ basis.vectors
        return x + weights @ basis.vectors[:size], r, residual, before + basis.count

    start = (jnp.zeros_like(b), b, tree.norm(b), jnp.int32(0))
    x, _, residual, _ = jax.lax.while_loop(going_on, cycle, start)
    return x, (residual <= rtol) & tree.all_finite(x)


def _extended(matvec: Matvec, basis: _Basis) -> _Basis:
    vectors, rotations, triangle, k = basis
    image = matvec(vectors[k])
    column = vectors @ image
    image = image - column @ vectors
    again = vectors @ image
    image = image - again @ vectors
    length = tree.norm(image)
    vectors = vectors.at[k + 1].set(image / jnp.where(length > 0, length, 1.0))
    column = rotations @ (column + again).at[k + 1].set(length)
    radius = jnp.hypot(column[k], column[k + 1])
    cosine, sine = column[k] / radius, column[k + 1] / radius
    upper, lower = rotations[k], rotations[k + 1]
    rotations = rotations.at[k].set(cosine * upper + sine * lower)
    rotations = rotations.at[k + 1].set(cosine * lower - sine * upper)
    return _Basis(
        vectors,
        rotations,
        triangle.at[:, k].set(column.at[k].set(radius).at[k + 1].set(0.0)[:-1]),
        k + 1,
    )
