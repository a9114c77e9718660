"""Test whether an algorithm and a residual belong to the same problem.

The steps of built-in algorithms only use the problem's own functions, so that their fixed points
are roots of the residual. The step of a user's own algorithm may belong to another problem. Then
the run converges, the residual does not vanish, and the implicit derivative belongs to another
solution.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.accuracy.correction import NewtonPoints
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools import tree
from iterdiff.problems.problem import Problem

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
    noise = 100 * points.rounding * tree.norm(points.twice)
    stays = (twice > 0.5 * once) & (twice > stopped) & (twice > noise)
    return stays & (points.quotient < ROOT_FOUND_MAX_QUOTIENT)
