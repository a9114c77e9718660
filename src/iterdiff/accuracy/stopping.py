"""Stop when the derivative is right, rather than when the iterate is."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.accuracy.correction import correct
from iterdiff.accuracy.estimate import compare
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance, check_count, check_tolerance
from iterdiff.jaxtools.lax import only_if
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.stopping import StopContext, StoppingRule
from iterdiff.problems.problem import Problem

ALL_DIRECTIONS = 64
"""Up to this many parameters, the error of the whole Jacobian is judged."""

PROBES = 32
"""Above, its error in so many random directions..."""

MARGIN = 1.5
"""...which must then be smaller than `rtol` by this factor."""


class DerivativeErrorBelow(StoppingRule):
    r"""Stop when the estimated error of the *derivative* is below `rtol`.

    Every so many steps, the relative error :math:`\|J_t - J^*\|_F / \|J^*\|_F` of the mode's
    derivative is estimated as by `derivative_error`; the run goes on until it can be said to be
    below `rtol`. With the implicit mode that is the error at the iterate; with the unrolled mode
    tangents are followed along with the iterates.

    Parameters
    ----------
    rtol : float
        Relative tolerance of the derivative, positive. Nothing else need be chosen: the linear
        solves have tolerances of their own, far below any that makes sense here.
    max_steps : int
        The most steps; reaching it is `Status.MAX_STEPS_REACHED`.
    every : int
        How often the derivative is judged to begin with. From step ``20 * every`` on, the
        interval doubles whenever the steps have: ten judgements for each doubling, so that
        they remain few, and a stop that comes at most a tenth too late. A judgement costs two
        factorisations, some solves, and the mode's own tangents.
    atol : float
        Absolute tolerance besides, for derivatives that may be zero.

    Raises
    ------
    TypeError, ValueError
        For arguments of another kind or out of range.

    Notes
    -----
    Up to 64 parameters, the whole Jacobian is judged. Above, its Frobenius norms are estimated
    from 32 random directions, and `rtol` is divided by 1.5 for it. The unrolled mode follows the
    same directions: the run costs as many tangents more. An `rtol` below the machine precision
    times the condition number is never met.

    What is judged is the derivative in `theta`. A value that the problem merely closes over is
    differentiated too, but no judgement looks at it: pass it through `theta`.
    """

    rtol: Tolerance
    max_steps: int = eqx.field(static=True)
    every: int = eqx.field(static=True)
    atol: Tolerance
    checks: ClassVar[bool] = True
    judges_derivative: ClassVar[bool] = True

    def __init__(
        self,
        rtol: Tolerance,
        max_steps: int = 10_000,
        *,
        every: int = 10,
        atol: Tolerance = 0.0,
    ):
        check_tolerance("rtol", rtol)
        check_tolerance("atol", atol, zero=True)
        self.rtol = rtol
        self.max_steps = check_count("max_steps", max_steps)
        self.every = check_count("every", every)
        self.atol = atol

    def directions(self, theta: PyTree) -> PyTree:
        """Return the directions, stacked, in which the derivative is judged."""
        moving = floating_part(theta)[0]
        if tree.size(moving) <= ALL_DIRECTIONS:
            return tree.basis(moving)
        return tree.random_directions(jax.random.key(0), moving, PROBES)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> PyTree:
        """Return the directions."""
        del problem, x0
        return self.directions(theta)

    def satisfied(self, look: StopContext) -> Bool[Array, ""]:
        """Return whether the derivative is right, where it is time to look."""
        # The interval is `every` times a power of two, so that later ones are among the earlier.
        doublings = 31 - jax.lax.clz(jnp.maximum(look.steps // (10 * self.every), 1))
        due = (look.steps % (self.every << doublings) == 0) | (look.steps == self.max_steps)
        return only_if(due, lambda: self._right(look), jnp.zeros_like(due))

    def _right(self, look: StopContext) -> Bool[Array, ""]:
        moving, _ = floating_part(look.theta)
        correction = correct(look.problem, look.x, look.theta)
        here = jax.vmap(correction.at.forward)(look.start)
        better = jax.vmap(correction.exactly().forward)(look.start)
        estimate = compare(look.tangents, here, better, correction.points)
        exact = tree.size(moving) <= ALL_DIRECTIONS
        return ~estimate.exceeds(self.rtol if exact else self.rtol / MARGIN, self.atol)
