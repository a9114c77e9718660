r"""Proximal operators and projections, and a detector of one-sided derivatives.

Each function implements the `prox` of a `CompositeMinimization` for one common penalty. Multiply
the penalty's parameters by the step size that the problem passes in:

>>> import jax.numpy as jnp
>>> import iterdiff as itd
>>> lasso = itd.CompositeMinimization(
...     lambda x, theta: jnp.sum((x - theta["data"]) ** 2) / 2,
...     lambda x, step_size, theta: itd.prox.soft_threshold(x, step_size * theta["penalty"]),
... )

Away from kinks the derivatives are exact. At a kink the solution has only one-sided derivatives,
and the functions return the one of the smaller support: zero for a coordinate that is about to
leave zero. `weakly_active` finds such coordinates.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import as_array, check_tolerance, is_known, is_real
from iterdiff.problems.active_set import completed, default_distance, still, weak_constraints
from iterdiff.problems.constrained import ConstrainedProblem
from iterdiff.problems.inputs import check_inputs
from iterdiff.problems.problem import CompositeMinimization, Problem

T = TypeVar("T", bound=PyTree)
Bound = PyTree | float

KINK_MIN_SLOPE_JUMP = 0.01
"""Smallest difference of one-sided slopes that counts as a kink, relative to the slopes."""

ROUNDING_ERRORS = 8
"""Rounding errors of a one-sided difference that are not mistaken for a kink, in units of eps."""

FREQUENCIES = (1.0, 2.3, 3.7)
"""One fixed direction of `weakly_active` for each, in radians per coordinate."""


def soft_threshold(x: T, by: Bound) -> T:
    r"""Return :math:`\mathrm{sign}(x) \max(|x| - b, 0)`: for :math:`b \|x\|_1` (lasso).

    Parameters
    ----------
    x : pytree of real floating arrays
        Point to shrink.
    by : scalar, array or pytree like `x`
        The threshold :math:`b \ge 0` (step size times penalty), broadcast against each leaf.
    """

    def shrink(leaf, bound):
        bound = size_of("by", bound, leaf)
        shrunk = jnp.where(jnp.abs(leaf) > bound, leaf - jnp.sign(leaf) * bound, 0)
        return nan_unless(bound >= 0, shrunk, leaf)

    x = point_of(x)
    return jax.tree.map(shrink, x, _like(by, x))


def elastic_net(x: T, by: Bound, ridge: Bound) -> T:
    r"""Return the soft threshold over :math:`1 + r`: for :math:`b \|x\|_1 + r \|x\|^2 / 2`.

    Parameters
    ----------
    x : pytree of real floating arrays
        Point to shrink.
    by, ridge : scalar, array or pytree like `x`
        :math:`b, r \ge 0`, both multiplied by the step size.
    """
    shrunk = soft_threshold(x, by)
    return jax.tree.map(lambda u, r: u / (1 + size_of("ridge", r, u)), shrunk, _like(ridge, x))


def nonnegative(x: T) -> T:
    """Return the nearest point with nonnegative coordinates."""
    return jax.tree.map(
        lambda leaf: nan_unless(True, jnp.where(leaf > 0, leaf, 0), leaf), point_of(x)
    )


def box(x: T, lower: Bound, upper: Bound) -> T:
    """Return the nearest point in the box ``lower <= x <= upper``.

    Parameters
    ----------
    x : pytree of real floating arrays
        Point to project.
    lower, upper : scalar, array or pytree like `x`
        The bounds, ``lower <= upper``.

    Raises
    ------
    ValueError
        If known bounds cross.
    """

    def clip(leaf, low, high):
        given = low, high  # as constants of a traced function they are known, and converted not
        low, high = bound_of("lower", low, leaf), bound_of("upper", high, leaf)
        if all(map(is_known, given)) and np.any(np.asarray(given[0]) > np.asarray(given[1])):
            raise ValueError("`lower` exceeds `upper` somewhere; exchange them there.")
        inside = jnp.where(leaf <= low, low, jnp.where(leaf >= high, high, leaf))
        return nan_unless(low <= high, inside, leaf)

    x = point_of(x)
    return jax.tree.map(clip, x, _like(lower, x), _like(upper, x))


def simplex(x: Float[Array, " n"], total: float | Float[Array, ""] = 1.0) -> Float[Array, " n"]:
    r"""Return the nearest point whose coordinates are nonnegative and sum to `total`.

    The projection is :math:`\max(x - \tau, 0)`. On its support S,
    :math:`\tau = (\sum_S x_i - \text{total}) / |S|`, and the derivative is
    :math:`I_S - 1_S 1_S^\top / |S|`. Sorting finds the support in :math:`O(n \log n)`.

    Parameters
    ----------
    x : array of shape (n,)
        Point to project.
    total : scalar
        The sum of the coordinates, positive.

    References
    ----------
    J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, *Efficient projections onto the l1-ball for
    learning in high dimensions*, ICML 2008.
    """
    x = point_of(x)
    if not isinstance(x, jax.Array) or x.ndim != 1:
        raise ValueError(f"`x` must be one vector, not {x!r}; flatten it.")
    total = size_of("total", total, x[0])
    descending = -jnp.sort(-jax.lax.stop_gradient(x))
    excess = jnp.cumsum(descending) - jax.lax.stop_gradient(total)
    counts = jnp.arange(1, x.size + 1).astype(x.dtype)
    inside = descending * counts > excess
    size = jnp.sum(inside)
    threshold = jnp.take(descending, size - 1)
    support = jax.lax.stop_gradient(x) >= threshold
    shift = (jnp.sum(jnp.where(support, x, 0)) - total) / jnp.sum(support).astype(x.dtype)
    return nan_unless((total >= 0) & ~jnp.any(jnp.isnan(x)), jnp.where(support, x - shift, 0), x)


def nan_unless(valid: Any, answer: Array, x: Array) -> Array:
    """Return `answer`; NaN where an argument is not `valid`, or the coordinate of `x` is NaN.

    A comparison with NaN is false, so that an operator made of comparisons would return a number.
    """
    return jnp.where(valid & ~jnp.isnan(x), answer, jnp.nan)


def point_of(x: Any) -> Any:
    """Return the argument of a proximal operator as a pytree of floating arrays."""
    x = jax.tree.map(lambda leaf: as_array("`x`", leaf), x)
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"`x` must hold real floating arrays, not {leaf.dtype}; convert it.")
    return x


def bound_of(name: str, bound: Any, leaf: Array) -> Array:
    """Return a bound in the dtype of a leaf, against whose shape it broadcasts."""
    if not is_real(bound):
        raise TypeError(f"`{name}` must be a real number or a real array, not {bound!r}.")
    shape = jnp.shape(bound)
    fits = len(shape) <= leaf.ndim and all(
        a in (1, b) for a, b in zip(shape[::-1], leaf.shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"`{name}` has shape {shape}, but `x` has a leaf of shape {leaf.shape}.")
    return jnp.asarray(bound, leaf.dtype)


def size_of(name: str, size: Any, leaf: Array) -> Array:
    """Return a bound that must not be negative, see `bound_of`."""
    size = bound_of(name, size, leaf)
    if is_known(size) and np.any(np.asarray(size) < 0):
        raise ValueError(f"`{name}` must not be negative, but it is {size}.")
    return size


def _like(bound: Bound, x: PyTree) -> PyTree:
    """Return one bound for each leaf of `x`."""
    if jax.tree.structure(bound) == jax.tree.structure(x):
        return bound
    return jax.tree.map(lambda _: bound, x)


def weakly_active(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    tol: Float[Array, ""] | float | None = None,
    *,
    args: PyTree = None,
) -> PyTree[Bool[Array, "..."]]:
    r"""Return the coordinates at a kink, where the derivative of the solution is one-sided.

    Compares forward and backward differences of the prox (else of the residual) along three
    fixed directions. Where they disagree, a kink lies within `tol`. For a `CompositeMinimization`
    we perturb the argument of the prox, which finds coordinates that are about to enter or leave
    the support. For every other problem we perturb `x`. For a problem with constraints we compare
    the values and the multipliers of the inequalities with zero instead. `solve` calls this
    function for these two kinds of problem and stores the result in `Solution.weakly_active`.

    The cost is seven evaluations in one batch. Works under ``jit`` and ``vmap``; the result
    carries no derivative.

    Parameters
    ----------
    problem : Problem
        The problem.
    x : pytree of real floating arrays
        Its solution, converged to well below `tol`.
    theta : pytree
        Parameters.
    tol : scalar, optional
        Distance within which a kink counts, relative to the size of each coordinate. By default
        1e-6, or 1e-3 if any leaf is in float32. For a `CompositeMinimization` the size is that of
        the argument of the prox or, if larger, of the terms that add up to it. For every other
        problem it is the largest absolute coordinate. If the size is zero, `tol` is absolute.
    args : pytree, optional
        Data for the problem's functions, as in `iterdiff.solve`.

    Returns
    -------
    pytree of bool arrays
        Like `x`; for a problem with constraints, like the value of ``inequality`` (None without).
        True where the derivative is one-sided: `Implicit` and `Unrolled` then each return at most
        one of the two one-sided derivatives.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.CompositeMinimization(
    ...     lambda x, theta: jnp.sum((x - theta) ** 2) / 2,
    ...     lambda x, step_size, theta: itd.prox.soft_threshold(x, step_size),
    ... )
    >>> theta = jnp.array([3.0, 1.0, 0.5])  # the second coordinate is about to leave zero
    >>> itd.prox.weakly_active(problem, jnp.array([2.0, 0.0, 0.0]), theta).tolist()
    [False, True, False]
    """
    if tol is not None:
        check_tolerance("tol", tol)
    if getattr(problem, "snapshot", None) is None:  # no entry point has checked them
        problem, x, theta = check_inputs(problem, x, theta, args, solved=True)
    x, theta = still((x, theta))
    tol = default_distance(x) if tol is None else tol
    if isinstance(problem, ConstrainedProblem):
        unknowns = completed(problem, x, theta)
        tol = jnp.asarray(tol, tree.result_dtype(x))
        return weak_constraints(problem, unknowns, theta, tol)
    function, point, scale = _map_with_kinks(problem, x, theta)
    narrow = jnp.finfo(narrowest(x))
    tol = jnp.asarray(tol, point.dtype)
    distance = tol * jnp.where(scale > 0, scale, 1.0)
    steps = jnp.broadcast_to(distance, point.shape)[None] * _directions(point)
    values = jax.vmap(function)(point[None] + jnp.concatenate([steps, -steps, 0 * steps[:1]]))
    ahead, behind, center = jnp.split(values, [len(steps), 2 * len(steps)])
    forward, backward = ahead - center, center - behind
    if isinstance(problem, CompositeMinimization):  # the slopes of a prox lie between 0 and 1
        slopes = distance[None]
    else:
        slopes = jnp.maximum(jnp.abs(forward), jnp.abs(backward))
    largest = slopes if isinstance(problem, CompositeMinimization) else jnp.max(slopes)
    rounding = ROUNDING_ERRORS * narrow.eps / tol * largest
    kinked = jnp.abs(forward - backward) > KINK_MIN_SLOPE_JUMP * slopes + rounding
    flags = _shaped_like(jnp.any(kinked, axis=0), x)
    return flags if problem.layout is None else problem.layout.flags(flags)


def narrowest(a: PyTree) -> np.dtype:
    """Return the floating dtype of `a` with the fewest digits."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(a)]
    return np.dtype(max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps)))


