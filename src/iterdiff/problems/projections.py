r"""Further projections and proximal operators, each differentiated on its active set.

The active set (a support, a segmentation, the side of a boundary) is found without derivatives.
On it the operator is smooth, in most cases affine, and JAX differentiates it there. At a kink the
functions return the derivative of one side, and `weakly_active` finds it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import is_known
from iterdiff.jaxtools.manual_axes import while_loop
from iterdiff.linalg.least_squares import safe_length
from iterdiff.problems.prox import (
    Bound,
    T,
    bound_of,
    box,
    nan_unless,
    point_of,
    simplex,
    size_of,
)

MAX_NEWTON_STEPS = 100
"""Upper limit of the Newton steps that find the support of a transport plan."""

DAMPING = 0.1
"""The Hessian of the dual function is singular where the support falls apart. Its damping is this
multiple of the relative error of the sums."""

MAX_GAP_OF_TOTALS = 1e-3
"""Largest difference of the totals of rows and columns that counts as rounding, relative."""

HALVINGS = 24
"""A Newton step is halved at most this often."""


def l1_ball(x: Float[Array, " n"], radius: Any = 1.0) -> Float[Array, " n"]:
    r"""Return the nearest point with :math:`\|x\|_1 \le r`.

    Outside the ball, the absolute values are projected onto a simplex. Cost: a sort.

    Parameters
    ----------
    x : array of shape (n,)
        Point to project.
    radius : scalar
        :math:`r`, positive.
    """
    x = _vector(x)
    sizes = jnp.abs(x)
    radius = size_of("radius", radius, x[0])
    outside = ~(jnp.sum(sizes) <= radius)
    return jnp.where(outside, jnp.sign(x) * simplex(sizes, radius), x)


def l2_ball(x: T, radius: Any = 1.0) -> T:
    r"""Return the nearest point with :math:`\|x\|_2 \le r`, the norm over all leaves.

    Parameters
    ----------
    x : pytree of real floating arrays
        Point to project.
    radius : scalar
        :math:`r`, positive.
    """
    x = point_of(x)
    length = tree.norm(x)
    radius = size_of("radius", radius, length)
    outside = length > radius
    factor = jnp.where(outside, radius / jnp.where(outside, length, 1), 1)
    return tree.scale(nan_unless(radius >= 0, factor, length), x)


def linf_ball(x: T, radius: Bound = 1.0) -> T:
    r"""Return the nearest point with :math:`|x_i| \le r`.

    Parameters
    ----------
    x : pytree of real floating arrays
        Point to project.
    radius : scalar, array or pytree like `x`
        :math:`r`, positive.
    """
    return box(x, jax.tree.map(lambda r: -r, radius), radius)


def hyperplane(x: T, normal: T, offset: Any) -> T:
    r"""Return the nearest point with :math:`a^\top x = b`.

    Parameters
    ----------
    x, normal : pytree of real floating arrays
        Point to project, and :math:`a`, not zero, like `x`.
    offset : scalar
        :math:`b`.
    """
    x = point_of(x)
    excess = tree.dot(normal, x)
    excess = excess - bound_of("offset", offset, excess)
    return tree.axpy(-excess / tree.dot(normal, normal), normal, x)


def half_space(x: T, normal: T, offset: Any) -> T:
    r"""Return the nearest point with :math:`a^\top x \le b`.

    Parameters
    ----------
    x, normal : pytree of real floating arrays
        Point to project, and :math:`a`, not zero, like `x`.
    offset : scalar
        :math:`b`.
    """
    x = point_of(x)
    value = tree.dot(normal, x)
    offset = bound_of("offset", offset, value)
    outside = value > offset
    return tree.where(outside | jnp.isnan(value - offset), hyperplane(x, normal, offset), x)


def affine_set(x: Float[Array, " n"], matrix: Any, rhs: Any) -> Float[Array, " n"]:
    r"""Return the nearest point with :math:`A x = b`.

    Parameters
    ----------
    x : array of shape (n,)
        Point to project.
    matrix, rhs : array of shape (m, n) and (m,)
        :math:`A`, with independent rows, and :math:`b`.
    """
    x = _vector(x)
    if matrix.ndim != 2 or matrix.shape[1:] != x.shape or rhs.shape != matrix.shape[:1]:
        raise ValueError(
            f"`matrix` and `rhs` have shapes {matrix.shape} and {rhs.shape}, which do not fit `x` "
            f"of shape {x.shape}; pass (m, n), (m,) and (n,)."
        )
    weights = jnp.linalg.solve(matrix @ matrix.T, matrix @ x - rhs)
    return x - matrix.T @ weights


def second_order_cone(x: Float[Array, " n"]) -> Float[Array, " n"]:
    r"""Return the nearest point with :math:`x_0 \ge \|(x_1, \dots, x_{n-1})\|_2`.

    Parameters
    ----------
    x : array of shape (n,)
        Point to project; its first number is the height.
    """
    x = _vector(x)
    height, rest = x[0], x[1:]
    length = tree.norm(rest)
    between = jnp.abs(height) < length
    half = (height + length) / 2
    share = half / jnp.where(between, length, 1)
    surface = jnp.concatenate([half[None], share * rest])
    answer = jnp.where(between, surface, jnp.where(height > 0, x, 0))
    return nan_unless(True, answer, height + length)


def transport_polytope(x: Any, rows: Any, columns: Any) -> Float[Array, "m n"]:
    r"""Return the nearest nonnegative matrix with the given sums of its rows and columns.

    The projection is :math:`\max(0, x_{ij} + \alpha_i + \beta_j)`. Newton's method on the dual
    problem finds its support. Given that, the plan is affine in `x` and in the sums.

    Parameters
    ----------
    x : array of shape (m, n)
        Point to project.
    rows, columns : array of shape (m,) and (n,)
        The sums, positive, with equal totals.
    """
    x = point_of(x)
    if x.ndim != 2 or (rows.shape, columns.shape) != (x.shape[:1], x.shape[1:]):
        raise ValueError(
            f"`rows` and `columns` have shapes {rows.shape} and {columns.shape}, which do not fit "
            f"`x` of shape {x.shape}; pass (m,), (n,) and (m, n)."
        )
    count = x.shape[0]
    sums = jnp.concatenate([rows, columns])
    gap = jnp.abs(jnp.sum(rows) - jnp.sum(columns))
    consistent = (jnp.min(sums) >= 0) & (gap <= MAX_GAP_OF_TOTALS * jnp.sum(rows))
    if is_known(consistent) and not consistent:
        raise ValueError(
            "`rows` and `columns` must not be negative and must have the same total, but the "
            f"totals are {jnp.sum(rows)} and {jnp.sum(columns)}."
        )
    point, wanted = jax.lax.stop_gradient((x, sums))

    def plan(potentials, x):
        return x + potentials[:count, None] + potentials[None, count:]

    def dual(potentials):
        positive = jnp.maximum(plan(potentials, point), 0)
        return jnp.sum(positive**2) / 2 - jnp.dot(wanted, potentials)

    def matrix(support):
        upper = jnp.concatenate([jnp.diag(support.sum(1)), support], axis=1)
        return jnp.concatenate(
            [upper, jnp.concatenate([support.T, jnp.diag(support.sum(0))], axis=1)]
        )

    def support_of(potentials):
        return (plan(potentials, point) > 0).astype(x.dtype)

    eps = float(jnp.finfo(x.dtype).eps)
    shifts = jnp.asarray([0.5**k for k in range(HALVINGS)], x.dtype)

    def improve(carry):
        potentials, value, _, count = carry
        slope = jax.grad(dual)(potentials)
        damping = DAMPING * tree.norm(slope) / jnp.sum(wanted) + eps
        hessian = matrix(support_of(potentials))
        hessian += damping.astype(x.dtype) * jnp.eye(wanted.size, dtype=x.dtype)
        step = -jnp.linalg.solve(hessian, slope)
        tried = potentials[None] + shifts[:, None] * step[None]
        values = jax.vmap(dual)(tried)
        best = jnp.where(jnp.min(values) < value, jnp.argmin(values), 0)
        moved = tried[best]
        flatter = tree.norm(jax.grad(dual)(moved)) < tree.norm(slope)  # the value may only round
        fell = (values[best] < value) | flatter
        return jnp.where(fell, moved, potentials), values[best], fell, count + 1

    start = jnp.full_like(wanted, jnp.max(jnp.abs(point)))  # all of the plan is positive
    carry = start, dual(start), jnp.array(True), jnp.array(0)
    found = while_loop(lambda c: c[2] & (c[3] < MAX_NEWTON_STEPS), improve, carry)[0]
    support = support_of(found)
    held = support * x
    excess = sums - jnp.concatenate([held.sum(1), held.sum(0)])
    potentials = jnp.linalg.pinv(matrix(support)) @ excess
    return nan_unless(consistent, support * plan(potentials, x), x)


def group_lasso(x: Float[Array, "*groups k"], by: Any) -> Float[Array, "*groups k"]:
    r"""Return every row shrunk in length by `by`: for :math:`b \sum_g \|x_g\|_2` over the rows.

    Parameters
    ----------
    x : array of shape (..., k)
        Point to shrink; the last axis runs over the members of a group.
    by : scalar, or array of shape (..., 1)
        :math:`b \ge 0`, multiplied by the step size.
    """
    x = point_of(x)
    lengths = safe_length(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], 1)
    by = bound_of("by", by, lengths)
    outside = lengths > by
    share = 1 - by / jnp.where(outside, lengths, 1)
    return jnp.where(outside, share * x, 0)


def huber(x: T, by: Bound, delta: Any = 1.0) -> T:
    r"""Return the proximal operator of :math:`b \sum_i H_\delta(x_i)`.

    Here :math:`H_\delta(u) = u^2 / 2` up to :math:`|u| = \delta`, and
    :math:`\delta |u| - \delta^2 / 2` beyond.

    Parameters
    ----------
    x : pytree of real floating arrays
        Point to shrink.
    by : scalar or array
        :math:`b \ge 0`, multiplied by the step size.
    delta : scalar or array
        :math:`\delta`, positive.
    """

    def shrink(leaf):
        b, d = bound_of("by", by, leaf), bound_of("delta", delta, leaf)
        near = jnp.abs(leaf) <= (1 + b) * d
        return jnp.where(near, leaf / (1 + b), leaf - b * d * jnp.sign(leaf))

    return jax.tree.map(shrink, point_of(x))


def fused_lasso(x: Float[Array, " n"], by: Any) -> Float[Array, " n"]:
    r"""Return the proximal operator of :math:`b \sum_i |x_{i+1} - x_i|` (total variation).

    The cumulative sum of the answer is the taut string in a tube of radius b around that of `x`.
    On each segment of constant slope the answer is the mean of `x`, moved by :math:`2 b`,
    :math:`b` or 0 over the segment's length. Cost: :math:`O(n)` a segment.

    Parameters
    ----------
    x : array of shape (n,)
        Point to smooth.
    by : scalar
        :math:`b \ge 0`, multiplied by the step size.
    """
    x = _vector(x)
    by = bound_of("by", by, x[0])
    labels, shifts = _taut_string(*jax.lax.stop_gradient((x, by)))
    lengths = jax.ops.segment_sum(jnp.ones_like(x), labels, x.size)
    sums = jax.ops.segment_sum(x, labels, x.size)
    return (sums[labels] + by * shifts) / lengths[labels]


def _taut_string(x: Float[Array, " n"], by: Array) -> tuple[Array, Array]:
    """Return the segment of every number, and by which multiple of `by` its sum is shifted."""
    size = x.size
    sums = jnp.concatenate([jnp.zeros_like(x[:1]), jnp.cumsum(x)])
    places = jnp.arange(size + 1)
    radius = jnp.where(places == size, 0, by)  # the string's end is fixed

    def unfinished(carry):
        return carry[0] < size

    def extend(carry):
        start, side, labels, shifts = carry
        ahead = places > start
        runs = jnp.where(ahead, places - start, 1).astype(x.dtype)
        rise = sums - sums[start] - side * by
        lower = jnp.where(ahead, (rise - radius) / runs, -jnp.inf)
        upper = jnp.where(ahead, (rise + radius) / runs, jnp.inf)
        floor, ceiling = jax.lax.cummax(lower), jax.lax.cummin(upper)
        blocked = floor > ceiling
        here = jnp.argmax(blocked)
        over = lower[here] > ceiling[here - 1]
        touched = jnp.where(over, upper == ceiling[here - 1], lower == floor[here - 1])
        touched = jnp.max(jnp.where(touched & (places < here), places, 0))
        any_blocked = jnp.any(blocked)
        end = jnp.where(any_blocked, touched, size)
        new_side = jnp.where(any_blocked, jnp.where(over, 1, -1), 0).astype(x.dtype)
        inside = (places[:-1] >= start) & (places[:-1] < end)
        labels = jnp.where(inside, start, labels)
        return end, new_side, labels, jnp.where(inside, new_side - side, shifts)

    zero = jnp.zeros((), x.dtype)
    carry = jnp.zeros_like(places[0]), zero, jnp.zeros_like(places[:-1]), jnp.zeros_like(x)
    _, _, labels, shifts = while_loop(unfinished, extend, carry)
    return labels, shifts


def nuclear_norm(x: Any, by: Any) -> Float[Array, "m n"]:
    r"""Return `x` with its singular values shrunk by `by`: for :math:`b \|x\|_*`.

    The derivative is finite where singular values coincide, too. Derivatives of second order are
    not finite there.

    Parameters
    ----------
    x : array of shape (m, n)
        Point to shrink.
    by : scalar
        :math:`b \ge 0`, multiplied by the step size.
    """
    x = point_of(x)
    if x.ndim != 2:
        raise ValueError(f"`x` must be a matrix, but its shape is {x.shape}; reshape it.")
    by = size_of("by", by, x[0, 0])
    return nan_unless(by >= 0, _shrunk_spectrum(x, by), x)


@jax.custom_jvp
def _shrunk_spectrum(x: Array, by: Array) -> Array:
    left, values, right = jnp.linalg.svd(x, full_matrices=False)
    return (left * jnp.maximum(values - by, 0)[None]) @ right


@_shrunk_spectrum.defjvp
def _shrunk_spectrum_jvp(primals: Any, tangents: Any) -> tuple[Array, PyTree]:
    """Differentiate by divided differences of the shrinkage, for pairs of singular values."""
    (x, by), (dx, dby) = primals, tangents
    left, values, right = jnp.linalg.svd(x, full_matrices=False)
    shrunk = jnp.maximum(values - by, 0)
    kept = (values > by).astype(x.dtype)
    inner = left.T @ dx @ right.T
    gaps = values[:, None] - values[None]
    apart = jnp.abs(gaps) > float(jnp.finfo(x.dtype).eps) ** 0.5 * values[0]
    quotients = (shrunk[:, None] - shrunk[None]) / jnp.where(apart, gaps, 1)
    slopes = jnp.where(apart, quotients, kept[:, None] * kept[None])
    total = values[:, None] + values[None]
    means = (shrunk[:, None] + shrunk[None]) / jnp.where(total > 0, total, 1)
    moved = slopes * (inner + inner.T) / 2 + means * (inner - inner.T) / 2
    share = shrunk / jnp.where(values > 0, values, 1)
    beyond_left = (dx @ right.T - left @ inner) * share[None]
    beyond_right = share[:, None] * (left.T @ dx - inner @ right)
    change = left @ (moved - dby * jnp.diag(kept)) @ right
    value = (left * shrunk[None]) @ right
    return value, change + beyond_left @ right + left @ beyond_right


def _vector(x: Any) -> Float[Array, " n"]:
    """Return a vector; raise ValueError if it is anything else."""
    x = point_of(x)
    if not isinstance(x, jax.Array) or x.ndim != 1:
        raise ValueError(f"`x` must be one vector, not {x!r}; flatten it.")
    return x
