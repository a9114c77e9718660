"""The contract of a mode: how a solve is run so that its derivative is the wanted one."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
from jaxtyping import Array, Int, PyTree

from iterdiff import loop as loops
from iterdiff import tree
from iterdiff.algorithms.base import Algorithm
from iterdiff.problems import Problem
from iterdiff.stopping import Look, StoppingRule


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

    def loop(self) -> loops.Loop:
        """Return the iteration as the loop takes it."""
        if not self.stop.checks:
            return loops.Loop(self.step, None, self.stop.max_steps)
        start = self.stop.init(self.problem, self.x0, self.theta)
        start = loops.stop_gradient(start)

        def satisfied(run):
            tangents = run.state.tangents() if isinstance(run.state, Followed) else None
            look = Look(self.problem, self.theta, run.state.x, run.steps, start, tangents)
            return self.stop.satisfied(look)

        return loops.Loop(self.step, satisfied, self.stop.max_steps)


class Followed(eqx.Module):
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


class Following(Algorithm):
    """An algorithm that carries the tangents of its iterates along."""

    inner: Algorithm
    follow: "Tangents"
    accepts: ClassVar[tuple[type[Problem], ...]] = (Problem,)

    def init(self, problem: Any, x0: PyTree, theta: PyTree) -> Any:
        """Return the state and its tangents."""
        state = self.inner.init(problem, x0, theta)
        return Followed(state, self.follow.init(state), self.follow)

    def step(self, problem: Any, state: Any, theta: PyTree) -> Any:
        """Return the state and its tangents after one step."""
        carry = self.follow.update(state.carry, state.inner)
        return Followed(self.inner.step(problem, state.inner, theta), carry, state.follow)


class Outcome(NamedTuple):
    """What a mode returns: `x` carries its derivative, the rest carries none."""

    x: PyTree
    steps: Int[Array, ""]
    status: Int[Array, ""]


class Mode(eqx.Module):
    """How the derivative of a solve is taken.

    A mode is given the whole task and returns an answer that JAX differentiates in the mode's
    way; and, for `trace`, it gives tangents of iterates one by one.
    """

    @abc.abstractmethod
    def check(self, stop: StoppingRule) -> None:
        """Refuse a stopping rule that the mode cannot work with.

        Raises
        ------
        ValueError
            Naming the argument and what to do.
        """

    @abc.abstractmethod
    def solve(self, task: Task, *, throw: bool) -> Outcome:
        """Run, and attach the mode's derivative to the answer.

        Parameters
        ----------
        task : Task
            What to solve.
        throw : bool
            Whether a linear solve that fails inside the derivative raises; else it gives NaN.
        """

    @abc.abstractmethod
    def answer(self, task: Task, x: PyTree, *, throw: bool) -> PyTree:
        """Return the answer `x` of a run of `task` again, with the mode's derivative attached.

        It is a function of everything in `task`; a mode whose derivative needs no run does not
        run again.
        """

    def primal(self, task: Task) -> loops.Run:
        """Run `task` without a derivative, until its rule is satisfied.

        Where the rule judges the derivative, the tangents that it asks for are followed.
        """
        algorithm, x0, theta = loops.stop_gradient((task.algorithm, task.x0, task.theta))
        task = task._replace(algorithm=algorithm, x0=x0, theta=theta)
        if task.stop.judges_derivative:
            follow = self.tangents(task, task.stop.directions(task.theta))
            task = task._replace(algorithm=Following(task.algorithm, follow))
        end = loops.run(task.loop(), task.state())
        state = end.state.inner if isinstance(end.state, Followed) else end.state
        return end._replace(state=state)

    @abc.abstractmethod
    def tangents(self, task: Task, directions: PyTree) -> "Tangents":
        """Return the mode's way of following tangents along an iteration.

        Parameters
        ----------
        task : Task
            The iteration; its stopping rule is not looked at.
        directions : pytree
            k directions in the space of theta's floating leaves, stacked along a first axis
            (None in place of leaves that are not differentiated in).
        """


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


def floating_part(a: PyTree) -> tuple[PyTree, PyTree]:
    """Split a pytree into its floating array leaves and the rest (None in their place)."""
    return eqx.partition(a, tree.is_floating)
