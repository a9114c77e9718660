"""Stop when the derivative is accurate, rather than the iterate."""

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

FULL_JACOBIAN_MAX_PARAMETERS = 64
"""Up to this many parameters, the rule judges the whole Jacobian."""

PROBES = 32
"""Above, it judges this many random directions..."""

PROBES_MARGIN = 1.5
"""...in which the error has to be smaller than `rtol` by this factor."""


class DerivativeErrorBelow(StoppingRule):
    r"""Stop when the estimated error of the *derivative* is below `rtol`.

    At intervals, the rule estimates the relative error :math:`\|J_t - J^*\|_F / \|J^*\|_F` of the
    mode's derivative, by the method of `derivative_error`. The run continues until that error is
    certain enough to be below `rtol`. With the implicit mode it is the error at the iterate. With
    the unrolled mode, tangents are propagated along with the iterates.

    Parameters
    ----------
    rtol : float
        Relative tolerance of the derivative, positive. No other tolerance needs to be chosen: the
        linear solves have their own, far below any value that makes sense here.
    max_steps : int
        The largest number of steps; reaching it is `Status.MAX_STEPS_REACHED`.
    every : int
        The first interval, in steps. From step ``20 * every`` on, the interval doubles each time
        the step count doubles: about ten checks per doubling, so the run stops at most 10 % late.
        A check costs two factorisations, some solves, and the mode's own tangents.
    atol : float
        Additional absolute tolerance, for derivatives that may be zero.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Notes
    -----
    Up to 64 parameters, the rule judges the whole Jacobian. Above, it estimates Frobenius norms
    from 32 random directions and divides `rtol` by 1.5 to compensate. The unrolled mode propagates
    the same directions, so that the run costs as many tangents more. An `rtol` below machine
    precision times the condition number is never reached.

    The rule judges the derivative in `theta`. A value that the problem only closes over is
    differentiated in, too, but not judged: pass it through `theta`.
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
        """Return the stacked directions in which the derivative is judged."""
        floating = floating_part(theta)[0]
        if tree.size(floating) <= FULL_JACOBIAN_MAX_PARAMETERS:
            return tree.basis(floating)
        return tree.fixed_directions(floating, PROBES)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> PyTree:
        """Return the directions."""
        del problem, x0
        return self.directions(theta)

    def satisfied(self, context: StopContext) -> Bool[Array, ""]:
        """Return whether the derivative is accurate enough, at steps where a check is due."""
        # Intervals are `every` times a power of two, so that later checks are among earlier ones.
        doublings = 31 - jax.lax.clz(jnp.maximum(context.steps // (10 * self.every), 1))
        due = (context.steps % (self.every << doublings) == 0) | (context.steps == self.max_steps)
        return only_if(due, lambda: self._accurate(context), jnp.zeros_like(due))

    def _accurate(self, context: StopContext) -> Bool[Array, ""]:
        floating, _ = floating_part(context.theta)
        correction = correct(context.problem, context.x, context.theta)
        here = jax.vmap(correction.at.forward)(context.start)
        better = jax.vmap(correction.exactly().forward)(context.start)
        estimate = compare(context.tangents, here, better, correction.points)
        exact = tree.size(floating) <= FULL_JACOBIAN_MAX_PARAMETERS
        return ~estimate.exceeds(self.rtol if exact else self.rtol / PROBES_MARGIN, self.atol)
