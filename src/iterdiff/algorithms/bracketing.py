"""Bracketing: roots of one real unknown between two points of opposite sign."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_range, scalar
from iterdiff.problems.problem import FixedPoint, Problem, RootFinding

NO_BRACKET = (
    "`lower` and `upper` of Bisection must bracket a root, but the residual has the same sign at "
    "both or is not finite. Choose two points where its signs differ."
)


class _Bracket(State):
    """The iterate, the bracket, and the sign of the residual at its lower end."""

    x: PyTree
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    sign: Float[Array, ""]


class Bisection(Algorithm):
    r"""Bisection of a bracket :math:`[\ell, u]` on which the residual changes sign.

    The sign of the residual at the iterate tells which half contains the root; the next iterate
    is the midpoint of that half. The first iterate is `x0`, or the nearer end of the bracket if
    `x0` lies outside. The error is at most half the width of the bracket, which halves with every
    step, for every continuous function. Cost: one residual a step.

    Solves for one real unknown; use ``vmap`` for many separate equations. `Unrolled` refuses it,
    because midpoints do not depend differentiably on the parameters; `Implicit` works as for any
    root finder.

    Parameters
    ----------
    lower, upper : scalar
        Ends of the bracket, in the units of `x`.

    Raises
    ------
    ValueError
        When a solve starts, if `x0` holds more than one number.
    RuntimeError
        When a solve runs, if the residual has the same sign at both ends.

    References
    ----------
    R. P. Brent, *Algorithms for Minimization without Derivatives*, 1973, chapter 4.
    """

    lower: Float[Array, ""] = eqx.field(converter=scalar)
    upper: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = (RootFinding, FixedPoint)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that the ends are real numbers."""
        check_range("lower", self.lower, -math.inf)
        check_range("upper", self.upper, -math.inf)

    @property
    def differentiable(self) -> bool:
        """False: midpoints do not depend differentiably on the parameters."""
        return False

    @property
    def caveat(self) -> str:
        """Why the steps cannot be differentiated."""
        return (
            "its iterates are midpoints of brackets, which do not depend differentiably on "
            "`theta`, so that the derivative of the steps is zero."
        )

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _Bracket:
        """Return the initial state; check the bracket."""
        if tree.size(x0) != 1:
            raise ValueError(
                f"`x0`: Bisection solves for one real number, not {tree.size(x0)}. Use jax.vmap "
                "for separate equations, or iterdiff.Newton for a system."
            )
        dtype = tree.result_dtype(x0)
        lower, upper = self.lower.astype(dtype), self.upper.astype(dtype)
        at_lower, at_upper = (_sign(problem, end, x0, theta) for end in (lower, upper))
        brackets = at_lower * at_upper <= 0
        lower = eqx.error_if(lower, ~brackets, NO_BRACKET)
        # If one end is a root, shrink the bracket to it.
        upper = jnp.where(at_lower == 0, lower, upper)
        lower = jnp.where((at_upper == 0) & (at_lower != 0), upper, lower)
        return _Bracket(x0, lower, upper, at_lower)

    def step(self, problem: Problem, state: _Bracket, theta: PyTree) -> _Bracket:
        """Return the state after halving the bracket once."""
        low, high = jnp.minimum(state.lower, state.upper), jnp.maximum(state.lower, state.upper)
        point = jnp.clip(tree.to_vector(state.x)[0], low, high)
        sign = _sign(problem, point, state.x, theta)
        lower = jnp.where((sign == state.sign) | (sign == 0), point, state.lower)
        upper = jnp.where((sign != state.sign) | (sign == 0), point, state.upper)
        middle = lower + (upper - lower) / 2
        return _Bracket(tree.from_vector(middle[None], state.x), lower, upper, state.sign)


def _sign(problem: Problem, point: Array, like: PyTree, theta: PyTree) -> Float[Array, ""]:
    """Return the sign of the residual at `point`, without a derivative."""
    x = tree.from_vector(point[None], like)
    return jax.lax.stop_gradient(jnp.sign(tree.to_vector(problem.residual(x, theta))[0]))
