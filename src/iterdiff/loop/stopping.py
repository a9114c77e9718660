"""When to stop: rules that examine the iterate before each step."""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count, check_tolerance
from iterdiff.problems.problem import Problem


class StopContext(NamedTuple):
    """What a stopping rule examines.

    Attributes
    ----------
    problem, theta
        As in `solve`.
    x : pytree of real floating arrays
        The iterate.
    steps : integer scalar
        Number of steps that led to it.
    start : pytree
        What the rule's `init` returned.
    tangents : pytree
        For a rule that judges the derivative: the mode's tangents of `x` in the rule's
        directions, stacked along a first axis.
    """

    problem: Problem
    theta: PyTree
    x: PyTree
    steps: Int[Array, ""]
    start: PyTree
    tangents: PyTree = None


class StoppingRule(eqx.Module):
    """Decides, before each step, whether the run may stop at the present iterate.

    Attributes
    ----------
    max_steps : int
        The largest number of steps.
    checks : bool
        Whether the rule examines iterates. A rule that does not is a fixed number of steps, and
        reaching that number is no failure.
    judges_derivative : bool
        Whether the rule judges the mode's derivative, which the mode then provides at each step.
    """

    max_steps: eqx.AbstractVar[int]
    checks: eqx.AbstractClassVar[bool]
    judges_derivative: eqx.AbstractClassVar[bool]

    def directions(self, theta: PyTree) -> PyTree:
        """Return the stacked directions in which a rule judges the derivative."""
        raise NotImplementedError(f"{type(self).__name__} does not judge derivatives.")

    @abc.abstractmethod
    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> PyTree:
        """Return what `satisfied` needs to know about the start."""

    @abc.abstractmethod
    def satisfied(self, context: StopContext) -> Bool[Array, ""]:
        """Return whether the run may stop at this iterate."""


class Steps(StoppingRule):
    """Take `n` steps; only an iterate that is not finite ends the run earlier.

    Parameters
    ----------
    n : int
        Number of steps, at least 1.

    Raises
    ------
    TypeError
        If `n` is not a Python int.
    ValueError
        If `n` is less than 1.
    """

    max_steps: int = eqx.field(static=True)
    checks: ClassVar[bool] = False
    judges_derivative: ClassVar[bool] = False

    def __init__(self, n: int):
        self.max_steps = check_count("n", n)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> PyTree:
        """Return nothing: the rule examines no iterate."""
        del problem, x0, theta

    def satisfied(self, context: StopContext) -> Bool[Array, ""]:
        """Return False."""
        del context
        return jnp.array(False)


class ResidualBelow(StoppingRule):
    r"""Stop when ``||residual(x_t)|| <= atol + rtol * ||residual(x_0)||`` (Euclidean norms).

    A small residual means that `x` is close to the solution, in units of the residual. It means
    little for the *derivative*, whose error may still be large: see `DerivativeErrorBelow` and
    `Checked`.

    Parameters
    ----------
    rtol : float
        Relative tolerance, dimensionless, not negative.
    atol : float
        Absolute tolerance in the units of the residual, not negative.
    max_steps : int
        The largest number of steps. A run that reaches it without satisfying the rule has failed,
        with `Status.MAX_STEPS_REACHED`.

    Raises
    ------
    TypeError
        If a tolerance is not a real number or `max_steps` not a Python int.
    ValueError
        If a tolerance is negative, both are zero, or `max_steps` is less than 1.
    """

    rtol: Float[Array, ""] | float
    atol: Float[Array, ""] | float
    max_steps: int = eqx.field(static=True)
    checks: ClassVar[bool] = True
    judges_derivative: ClassVar[bool] = False

    def __init__(
        self,
        rtol: Float[Array, ""] | float = 1e-8,
        atol: Float[Array, ""] | float = 0.0,
        max_steps: int = 10_000,
    ):
        for name, value in (("rtol", rtol), ("atol", atol)):
            check_tolerance(name, value, zero=True)
        if isinstance(rtol, int | float) and isinstance(atol, int | float) and rtol == atol == 0:
            raise ValueError(
                "`rtol` and `atol` are both zero, so that the rule would never be satisfied; for "
                "a fixed number of steps use `Steps`."
            )
        self.rtol = rtol
        self.atol = atol
        self.max_steps = check_count("max_steps", max_steps)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> Float[Array, ""]:
        """Return the threshold for the norm of the residual."""
        return self.atol + self.rtol * tree.norm(problem.residual(x0, theta))

    def satisfied(self, context: StopContext) -> Bool[Array, ""]:
        """Return whether the norm of the residual is at most the threshold."""
        residual = context.problem.residual(context.x, context.theta)
        return tree.norm(residual) <= context.start
