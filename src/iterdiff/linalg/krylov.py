r"""Krylov methods that stop early when convergence is too slow.

Iterations start from zero. A method stops when the norm of its residual falls below `rtol`, an
absolute number: right-hand sides have norm one, or are what a first guess leaves of such a one.
After a trial it continues only while its progress predicts that it will finish within the budget:
if k products left a residual :math:`\epsilon_k`, the whole solve is expected to take
:math:`k \log(\mathrm{rtol}) / \log \epsilon_k` products.

The steps `cg_step` and `arnoldi_step` also make the iterations of `iterdiff.ConjugateGradient` and
`iterdiff.GMRES`, which users differentiate through.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.placement import combined, each_product
from iterdiff.linalg.least_squares import safe_length

Operand = PyTree
"""What an operator acts on: an array, or a pytree of arrays of one dtype. Arrays that
are spread over several devices stay where they are: only inner products leave them."""

Matvec = Callable[[Operand], Operand]


class Budget(NamedTuple):
    """How many products a Krylov method may take.

    Attributes
    ----------
    trial_products : int
        Number of products it takes regardless of progress.
    max_products : int
        Number of products in total, if its progress predicts that they suffice.
    """

    trial_products: int | Int[Array, ""]
    max_products: int | Int[Array, ""]


def _worthwhile(
    residual: Float[Array, ""], count: Int[Array, ""], budget: Budget, rtol: float
) -> Bool[Array, ""]:
    """Whether to continue after `count` products."""
    digits = jnp.log(residual) / jnp.log(jnp.asarray(rtol, residual.dtype))
    in_trial = count < budget.trial_products
    return in_trial | (digits * budget.max_products >= count.astype(digits.dtype))


# Conjugate gradients


class CGState(NamedTuple):
    """State of conjugate gradients; `x`, `residual` and `direction` are pytrees of one structure.

    Attributes
    ----------
    x : pytree
        The iterate.
    residual : pytree
        ``b - A x``.
    direction : pytree
        The next search direction.
    square : array, shape ()
        Squared norm of the residual, in the metric of the preconditioner.
    """

    x: PyTree
    residual: PyTree
    direction: PyTree
    square: Float[Array, ""]


def safe_ratio(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """Return ``a / b``; where `b` is 0, return 0 with derivative 0."""
    zero = b == 0
    return jnp.where(zero, 0.0, a / jnp.where(zero, 1.0, b))


def unchanged(v: PyTree) -> PyTree:
    """Return `v`: no preconditioner."""
    return v


def cg_step(
    operator: Callable[[PyTree], PyTree],
    state: CGState,
    precondition: Callable[[PyTree], PyTree] = unchanged,
) -> tuple[CGState, Float[Array, ""]]:
    """Return the state after one step, and the curvature ``p^T A p`` along its direction.

    At the solution the step stays where it is, and its derivative is finite.
    """
    x, residual, direction, square = state
    image = operator(direction)
    curvature = tree.dot(direction, image)
    alpha = safe_ratio(square, curvature)
    residual = tree.axpy(-alpha, image, residual)
    steepest = precondition(residual)
    new_square = tree.dot(residual, steepest)
    beta = safe_ratio(new_square, square)
    next_direction = tree.axpy(beta, direction, steepest)
    return CGState(tree.axpy(alpha, direction, x), residual, next_direction, new_square), curvature


def conjugate_gradients(
    matvec: Matvec, b: Operand, budget: Budget, rtol: float, precondition: Matvec = unchanged
) -> tuple[Operand, Bool[Array, ""]]:
    """Return the answer of conjugate gradients, and whether its residual fell below `rtol`.

    It also stops at a direction of negative curvature: the operator or the preconditioner is not
    positive definite.
    """

    def unfinished(carry):
        _, length, definite, count = carry
        return (length > rtol) & definite & _worthwhile(length, count, budget, rtol)

    def step(carry):
        state, _, _, count = carry
        state, curvature = cg_step(matvec, state, precondition)
        definite = (curvature > 0) & (state.square >= 0)
        return state, tree.length(state.residual), definite, count + 1

    first = precondition(b)
    start = CGState(tree.zeros_like(b), b, first, tree.dot(b, first))
    carry = start, tree.length(b), start.square >= 0, jnp.int32(0)
    state, length, definite, _ = manual_axes.while_loop(unfinished, step, carry)
    return state.x, (length <= rtol) & definite


# Arnoldi's method and GMRES


def arnoldi_step(
    matvec: Matvec, basis: Operand, k: Int[Array, ""] | int
) -> tuple[Operand, Float[Array, " m"]]:
    """Extend an orthonormal Krylov basis by one vector.

    Classical Gram-Schmidt, applied twice. If the image of vector k lies in the span of the basis to
    rounding, the Krylov space is exhausted and the new vector is zero.

    Parameters
    ----------
    matvec : callable
        The product with a square matrix.
    basis : pytree
        m vectors, stacked along a first axis: rows 0 to k are orthonormal, later ones are zero.
    k : int
        Index of the vector to multiply, at most m - 2.

    Returns
    -------
    basis : pytree
        With row k + 1 filled in.
    coordinates : array, shape (m,)
        The image of vector k in the new basis: column k of the Hessenberg matrix.
    """
    image = matvec(tree.row(basis, k))
    first = each_product(basis, image)
    remainder = tree.sub(image, combined(first, basis))
    second = each_product(basis, remainder)
    remainder = tree.sub(remainder, combined(second, basis))
    height = tree.norm(remainder)
    independent = height > 10 * jnp.finfo(first.dtype).eps * tree.norm(image)
    new = tree.over(remainder, jnp.where(independent, height, 1))
    new = jax.tree.map(lambda leaf: jnp.where(independent, leaf, 0), new)
    coordinates = (first + second).at[k + 1].add(jnp.where(independent, height, 0))
    return _with_row(basis, k + 1, new), coordinates


def _with_row(stacked: PyTree, k: Any, new: PyTree) -> PyTree:
    """Return stacked trees with another one in place of number `k`."""
    return jax.tree.map(lambda rows, leaf: rows.at[k].set(leaf), stacked, new)


def arnoldi(
    matvec: Matvec, start: Float[Array, " n"], steps: int
) -> tuple[Float[Array, "{steps}+1 n"], Float[Array, "{steps} {steps}+1"]]:
    """Return the Krylov basis after `steps` steps, and the transposed Hessenberg matrix.

    Row k of the second array has the coordinates, in the basis, of the image of vector k. Once the
    Krylov space is exhausted, further vectors and coordinates are zero.
    """

    def extend(basis, k):
        return arnoldi_step(matvec, basis, k)

    basis = tree.zero_rows(start, steps + 1)
    basis = basis.at[0].set(start / safe_length(start))
    return jax.lax.scan(extend, basis, jnp.arange(steps))


class _Basis(NamedTuple):
    r"""A Krylov basis, and the QR factors of the operator's Hessenberg matrix in it.

    Attributes
    ----------
    vectors : pytree
        The orthonormal basis, m + 1 vectors stacked; those not yet computed are zero.
    rotations : array, shape (m + 1, m + 1)
        Orthogonal; product of the Givens rotations that make the Hessenberg matrix triangular.
    triangle : array, shape (m, m)
        The triangular factor.
    count : int
        Number of products since the restart.
    """

    vectors: Operand
    rotations: Float[Array, "m_plus_1 m_plus_1"]
    triangle: Float[Array, "m m"]
    count: Int[Array, ""]


def gmres(
    matvec: Matvec, b: Operand, budget: Budget, rtol: float, restart: int = 50
) -> tuple[Operand, Bool[Array, ""]]:
    """Return the answer of restarted GMRES, and whether its residual fell below `rtol`.

    Givens rotations give the norm of the residual after every product.

    References
    ----------
    Y. Saad and M. H. Schultz, *GMRES: a generalized minimal residual algorithm*, 1986.
    """
    size, dtype = min(restart, tree.size(b)), tree.result_dtype(b)

    def unfinished(carry):
        _, _, residual, count = carry
        return (residual > rtol) & _worthwhile(residual, count, budget, rtol)

    def cycle(carry):
        x, r, length, before = carry

        def cycle_unfinished(carry):
            basis, residual = carry
            return (basis.count < size) & unfinished((x, r, residual, before + basis.count))

        def extend(carry):
            basis = _extended(matvec, carry[0])
            return basis, length * jnp.abs(basis.rotations[basis.count, 0])

        basis = _Basis(
            _with_row(tree.zero_rows(b, size + 1), 0, tree.over(r, length)),
            jnp.eye(size + 1, dtype=dtype),
            jnp.eye(size, dtype=dtype),
            jnp.int32(0),
        )
        basis, residual = manual_axes.while_loop(cycle_unfinished, extend, (basis, length))
        first, last = basis.rotations[:, 0], basis.rotations[basis.count]
        used = jnp.arange(size, dtype=jnp.int32) < basis.count
        rhs = length * jnp.where(used, first[:size], 0.0)
        weights = jax.scipy.linalg.solve_triangular(basis.triangle, rhs)
        r = combined(length * last[0] * last, basis.vectors)
        x = tree.add(x, combined(weights, tree.row(basis.vectors, slice(size))))
        return x, r, residual, before + basis.count

    start = (tree.zeros_like(b), b, tree.norm(b), jnp.int32(0))
    x, _, residual, _ = manual_axes.while_loop(unfinished, cycle, start)
    return x, (residual <= rtol) & tree.all_finite(x)


def _extended(matvec: Matvec, basis: _Basis) -> _Basis:
    """Return the basis with one more vector, and the QR factors updated by one rotation."""
    vectors, rotations, triangle, k = basis
    vectors, coordinates = arnoldi_step(matvec, vectors, k)
    column = rotations @ coordinates
    radius = jnp.hypot(column[k], column[k + 1])
    cosine, sine = column[k] / radius, column[k + 1] / radius
    upper, lower = rotations[k], rotations[k + 1]
    rotations = rotations.at[k].set(cosine * upper + sine * lower)
    rotations = rotations.at[k + 1].set(cosine * lower - sine * upper)
    column = column.at[k].set(radius).at[k + 1].set(0.0)
    return _Basis(vectors, rotations, triangle.at[:, k].set(column[:-1]), k + 1)
