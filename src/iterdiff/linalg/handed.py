r"""What one linear solve hands to the next one with a nearby matrix: solutions and factors.

A first guess from several earlier solutions is better than the last one alone. If the solutions
depend smoothly on a parameter that changes by :math:`h` from one system to the next, the span of k
of them contains the new one to an error of order :math:`h^k`. `best_in_span` finds the member of
the span with the smallest residual; that takes one product for each solution.

The factors of a nearby matrix precondition an iteration so well that it takes a few products.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from iterdiff.jaxtools import tree
from iterdiff.linalg.factor import Equilibration, Factors, Vector, substitute
from iterdiff.linalg.krylov import Matvec
from iterdiff.linalg.least_squares import least_squares

SPAN_DAMPING = 100
"""Damping of the least-squares problem, in units of eps: earlier solutions may be dependent."""

STALE_MAX_PRODUCTS = 12
"""An iteration with the factors of a nearby matrix takes no more products, in n unknowns that
would take n products to factor anew."""


class HandedFactors(NamedTuple):
    """The LU factors of a matrix as arrays of one floating dtype, in which JAX differentiates.

    Attributes
    ----------
    packed : array, shape (n, n)
        As `Factors.right`; zero if nothing is known.
    order : array, shape (n,)
        The row permutation, as floating numbers: exact, since n is far below 1 / eps.
    rows, columns : array, shape (n,)
        The scales of the equilibration.
    """

    packed: Float[Array, "n n"]
    order: Float[Array, " n"]
    rows: Float[Array, " n"]
    columns: Float[Array, " n"]

    @classmethod
    def unknown(cls, size: int, dtype) -> "HandedFactors":
        """Return what stands for no factors yet."""
        empty = jnp.zeros(size, dtype)
        return cls(jnp.zeros((size, size), dtype), empty, empty, empty)

    @classmethod
    def of(cls, factors: Factors) -> "HandedFactors":
        """Return the factors of an LU decomposition."""
        packed, order = factors.right, factors.order
        count = packed.shape[0]
        order = jnp.arange(count) if order is None else order
        return cls(packed, order.astype(packed.dtype), *factors.scales)

    @property
    def known(self) -> Bool[Array, ""]:
        """Whether there are factors, and finite ones."""
        return tree.all_finite(self) & jnp.any(self.packed != 0)

    def solve(self, b: Vector, *, transpose: bool) -> Vector:
        """Return the unchecked solution of a system with the matrix, or with its transpose."""
        order = self.order.astype(jnp.int32)
        scales = Equilibration(self.rows, self.columns)
        factors = Factors(None, self.packed, order, None, None, scales)
        return substitute(factors, b, transpose=transpose)


def best_in_span(matvec: Matvec, b: Vector, rows: Float[Array, "k n"]) -> Vector:
    r"""Return the combination of `rows` with the smallest residual, :math:`\min_c \|A U c - b\|`.

    Rows that are not finite, or zero, take no part.

    References
    ----------
    P. F. Fischer, *Projection techniques for iterative solution of Ax = b with successive
    right-hand sides*, 1998.
    """
    finite = jnp.all(jnp.isfinite(rows), axis=1, keepdims=True)
    rows = jnp.where(finite, rows, 0)
    images = jax.vmap(matvec)(rows)
    largest = jnp.max(jnp.abs(b))
    unit = jnp.where(largest > 0, largest, 1)
    damping = SPAN_DAMPING * float(jnp.finfo(b.dtype).eps)
    return unit * (least_squares(images, b / unit, damping) @ rows)
