"""The contract of an algorithm: a state and one traceable step."""

import abc
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Int, PyTree

from iterdiff.linalg.handed import HandedFactors
from iterdiff.problems.checks import check_problem
from iterdiff.problems.problem import Problem

UNTRACEABLE = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""Errors that JAX raises if a function needs the value of a traced array."""


class State(eqx.Module):
    """What an algorithm carries from step to step.

    Subclass it to carry more than the iterate.

    Attributes
    ----------
    x : pytree of real floating arrays
        The iterate.
    """

    x: eqx.AbstractVar[PyTree]

    @property
    def verdict(self) -> Int[Array, ""] | None:
        """How the run has to end: a `Status` code, -1 to go on, or None if that is never known.

        An algorithm that finds out that its problem has no solution ends the run by it.
        """
        return None


class Iterate(State):
    """The state of an algorithm that carries only the iterate."""

    x: PyTree


class Algorithm(eqx.Module):
    """How a problem is solved: ``init`` makes a state, ``step`` improves it.

    Subclass it to add an algorithm. JAX must be able to trace both methods. A step keeps the
    structure, shapes and dtypes of the state. Its value *and its derivative* must be finite at an
    exact solution, because an iteration may continue after it has converged (under ``vmap``, for
    example). Store hyper-parameters such as step sizes as array leaves, so that users can
    differentiate with respect to them and `vmap` over them.

    Attributes
    ----------
    accepts : tuple of type
        Classes of problem that the algorithm solves. `solve` raises ValueError for any other.
    consistent : bool
        Whether every fixed point of the step is known to be a root of the problem's residual.
        This holds if the step uses only the problem's own functions. The default is False:
        `Checked`, `diagnose` and `check_derivative` then test it numerically.
    """

    accepts: eqx.AbstractClassVar[tuple[type[Problem], ...]]
    consistent: ClassVar[bool] = False

    @property
    def differentiable(self) -> bool:
        """Whether the derivative of the steps approximates the derivative of the solution.

        If False, the modes that differentiate steps raise ValueError.
        """
        return True

    @property
    def caveat(self) -> str:
        """What users should know before they differentiate the steps; empty if nothing.

        A clause that follows a colon in messages. `Unrolled` warns with it, or raises with it if
        the algorithm is not `differentiable`.
        """
        return ""

    @property
    def last_steps_suffice(self) -> bool:
        """Whether the last k steps, from a constant state, have the derivative if k is large.

        False if steps at the solution do not see theta, and keep the derivative of the state that
        they start from: ``Unrolled(last=k)`` and `OneStep` then raise ValueError.
        """
        return True

    @property
    def lag(self) -> int:
        """Number of steps by which the iterate lags behind the computation that determined it.

        1 if a step only moves to the point that the previous step proposed. The derivative of the
        last step is then zero, and ``Unrolled(last=k)`` goes back one step further.
        """
        return 0

    def inverse_jacobian(self, state: Any) -> Callable[[PyTree], PyTree] | None:
        """Return what the algorithm holds for the inverse of the residual's Jacobian, if anything.

        A linear function ``v -> M v`` of vectors like the iterate, which JAX can transpose. It
        preconditions solves with the Jacobian at the iterate; its error costs time only.
        """
        del state

    def keeping_factors(self) -> "Algorithm":
        """Return the algorithm such that its states hold the factors that its steps make, if any.

        Not by default: states that carry a matrix are copied at every step.
        """
        return self

    def last_factors(self, state: Any) -> HandedFactors | None:
        """Return the factors of the residual's Jacobian at an earlier iterate, if a state has them.

        A derivative at the iterate uses them, if they are near enough, and makes none of its own.
        """
        del state

    @abc.abstractmethod
    def init(self, problem: Any, x0: PyTree, theta: PyTree) -> State:
        """Return the initial state, whose iterate is `x0`."""

    @abc.abstractmethod
    def step(self, problem: Any, state: Any, theta: PyTree) -> State:
        """Return the state after one step."""


class StatelessAlgorithm(Algorithm):
    """Base class of algorithms that carry only the iterate from step to step.

    The next iterate depends on the current one and on nothing else. Subclasses define ``step``.
    """

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> Iterate:
        """Return the initial state, which is `x0`."""
        del problem, theta
        return Iterate(x0)


def check_fits(problem: Problem, algorithm: Algorithm) -> None:
    """Raise unless `algorithm` can solve `problem`.

    Raises
    ------
    TypeError
        If `problem` is not a `Problem` or `algorithm` not an `Algorithm`.
    ValueError
        If the algorithm does not accept problems of this class.
    """
    check_problem(problem)
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"`algorithm` must be an iterdiff.Algorithm instance, not {algorithm!r}. Wrap a solver "
            "of another library with iterdiff.adapters, or any solver with @iterdiff.implicit."
        )
    if not isinstance(problem, algorithm.accepts):
        names = ", ".join(kind.__name__ for kind in algorithm.accepts)
        raise ValueError(
            f"`algorithm`: {type(algorithm).__name__} cannot solve a {type(problem).__name__}; "
            f"it accepts {names}."
        )


@contextlib.contextmanager
def traceable_step(algorithm: Any) -> Iterator[None]:
    """Add advice to the error that JAX raises if it cannot trace a step.

    Call `check_residual` first: it traces the problem's own functions, so that an error in this
    context comes from the algorithm. The error and its traceback stay as they are.
    """
    try:
        yield
    except UNTRACEABLE as error:
        error.add_note(
            f"JAX must be able to trace the steps of {type(algorithm).__name__}: use jax.numpy "
            "instead of NumPy and jax.lax.cond instead of `if`. For a solver that JAX cannot "
            "trace, use @iterdiff.implicit."
        )
        raise
