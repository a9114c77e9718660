"""The contract of an algorithm: a state, and one traceable step."""

import abc
import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from iterdiff.problems.checks import check_problem
from iterdiff.problems.problem import Problem

UNTRACEABLE = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where a function asks for the value of what is being traced."""


class State(eqx.Module):
    """What an algorithm carries from step to step.

    Attributes
    ----------
    x : pytree of real floating arrays
        The iterate.
    """

    x: eqx.AbstractVar[PyTree]


class Iterate(State):
    """The state of an algorithm that remembers nothing but the iterate."""

    x: PyTree


class Algorithm(eqx.Module):
    """How a problem is solved: ``init`` makes a state, ``step`` improves it.

    An algorithm holds its hyper-parameters (step sizes and the like) as array leaves, so that
    one can differentiate in them and `vmap` over them. Both methods are traceable by JAX.
    A step keeps the structure, shapes and dtypes of the state, and its value *and derivative*
    are finite at an exact solution too (an iteration that goes on after it has converged, as
    under ``vmap``, must not turn into 0/0).

    Attributes
    ----------
    accepts : tuple of type
        The classes of problem that it solves; any other is a ValueError, see `check_fits`.
    consistent : bool
        Whether every fixed point of the step is known to be a root of the problem's residual, as
        it is where the step only uses the problem's own functions. By default it is not known:
        `Checked`, `diagnose` and `check_derivative` then test it.
    """

    accepts: eqx.AbstractClassVar[tuple[type[Problem], ...]]
    consistent: ClassVar[bool] = False

    @property
    def differentiable(self) -> bool:
        """Whether the derivative of the steps approximates that of the solution at all.

        Where it does not, the modes that differentiate steps refuse the algorithm.
        """
        return True

    @property
    def caveat(self) -> str:
        """What to know before differentiating the steps, or why not to; empty: nothing."""
        return ""

    @property
    def lag(self) -> int:
        """How many steps before the last one the iterate was made.

        1 where a step moves to the point that the step before has proposed: the derivative of
        the last step alone is zero, so that the last k steps are the k that made the iterate.
        """
        return 0

    @abc.abstractmethod
    def init(self, problem: Any, x0: PyTree, theta: PyTree) -> State:
        """Return the state whose iterate is `x0`."""

    @abc.abstractmethod
    def step(self, problem: Any, state: Any, theta: PyTree) -> State:
        """Return the state after one step."""


class StatelessAlgorithm(Algorithm):
    """Base of the algorithms whose state is the iterate alone."""

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> Iterate:
        """Return `x0` as state."""
        del problem, theta
        return Iterate(x0)


def check_fits(problem: Problem, algorithm: Algorithm) -> None:
    """Refuse an algorithm that cannot solve the problem.

    Raises
    ------
    TypeError
        If `problem` is no `Problem` or `algorithm` no `Algorithm`.
    ValueError
        If the algorithm does not accept problems of this class.
    """
    check_problem(problem)
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"`algorithm` must be an iterdiff.Algorithm instance, not {algorithm!r}; wrap another "
            "library's solver by iterdiff.adapters, or any solver at all by @iterdiff.implicit."
        )
    if not isinstance(problem, algorithm.accepts):
        names = ", ".join(kind.__name__ for kind in algorithm.accepts)
        raise ValueError(
            f"`algorithm`: {type(algorithm).__name__} cannot solve a {type(problem).__name__}; "
            f"it solves {names}."
        )


@contextlib.contextmanager
def traceable_step(algorithm: Algorithm) -> Iterator[None]:
    """Say what to do where JAX cannot trace a step; its error and the traceback stay.

    A problem's own functions have been traced before: what fails is the algorithm.
    """
    try:
        yield
    except UNTRACEABLE as error:
        error.add_note(
            f"The steps of {type(algorithm).__name__} must be traceable by JAX (jax.numpy in place "
            "of NumPy, jax.lax.cond in place of `if`); @iterdiff.implicit takes any solver at all."
        )
        raise
