r"""Whether a solution is at a kink, where it has only one-sided derivatives.

For a `CompositeMinimization`, `weakly_active` looks at the prox, and for a problem with constraints
at these. Any other residual that contains
an absolute value, a maximum or a comparison is followed along the solution's own path,

.. math::

    c(h) = r(x + h J v, \theta + h v),

for a fixed direction `v`. Where it is smooth, the second difference
:math:`c(h) - 2 c(0) + c(-h)` is of second order in `h`; at a kink it is proportional to `h`; and if
it is noise, it does not depend on `h`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.accuracy.sensitivity import Sensitivity
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jaxpr import may_have_kinks
from iterdiff.problems.problem import Problem
from iterdiff.problems.prox import narrowest, weakly_active

INCREMENT_FACTOR = 4.0
"""Three increments are compared, each longer than the one before by this factor."""

PROPORTIONAL_MAX_GAP = 0.25
"""Second differences that are proportional to the increment to within this, relatively, are those
of a kink."""

MIN_SLOPE_JUMP = 1e-3
"""Smallest difference of one-sided slopes that counts as a kink, relative to the slopes' terms."""


def at_marked_kink(problem: Problem, x: PyTree, theta: PyTree) -> Bool[Array, ""]:
    """Return whether a coordinate or a constraint is weakly active, to half the digits."""
    tol = float(jnp.finfo(narrowest(x)).eps) ** 0.5
    kinks = jax.tree.leaves(weakly_active(problem, x, theta, tol=tol))
    return jnp.any(jnp.array([jnp.any(kink) for kink in kinks]))


def at_kink(at: Sensitivity, x: PyTree) -> Bool[Array, ""]:
    """Return whether the residual has a kink at `x`, to half the digits.

    Parameters
    ----------
    at : Sensitivity
        The residual linearised near `x`.
    x : pytree
        A root, as accurate as possible.

    Notes
    -----
    The path needs one solve. Without a factorisation, any direction of `x` takes its place: the
    test then also finds kinks that the solution stays at whatever theta is.
    """
    traced = jax.make_jaxpr(at.residual)(x, at.theta)
    if not may_have_kinks(traced.jaxpr):
        return jnp.array(False)
    v = jax.tree.map(_scaled_to, tree.irregular(at.theta), at.theta)
    pushed = at.pushed(v)
    if at.inverse.factors is None:
        dx = jax.tree.map(_scaled_to, tree.irregular(x), x)
    else:
        dx = tree.scale(-1.0, at.inverse.factored(pushed))
    longer = tree.norm(dx) / jnp.where(tree.norm(x) > 0, tree.norm(x), jnp.inf)
    h = float(jnp.finfo(narrowest((x, at.theta))).eps) ** 0.5 / jnp.maximum(longer, 1.0)
    seconds = _second_differences(at, (x, at.theta), (dx, v), h)
    mixed = at.operator(jax.tree.map(jnp.multiply, tree.irregular(x), dx))
    terms = tree.to_vector(jax.tree.map(lambda u, v: jnp.abs(u) + jnp.abs(v), pushed, mixed))
    first, middle, last = seconds / jnp.where(terms > 0, terms, 1.0)[None]
    return (
        _proportional(first, middle)
        & _proportional(middle, last)
        & (jnp.max(jnp.abs(first)) > MIN_SLOPE_JUMP * h)
    )


def _second_differences(at: Sensitivity, point: PyTree, direction: PyTree, h: Array) -> Array:
    """Return the second differences along a direction, in rows, one for each increment."""
    sizes = h * jnp.asarray([INCREMENT_FACTOR**k for k in range(3)], h.dtype)
    steps = jnp.concatenate([sizes, -sizes, jnp.zeros_like(sizes[:1])])

    def value(step):
        return tree.to_vector(at.residual(*tree.axpy(step, direction, point)))

    values = jax.vmap(value)(steps)
    return values[:3] + values[3:6] - 2 * values[6:]


def _proportional(shorter: Array, longer: Array) -> Bool[Array, ""]:
    """Return whether two second differences are proportional to their increments."""
    gap = jnp.linalg.norm(longer - INCREMENT_FACTOR * shorter)
    return gap <= PROPORTIONAL_MAX_GAP * jnp.linalg.norm(longer)


def _scaled_to(factors: Array, leaf: Array) -> Array:
    """Return `factors` times the sizes of the numbers of a leaf, or 1 if all of them are zero."""
    if leaf.size == 0:
        return factors
    sizes = jnp.abs(leaf) + jnp.mean(jnp.abs(leaf))
    return factors * jnp.where(jnp.any(leaf != 0), sizes, 1.0).astype(leaf.dtype)
