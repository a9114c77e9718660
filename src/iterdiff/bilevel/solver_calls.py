"""A solver with ``@iterdiff.implicit`` as the inner algorithm: one call, whatever the steps."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.problems.active_set import completed
from iterdiff.problems.problem import Problem


class Called(State):
    """The iterate, and whether the solver has been called since the run began."""

    x: PyTree
    done: Bool[Array, ""]


class SolverCalls(Algorithm):
    """An algorithm whose first step calls the solver; the others leave its answer as it is.

    Parameters
    ----------
    solver : callable
        ``solver(x0, theta)``, decorated by `iterdiff.implicit`. It starts at the last solution.
    """

    solver: Callable[[PyTree, PyTree], PyTree] = eqx.field(static=True)
    accepts: ClassVar[tuple[type[Problem], ...]] = (Problem,)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> Called:
        """Return the start, without a call."""
        del problem, theta
        return Called(x0, jnp.array(False))

    def step(self, problem: Problem, state: Called, theta: PyTree) -> Called:
        """Return the solver's answer."""

        def call(x: Any) -> PyTree:
            answer = jax.lax.stop_gradient(self.solver(problem.answer(x), theta))
            return completed(problem, answer, theta)

        return Called(jax.lax.cond(state.done, lambda x: x, call, state.x), jnp.array(True))
