"""The contract of a mode: how a solve runs so that it has the wanted derivative."""

import abc
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Int, PyTree

from iterdiff.jaxtools.raise_if import Throw
from iterdiff.loop.run import Run, run_loop, stop_gradient
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import StateWithTangents, Tangents, Task, WithTangents


class Outcome(NamedTuple):
    """What a mode returns: `x` carries its derivative, the other fields carry none."""

    x: PyTree
    steps: Int[Array, ""]
    status: Int[Array, ""]


class Mode(eqx.Module):
    """How the derivative of a solve is taken.

    A mode receives the whole task and returns an answer that JAX differentiates in the mode's way.
    For `trace`, it also provides tangents of the iterates, step by step.
    """

    @property
    def corrects_answer(self) -> bool:
        """Whether the mode returns another answer than the run found."""
        return False

    @abc.abstractmethod
    def check(self, stop: StoppingRule) -> None:
        """Raise if the mode cannot work with a stopping rule.

        Raises
        ------
        ValueError
            Naming the argument and what to do.
        """

    @abc.abstractmethod
    def solve(self, task: Task, *, throw: Throw) -> Outcome:
        """Run the task, and attach the mode's derivative to the answer.

        Parameters
        ----------
        task : Task
            What to solve.
        throw : bool or LATER
            Whether a linear solve that fails inside the derivative raises; otherwise the
            derivative is NaN. Pass it on as it is (see `iterdiff.jaxtools.raise_if`).
        """

    @abc.abstractmethod
    def answer(self, task: Task, x: PyTree, *, throw: Throw) -> PyTree:
        """Return the known answer `x` of `task`, with the mode's derivative attached.

        The derivative is taken in everything that `task` holds. A mode whose derivative needs no
        run does not run again.
        """

    @abc.abstractmethod
    def tangents(self, task: Task, directions: PyTree) -> Tangents:
        """Return how the mode obtains tangents along an iteration.

        Parameters
        ----------
        task : Task
            The iteration; its stopping rule is ignored.
        directions : pytree
            k directions in the space of theta's floating leaves, stacked along a first axis (None
            for leaves that are not differentiated in).
        """

    def primal(self, task: Task) -> Run:
        """Run `task` without a derivative, until its stopping rule is satisfied.

        If the rule judges the derivative, the run carries the tangents that the rule needs.
        """
        algorithm, x0, theta = stop_gradient((task.algorithm, task.x0, task.theta))
        task = task._replace(algorithm=algorithm, x0=x0, theta=theta)
        if task.stop.judges_derivative:
            method = self.tangents(task, task.stop.directions(task.theta))
            task = task._replace(algorithm=WithTangents(task.algorithm, method))
        end = run_loop(task.loop(), task.state())
        state = end.state.inner if isinstance(end.state, StateWithTangents) else end.state
        return end._replace(state=state)
