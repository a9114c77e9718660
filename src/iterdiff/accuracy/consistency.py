"""Does an algorithm come to rest where the residual vanishes? Else one of them is wrong.

The built-in algorithms take their steps from the problem, so that there is nothing to ask. A
user's own algorithm need not: where its step and the residual belong to different problems, the run
converges, the residual does not vanish, and the implicit derivative is that of another solution.
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

SURE = 0.1
"""The residual's root is known well enough where Newton's corrections shrink by this factor."""


def remembers(algorithm: Algorithm, problem: Problem, x: PyTree, theta: PyTree) -> bool:
    """Return whether the state holds more than the iterate.

    A fresh start with the iterate alone may then well leave a solution, which proves nothing.
    """
    state = eqx.filter_eval_shape(algorithm.init, problem, x, theta)
    numbers = [v for v in jax.tree.leaves(state) if jnp.issubdtype(v.dtype, jnp.floating)]
    return tree.size(numbers) != tree.size(x)


def disagree(step: Callable[[PyTree], PyTree], points: NewtonPoints) -> Bool[Array, ""]:
    """Return whether the step goes on moving where the residual vanishes.

    Parameters
    ----------
    step : callable
        ``step(x)``, the next iterate.
    points : NewtonPoints
        The iterate, and after one and two Newton corrections.

    Notes
    -----
    On the way to a common solution, the step's length falls with every correction. Where the two
    disagree, corrections lead to the residual's root, where the step has a length of its own:
    longer than where the run stopped, and the same after one correction and after two.
    """

    def length(x: PyTree) -> Array:
        return tree.norm(tree.sub(step(x), x))

    stopped, once, twice = (length(x) for x in (points.x, points.corrected, points.twice))
    noise = 100 * points.rounding * tree.norm(points.twice)
    stays = (twice > 0.5 * once) & (twice > stopped) & (twice > noise)
    return stays & (points.quotient < SURE)