def _map_with_kinks(
    problem: Problem, x: PyTree, theta: PyTree
) -> tuple[Callable[[Array], Array], Float[Array, " n"], Float[Array, " n"]]:
    """Return the prox and its argument at `x`, else the residual and `x`, on flat vectors.

    The third value is the size by which each coordinate is measured, see `weakly_active`. The
    terms of a gradient may cancel; its derivative along a vector of irregular signs shows them.
    """
    if isinstance(problem, CompositeMinimization):
        step = jnp.asarray(problem.residual_step, tree.result_dtype(x))
        floating, rest = tree.floating_part(theta)

        def gradient(x, floating):
            return jax.grad(problem.smooth)(x, eqx.combine(floating, rest))

        mixed = jax.tree.map(_irregularly, (x, floating))
        slope, terms = jax.jvp(gradient, (x, floating), mixed)
        point = tree.to_vector(tree.axpy(-step, slope, x))
        sizes = jnp.abs(tree.to_vector(x)), step * jnp.abs(tree.to_vector(terms))
        return (
            lambda v: tree.to_vector(problem.prox(tree.from_vector(v, x), step, theta)),
            point,
            jnp.maximum(jnp.abs(point), jnp.maximum(*sizes)),
        )
    point = tree.to_vector(x)
    return (
        lambda v: tree.to_vector(problem.residual(tree.from_vector(v, x), theta)),
        point,
        jnp.full_like(point, jnp.max(jnp.abs(point))),
    )


def _irregularly(leaf: Array) -> Array:
    """Return the leaf times irregular factors, for a sum whose terms do not cancel."""
    return leaf * _directions(leaf.reshape(-1))[0].reshape(leaf.shape)


def _shaped_like(flags: Bool[Array, " n"], x: PyTree) -> PyTree[Bool[Array, "..."]]:
    """Return a flat vector of flags in the structure and shapes of `x`."""
    leaves, structure = jax.tree.flatten(x)
    parts = jnp.split(flags, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def _directions(like: Float[Array, " n"]) -> Float[Array, "k n"]:
    """Return vectors whose entries have irregular signs and sizes between 1/2 and 1.

    A structured direction could cancel the jump of a kink that couples several coordinates.
    """
    numbers = jnp.arange(like.size).astype(like.dtype)
    waves = jnp.cos(jnp.outer(jnp.array(FREQUENCIES, like.dtype), numbers) + 0.4)
    return waves / 2 + jnp.where(waves >= 0, 0.5, -0.5).astype(like.dtype)
