"""Test whether an algorithm goes where Newton's method goes.

Newton's method goes to a root of the residual. There are two ways in which the iteration may end
elsewhere, where the derivative is another one. The step of a user's own algorithm may belong to
another problem; the steps of built-in algorithms only use the problem's own functions. And the root
may be a repelling fixed point of the step, which the iteration leaves.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.accuracy.points import NewtonPoints
from iterdiff.accuracy.sensitivity import random_vector, unit
from iterdiff.algorithms.base import Algorithm
from iterdiff.algorithms.newton import Newton
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import Problem

TRIAL_STEPS = 10
"""Steps, linearised at the root, over which a displacement has to grow twice in a row. Growth over
fewer steps may be the transient of a non-normal contraction."""

CONVERGED_MAX_ROUNDINGS = 100
"""Distances from a root up to this many times its relative error count as zero."""

ROOT_FOUND_MAX_QUOTIENT = 0.1
"""The residual's root counts as found if Newton corrections shrink at least by this factor."""


def remembers(algorithm: Algorithm, problem: Problem, x: PyTree, theta: PyTree) -> bool:
    """Return whether the state holds more than the iterate.

    Such an algorithm, restarted at a solution without its memory, may leave it, which proves
    nothing.
    """
    state = eqx.filter_eval_shape(algorithm.init, problem, x, theta)
    numbers = [v for v in jax.tree.leaves(state) if jnp.issubdtype(v.dtype, jnp.floating)]
    return tree.size(numbers) != tree.size(x)


def may_leave(algorithm: Algorithm, problem: Problem) -> bool:
    """Return whether the algorithm may move away from a root that Newton's method finds.

    Linear systems have one root, Newton's steps are attracted by every root, and at a minimum the
    Hessian tells (see `NewtonPoints.saddle`).
    """
    others = isinstance(problem, LinearSystem) or isinstance(algorithm, Newton)
    return not (others or problem.positive_definite)


def repel(step: Callable[[PyTree], PyTree], points: NewtonPoints) -> Bool[Array, ""]:
    """Return whether the steps move away from the root that the Newton corrections approach.

    Parameters
    ----------
    step : callable
        ``step(x)`` is the next iterate.
    points : NewtonPoints
        The iterate, and the points after one and two Newton corrections.

    Notes
    -----
    At the root the step is linearised, and applied again and again to the displacement of the
    iterate, to which a random part is added: an unstable direction shows even if the iterate still
    approaches along the others. An iterate that has converged is not tested.
    """
    root = points.twice
    away = tree.sub(points.x, root)
    scale = tree.norm(root)
    eps = jnp.finfo(tree.result_dtype(root)).eps
    least = jnp.maximum(eps**0.5, CONVERGED_MAX_ROUNDINGS * points.rounding) * scale
    moves = tree.norm(away) > least

    def grows() -> Bool[Array, ""]:
        push = jax.linearize(step, root)[1]

        def advance(k, carry):
            v, middle = carry
            return push(v), jnp.where(k == TRIAL_STEPS, tree.norm(v), middle)

        start = tree.add(unit(away), unit(random_vector(root)))
        end = jax.lax.fori_loop(0, 2 * TRIAL_STEPS, advance, (start, tree.norm(start)))
        return tree.norm(end[0]) > jnp.maximum(end[1], eps**0.5)

    return only_if(moves, grows, jnp.zeros_like(moves))


def disagree(step: Callable[[PyTree], PyTree], points: NewtonPoints) -> Bool[Array, ""]:
    """Return whether the step still moves where the residual vanishes.

    Parameters
    ----------
    step : callable
        ``step(x)`` is the next iterate.
    points : NewtonPoints
        The iterate, and the points after one and two Newton corrections.

    Notes
    -----
    Near a common solution, every correction shortens the step. If the two disagree, corrections
    lead to the residual's root, where the step has a length of its own: longer than where the run
    stopped, and the same after one correction and after two.
    """

    def length(x: PyTree) -> Array:
        return tree.norm(tree.sub(step(x), x))

    stopped, once, twice = (length(x) for x in (points.x, points.corrected, points.twice))
    noise = CONVERGED_MAX_ROUNDINGS * points.rounding * tree.norm(points.twice)
    stays = (twice > 0.5 * once) & (twice > stopped) & (twice > noise)
    return stays & (points.quotient < ROOT_FOUND_MAX_QUOTIENT)
