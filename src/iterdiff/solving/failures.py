"""Failures of derivatives outside ``jit`` are the same exception as failures of runs."""

from collections.abc import Callable
from typing import TypeVar

from jaxtyping import PyTree

from iterdiff.jaxtools.raise_if import LATER, Throw, surfaced
from iterdiff.jaxtools.transformations import compiling, transforming
from iterdiff.problems.problem import Problem

T = TypeVar("T", bound=PyTree)
R = TypeVar("R", bound=PyTree)


def with_failures(run: Callable[[T, Throw], R], inputs: T, problem: Problem, throw: bool) -> R:
    """Return ``run(inputs, throw)``; outside ``jit``, its failing derivatives raise `SolveError`.

    There, JAX differentiates and batches compiled programs from Python, where it would turn an
    exception of a program's callback into an error of its own.

    Parameters
    ----------
    run : callable
        ``run(inputs, throw)`` returns arrays. `throw` says when a failure raises.
    inputs : pytree
        Everything that the result depends on, as far as it is differentiated or batched.
    problem : Problem
        If its functions close over a traced value, derivatives in that value do not pass through
        `inputs`, and failures raise at once.
    throw : bool
        Whether failures raise.
    """
    hidden = problem.snapshot is not None and problem.snapshot.traced
    if not throw or hidden or not transforming() or compiling():
        return run(inputs, throw)
    return surfaced(run(surfaced(inputs), LATER))
