"""A task: what is solved and by what, the iteration it makes, and the tangents along it."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools import manual_axes
from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.snapshot import snapshot, traced
from iterdiff.loop.run import Loop, stop_gradient
from iterdiff.loop.stopping import StopContext, StoppingRule
from iterdiff.problems.inputs import with_snapshot
from iterdiff.problems.problem import Problem


class Task(NamedTuple):
    """What is solved and by what: one value instead of five arguments.

    Attributes
    ----------
    problem : Problem
    algorithm : Algorithm
    x0 : pytree of real floating arrays
    theta : pytree
    stop : StoppingRule
    """

    problem: Problem
    algorithm: Algorithm
    x0: PyTree
    theta: PyTree
    stop: StoppingRule

    def with_snapshot(self) -> "Task":
        """Return the task with a snapshot in the problem that covers the algorithm's step, too.

        The problem's own snapshot covers a step that uses only the problem's functions.
        """
        taken = self.problem.snapshot
        if self.algorithm.consistent or taken is None:
            return self
        arrays, static = eqx.partition((self.problem, self.algorithm), eqx.is_array)

        def step(x0, theta, arrays):
            problem, algorithm = eqx.combine(arrays, static)
            return algorithm.step(problem, algorithm.init(problem, x0, theta), theta)

        taken |= snapshot(traced(step, self.x0, self.theta, arrays)[0])
        return self._replace(problem=with_snapshot(self.problem, taken))

    def state(self) -> Any:
        """Return the algorithm's state at the start."""
        return self.algorithm.init(self.problem, self.x0, self.theta)

    def step(self, state: Any) -> Any:
        """Return the state after one step."""
        return self.algorithm.step(self.problem, state, self.theta)

    def aligned(self) -> "Task":
        """Return the task with inputs that vary over the same mesh axes, see `manual_axes`."""
        if not manual_axes.inside():
            return self
        closed_over = hoist(self.problem.residual, self.x0, self.theta)[1]
        return manual_axes.aligned(self, closed_over)

    def loop(self) -> Loop:
        """Return the step, the stopping rule and the limit as one `Loop`."""
        if not self.stop.checks:
            return Loop(self.step, None, self.stop.max_steps)
        start = stop_gradient(self.stop.init(self.problem, self.x0, self.theta))

        def satisfied(run):
            state = run.state
            tangents = state.tangents() if isinstance(state, StateWithTangents) else None
            context = StopContext(self.problem, self.theta, state.x, run.steps, start, tangents)
            return self.stop.satisfied(context)

        return Loop(self.step, satisfied, self.stop.max_steps)


class Tangents(eqx.Module):
    """How a mode obtains the tangents of the iterates, in k directions, step by step."""

    @abc.abstractmethod
    def init(self, state: Any) -> PyTree:
        """Return what is carried along, at the algorithm's initial state."""

    @abc.abstractmethod
    def update(self, carry: PyTree, state: Any) -> PyTree:
        """Return what is carried along after the step that leaves `state`."""

    @abc.abstractmethod
    def value(self, carry: PyTree, state: Any) -> PyTree:
        """Return the mode's tangents of ``state.x``, stacked along a first axis."""


class StateWithTangents(eqx.Module):
    """A state and the tangents of its iterate, for stopping rules that judge the derivative."""

    inner: Any
    carry: PyTree
    method: Tangents

    @property
    def x(self) -> PyTree:
        """The iterate."""
        return self.inner.x

    @property
    def verdict(self) -> Any:
        """What the algorithm says of the run, see `State.verdict`."""
        return getattr(self.inner, "verdict", None)

    def tangents(self) -> PyTree:
        """Return the mode's tangents of the iterate."""
        return self.method.value(self.carry, self.inner)


class WithTangents(Algorithm):
    """An algorithm that carries the tangents of its iterates along."""

    inner: Algorithm
    method: Tangents
    accepts: ClassVar[tuple[type[Problem], ...]] = (Problem,)

    def init(self, problem: Any, x0: PyTree, theta: PyTree) -> StateWithTangents:
        """Return the initial state and its tangents."""
        state = self.inner.init(problem, x0, theta)
        return StateWithTangents(state, self.method.init(state), self.method)

    def step(self, problem: Any, state: Any, theta: PyTree) -> StateWithTangents:
        """Return the state and its tangents after one step."""
        carry = self.method.update(state.carry, state.inner)
        return StateWithTangents(self.inner.step(problem, state.inner, theta), carry, state.method)
