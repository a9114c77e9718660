"""The contract of a mode: how a solve is run so that its derivative is the wanted one."""

import abc
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Int, PyTree

from iterdiff.loop.run import Run, run_loop, stop_gradient
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import StateWithTangents, Tangents, Task, WithTangents


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

    def primal(self, task: Task) -> Run:
        """Run `task` without a derivative, until its rule is satisfied.

        Where the rule judges the derivative, the tangents that it asks for are followed.
        """
        algorithm, x0, theta = stop_gradient((task.algorithm, task.x0, task.theta))
        task = task._replace(algorithm=algorithm, x0=x0, theta=theta)
        if task.stop.judges_derivative:
            method = self.tangents(task, task.stop.directions(task.theta))
            task = task._replace(algorithm=WithTangents(task.algorithm, method))
        end = run_loop(task.loop(), task.state())
        state = end.state.inner if isinstance(end.state, StateWithTangents) else end.state
        return end._replace(state=state)

    @abc.abstractmethod
    def tangents(self, task: Task, directions: PyTree) -> Tangents:
        """Return the mode's way of following tangents along an iteration.

        Parameters
        ----------
        task : Task
            The iteration; its stopping rule is not looked at.
        directions : pytree
            k directions in the space of theta's floating leaves, stacked along a first axis
            (None in place of leaves that are not differentiated in).
        """
