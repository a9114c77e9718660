"""What is solved and by what, and the iteration that it makes."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.loop.run import Loop, stop_gradient
from iterdiff.loop.stopping import StopContext, StoppingRule
from iterdiff.problems.problem import Problem


class Task(NamedTuple):
    """What is to be solved and by what: one value instead of five arguments.

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

    def state(self) -> Any:
        """Return the algorithm's state at the start."""
        return self.algorithm.init(self.problem, self.x0, self.theta)

    def step(self, state: Any) -> Any:
        """Return the state one step later."""
        return self.algorithm.step(self.problem, state, self.theta)

    def loop(self) -> Loop:
        """Return the iteration as the loop takes it."""
        if not self.stop.checks:
            return Loop(self.step, None, self.stop.max_steps)
        start = self.stop.init(self.problem, self.x0, self.theta)
        start = stop_gradient(start)

        def satisfied(run):
            tangents = run.state.tangents() if isinstance(run.state, StateWithTangents) else None
            look = StopContext(self.problem, self.theta, run.state.x, run.steps, start, tangents)
            return self.stop.satisfied(look)

        return Loop(self.step, satisfied, self.stop.max_steps)


class StateWithTangents(eqx.Module):
    """A state and the tangents of its iterate, for rules that judge the derivative."""

    inner: Any
    carry: PyTree
    follow: "Tangents"

    @property
    def x(self) -> PyTree:
        """The iterate."""
        return self.inner.x

    def tangents(self) -> PyTree:
        """Return the mode's tangents of the iterate."""
        return self.follow.value(self.carry, self.inner)


class WithTangents(Algorithm):
    """An algorithm that carries the tangents of its iterates along."""

    inner: Algorithm
    follow: "Tangents"
    accepts: ClassVar[tuple[type[Problem], ...]] = (Problem,)
    consistent: ClassVar[bool] = True

    def init(self, problem: Any, x0: PyTree, theta: PyTree) -> Any:
        """Return the state and its tangents."""
        state = self.inner.init(problem, x0, theta)
        return StateWithTangents(state, self.follow.init(state), self.follow)

    def step(self, problem: Any, state: Any, theta: PyTree) -> Any:
        """Return the state and its tangents after one step."""
        carry = self.follow.update(state.carry, state.inner)
        return StateWithTangents(self.inner.step(problem, state.inner, theta), carry, state.follow)


class Tangents(eqx.Module):
    """Tangents of the iterates in k directions, one step after the other."""

    @abc.abstractmethod
    def init(self, state: Any) -> PyTree:
        """Return what is carried, at the algorithm's initial state."""

    @abc.abstractmethod
    def update(self, carry: PyTree, state: Any) -> PyTree:
        """Return what is carried after the step that leaves `state`."""

    @abc.abstractmethod
    def value(self, carry: PyTree, state: Any) -> PyTree:
        """Return the mode's tangents of ``state.x``, stacked along a first axis."""
