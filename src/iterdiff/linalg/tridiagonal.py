"""Detect that a matrix-free operator is tridiagonal, by five products, and solve with it.

A Krylov method stagnates on many one-dimensional differential equations, whose matrices are
tridiagonal: a direct solve then takes a multiple of n operations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from iterdiff.linalg.factor import Equilibration, Vector, inverse_power_of_two
from iterdiff.linalg.residual_check import Matrix, Matvec, accepted_answer, known_answer

DETECTION_SLACK = 1000
"""A matrix counts as tridiagonal if its product with a random vector differs from that of the
three diagonals by at most this many times eps, relative to the products of the moduli."""


class Bands(NamedTuple):
    """The diagonals of a tridiagonal matrix, by rows: ``lower[i] = A[i, i - 1]``.

    Attributes
    ----------
    lower, diagonal, upper : array, shape (n,)
        ``lower[0]`` and ``upper[-1]`` are zero.
    """

    lower: Vector
    diagonal: Vector
    upper: Vector

    def product(self, v: Vector) -> Vector:
        """Return the product with `v`."""
        before, after = jnp.roll(v, 1), jnp.roll(v, -1)
        return self.lower * before + self.diagonal * v + self.upper * after

    def transposed(self) -> "Bands":
        """Return the transpose."""
        return Bands(jnp.roll(self.upper, 1), self.diagonal, jnp.roll(self.lower, -1))

    def scaled(self, rows: Vector, columns: Vector) -> "Bands":
        """Return ``diag(rows) A diag(columns)``."""
        before, after = jnp.roll(columns, 1), jnp.roll(columns, -1)
        parts = self.lower * before, self.diagonal * columns, self.upper * after
        return Bands(*(rows * part for part in parts))

    def largest(self) -> Vector:
        """Return the largest modulus of every row; a tiny number where all are zero."""
        tiny = float(jnp.finfo(self.diagonal.dtype).tiny)
        return jnp.max(jnp.abs(jnp.stack(self)), axis=0, initial=tiny)

    def solve(self, b: Vector) -> Vector:
        """Return the solution of ``A x = b``, by elimination with pivoting."""
        return jax.lax.linalg.tridiagonal_solve(*self, b[:, None])[:, 0]

    def inverted_twice(self, g: Vector) -> tuple[Vector, Vector]:
        """Return ``A^{-1} g`` and ``A^{-T} A^{-1} g``."""
        once = self.solve(g)
        return once, self.transposed().solve(once)


def solve_tridiagonal(
    product: Matvec, rows: Float[Array, "k n"], *, unique: bool, rtol: float
) -> tuple[Float[Array, "k n"], Bool[Array, " k"]]:
    """Return the solutions of ``A x = b`` for several b, and whether each is accepted.

    Parameters
    ----------
    product : callable
        The product with ``A``; if that is not tridiagonal, no answer is accepted.
    rows : array, shape (k, n)
        The right-hand sides.
    unique : bool
        Whether the answers have to be the only ones.
    rtol : float
        As in `iterdiff.linalg.residual_check`.
    """
    bands, exact = _bands(product, rows[0])
    scales, scaled = _equilibrated(bands)

    matrix = Matrix(scales, lambda x: scales.rows * product(x), scaled.inverted_twice)

    def solve(b):
        x = scales.columns * scaled.solve(scales.rows * b)
        return x, exact & accepted_answer(matrix, x, b, unique=unique, rtol=rtol)

    return jax.vmap(solve)(rows)


def _bands(product: Matvec, like: Vector) -> tuple[Bands, Bool[Array, ""]]:
    """Return the diagonals of an operator, and whether these are all of it."""
    size = like.size
    places = jnp.arange(size, dtype=jnp.int32)
    probes = (places[None] % 3 == jnp.arange(3, dtype=jnp.int32)[:, None]).astype(like.dtype)
    images = jax.vmap(product)(probes)

    def image_of(offset):
        part = jnp.take_along_axis(images, ((places + offset) % 3)[None], axis=0)[0]
        inside = (places + offset >= 0) & (places + offset < size)
        return jnp.where(inside, part, 0.0)

    bands = Bands(image_of(-1), image_of(0), image_of(1))
    random = known_answer(like)
    moduli = Bands(*(jnp.abs(part) for part in bands)).product(jnp.abs(random))
    slack = DETECTION_SLACK * float(jnp.finfo(like.dtype).eps)
    exact = jnp.all(jnp.abs(product(random) - bands.product(random)) <= slack * moduli)
    return bands, exact & (size >= 3)


def _equilibrated(bands: Bands) -> tuple[Equilibration, Bands]:
    """Return the scales of a tridiagonal matrix, and it, scaled."""
    rows = inverse_power_of_two(bands.largest())
    columns = inverse_power_of_two(bands.scaled(rows, jnp.ones_like(rows)).transposed().largest())
    return Equilibration(rows, columns), bands.scaled(rows, columns)
