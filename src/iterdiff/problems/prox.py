r"""Proximal operators and projections, and where a derivative is one-sided.

Each function is what `CompositeMinimization` wants of its `prox` for one common term; the
problem's step size and parameters go into the arguments:

>>> import jax.numpy as jnp
>>> import iterdiff as itd
>>> lasso = itd.CompositeMinimization(
...     lambda x, theta: jnp.sum((x - theta["data"]) ** 2) / 2,
...     lambda x, step_size, theta: itd.prox.soft_threshold(x, step_size * theta["penalty"]),
... )

Away from kinks the derivatives are exact. At a kink they are those of the smaller support: zero
for a coordinate that is just about to leave zero. There the solution has no derivative, only
one-sided ones; `weakly_active` finds such coordinates.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.problems.problem import CompositeMinimization, Problem

T = TypeVar("T", bound=PyTree)
Bound = PyTree | float

JUMP = 0.01
"""A difference of one-sided slopes that counts as a kink, dimensionless."""


def soft_threshold(x: T, by: Bound) -> T:
    r"""Return :math:`\mathrm{sign}(x) \max(|x| - b, 0)`: for :math:`b \|x\|_1` (lasso).

    Parameters
    ----------
    x : pytree of real floating arrays
        The point.
    by : scalar, array or pytree like `x`
        The threshold :math:`b \ge 0` (step size times penalty), broadcast against each leaf.
    """

    def shrink(leaf, bound):
        bound = jnp.asarray(bound, leaf.dtype)
        return jnp.where(jnp.abs(leaf) > bound, leaf - jnp.sign(leaf) * bound, 0)

    return jax.tree.map(shrink, x, _like(by, x))


def elastic_net(x: T, by: Bound, ridge: Bound) -> T:
    r"""Return the soft threshold over :math:`1 + r`: for :math:`b \|x\|_1 + r \|x\|^2 / 2`.

    Parameters
    ----------
    x : pytree of real floating arrays
        The point.
    by, ridge : scalar, array or pytree like `x`
        :math:`b, r \ge 0`, both with the step size in them.
    """
    shrunk = soft_threshold(x, by)
    return jax.tree.map(lambda u, r: u / (1 + jnp.asarray(r, u.dtype)), shrunk, _like(ridge, x))


def nonnegative(x: T) -> T:
    """Return the nearest point without negative coordinates."""
    return jax.tree.map(lambda leaf: jnp.where(leaf > 0, leaf, 0), x)


def box(x: T, lower: Bound, upper: Bound) -> T:
    """Return the nearest point of the box.

    Parameters
    ----------
    x : pytree of real floating arrays
        The point.
    lower, upper : scalar, array or pytree like `x`
        The bounds, ``lower <= upper``.
    """

    def clip(leaf, low, high):
        low, high = jnp.asarray(low, leaf.dtype), jnp.asarray(high, leaf.dtype)
        return jnp.where(leaf <= low, low, jnp.where(leaf >= high, high, leaf))

    return jax.tree.map(clip, x, _like(lower, x), _like(upper, x))


def simplex(x: Float[Array, " n"], total: float | Float[Array, ""] = 1.0) -> Float[Array, " n"]:
    r"""Return the nearest point with nonnegative coordinates that sum to `total`.

    It is :math:`\max(x - \tau, 0)`; with the support S known,
    :math:`\tau = (\sum_S x_i - \text{total}) / |S|`, and the derivative is
    :math:`I_S - 1_S 1_S^\top / |S|`. The support is found by sorting, :math:`O(n \log n)`.

    Parameters
    ----------
    x : array of shape (n,)
        The point.
    total : scalar
        The sum, positive.

    References
    ----------
    J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, *Efficient projections onto the l1-ball for
    learning in high dimensions*, ICML 2008.
    """
    total = jnp.asarray(total, x.dtype)
    descending = -jnp.sort(-jax.lax.stop_gradient(x))
    excess = jnp.cumsum(descending) - jax.lax.stop_gradient(total)
    counts = jnp.arange(1, x.size + 1).astype(x.dtype)
    inside = descending * counts > excess
    size = jnp.sum(inside)
    threshold = jnp.take(descending, size - 1)
    support = jax.lax.stop_gradient(x) >= threshold
    shift = (jnp.sum(jnp.where(support, x, 0)) - total) / jnp.sum(support).astype(x.dtype)
    return jnp.where(support, x - shift, 0)


def _like(bound: Bound, x: PyTree) -> PyTree:
    """Spread one bound over all leaves, unless there is one for each already."""
    if jax.tree.structure(bound) == jax.tree.structure(x):
        return bound
    return jax.tree.map(lambda _: bound, x)


def weakly_active(
    problem: Problem, x: PyTree, theta: PyTree, tol: Float[Array, ""] | float | None = None
) -> PyTree[Bool[Array, "..."]]:
    r"""Say where the solution's derivative is one-sided: which coordinates are at a kink.

    The map whose fixed point or root the solution is, is compared with itself a little way
    forwards and backwards along a few fixed directions; where the two slopes differ there is a kink
    within that distance. For a `CompositeMinimization` the map is the proximal operator,
    and its argument is moved: a coordinate is found that is at zero and about to leave it, or
    the other way round. For every other problem the residual is moved in `x`. `solve` does this for
    a `CompositeMinimization`, and `Solution.weakly_active` says what it found.

    Seven evaluations at once. It works under ``jit`` and ``vmap``, and is not differentiated.

    Parameters
    ----------
    problem : Problem
        The problem.
    x : pytree of real floating arrays
        Its solution, converged to well below `tol`.
    theta : pytree
        The parameters.
    tol : scalar, optional
        How near a kink counts, relative to the largest absolute coordinate (absolute, if that is
        below 1). By default 1e-6 in float64, 1e-3 in float32.

    Returns
    -------
    pytree of bool arrays
        Like `x`; True where the derivative is one-sided, so that neither `Implicit` nor
        `Unrolled` gives more than one of two derivatives.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.CompositeMinimization(
    ...     lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
    ...     lambda x, step_size, theta: itd.prox.soft_threshold(x, step_size),
    ... )
    >>> theta = jnp.array([3.0, 1.0, 0.5])  # the second is about to leave zero
    >>> itd.prox.weakly_active(problem, jnp.array([2.0, 0.0, 0.0]), theta).tolist()
    [False, True, False]
    """
    x, theta = jax.lax.stop_gradient((x, theta))
    vector = tree.to_vector(x)
    if tol is None:
        tol = 1e-6 if jnp.finfo(vector.dtype).bits >= 64 else 1e-3
    tol = jnp.asarray(tol, vector.dtype)
    if isinstance(problem, CompositeMinimization):
        step = jnp.asarray(problem.residual_step, vector.dtype)
        vector = tree.to_vector(tree.axpy(-step, jax.grad(problem.smooth)(x, theta), x))
        prox = problem.prox

        def mapped(v: Float[Array, " n"]) -> Float[Array, " n"]:
            return tree.to_vector(prox(tree.from_vector(v, x), step, theta))
    else:

        def mapped(v: Float[Array, " n"]) -> Float[Array, " n"]:
            return tree.to_vector(problem.residual(tree.from_vector(v, x), theta))

    distance = tol * jnp.maximum(jnp.max(jnp.abs(vector)), 1)
    moves = distance * _directions(vector)
    images = jax.vmap(mapped)(vector[None] + jnp.concatenate([moves, -moves, 0 * moves[:1]]))
    ahead, behind = images[:3] - images[6][None], images[6][None] - images[3:6]
    if isinstance(problem, CompositeMinimization):  # a prox has slopes between 0 and 1
        slopes = distance[None, None]
    else:
        slopes = jnp.maximum(jnp.abs(ahead), jnp.abs(behind))
    rounding = 8 * jnp.finfo(vector.dtype).eps / tol * jnp.max(slopes)
    found = jnp.any(jnp.abs(ahead - behind) > JUMP * slopes + rounding, axis=0)
    leaves, structure = jax.tree.flatten(x)
    parts = jnp.split(found, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def _directions(like: Float[Array, " n"]) -> Float[Array, "3 n"]:
    """Return vectors of entries between 1/2 and 1, of signs and sizes of no problem's pattern."""
    numbers = jnp.arange(like.size).astype(like.dtype)
    waves = jnp.cos(jnp.outer(jnp.array([1.0, 2.3, 3.7], like.dtype), numbers) + 0.4)
    return waves / 2 + jnp.where(waves >= 0, 0.5, -0.5).astype(like.dtype)
