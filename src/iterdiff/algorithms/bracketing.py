"""Bracketing: roots of one real unknown between two points of different sign."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import scalar
from iterdiff.problems.problem import FixedPoint, Problem, RootFinding

BRACKET = (
    "`lower` and `upper` of Bisection must bracket a root: the residual has the same sign (or is "
    "not finite) at both. Look for two points with different signs."
)


class _Bracket(State):
    """The iterate, and the bracket with the sign of the residual at its lower end."""

    x: PyTree
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    sign: Float[Array, ""]


class Bisection(Algorithm):
    r"""Bisection of a bracket :math:`[\ell, u]` on which the residual changes sign.

    The residual's sign at the iterate tells which half keeps the root; the next iterate is that
    half's midpoint. (`x0` is the first point to be looked at; one outside the bracket counts as
    the nearer end.) The error is at most half the bracket, which halves with every step: rate
    1/2, whatever the function, as long as it is continuous. One residual a step.

    One real unknown; ``vmap`` solves many equations at once. It cannot be unrolled: midpoints do
    not depend differentiably on the parameters. The implicit derivative is that of any root
    finder.

    Parameters
    ----------
    lower, upper : scalar
        The bracket, in the units of `x`.

    Raises
    ------
    ValueError
        If `x0` has more than one number.
    RuntimeError
        When it runs, if the residual has the same sign at both ends.

    References
    ----------
    R. P. Brent, *Algorithms for Minimization without Derivatives*, 1973, chapter 4.
    """

    lower: Float[Array, ""] = eqx.field(converter=scalar)
    upper: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = (RootFinding, FixedPoint)
    consistent: ClassVar[bool] = True

    @property
    def differentiable(self) -> bool:
        """False."""
        return False

    @property
    def caveat(self) -> str:
        """Why not."""
        return (
            "its iterates are midpoints of brackets, which do not depend differentiably on "
            "`theta`; the derivative of the steps is zero, whatever that of the root is."
        )

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _Bracket:
        """Return the state at `x0`, with the bracket checked."""
        if tree.size(x0) != 1:
            raise ValueError(
                f"`x0`: Bisection solves for one real number, not {tree.size(x0)}; use jax.vmap "
                "for many separate equations, iterdiff.Newton for a system."
            )
        dtype = tree.result_dtype(x0)
        lower, upper = self.lower.astype(dtype), self.upper.astype(dtype)
        at_lower, at_upper = (_sign(problem, end, x0, theta) for end in (lower, upper))
        brackets = at_lower * at_upper <= 0
        lower = eqx.error_if(lower, ~brackets, BRACKET)
        # A root at an end is found at once, whatever the sign at the other one.
        upper = jnp.where(at_lower == 0, lower, upper)
        lower = jnp.where((at_upper == 0) & (at_lower != 0), upper, lower)
        return _Bracket(x0, lower, upper, at_lower)

    def step(self, problem: Problem, state: _Bracket, theta: PyTree) -> _Bracket:
        """Return the state after one halving."""
        low, high = jnp.minimum(state.lower, state.upper), jnp.maximum(state.lower, state.upper)
        point = jnp.clip(tree.to_vector(state.x)[0], low, high)
        sign = _sign(problem, point, state.x, theta)
        lower = jnp.where((sign == state.sign) | (sign == 0), point, state.lower)
        upper = jnp.where((sign != state.sign) | (sign == 0), point, state.upper)
        middle = lower + (upper - lower) / 2
        return _Bracket(tree.from_vector(middle[None], state.x), lower, upper, state.sign)


def _sign(problem: Problem, point: Array, like: PyTree, theta: PyTree) -> Float[Array, ""]:
    x = tree.from_vector(point[None], like)
    return jax.lax.stop_gradient(jnp.sign(tree.to_vector(problem.residual(x, theta))[0]))
