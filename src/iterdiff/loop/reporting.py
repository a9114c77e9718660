"""A stopping rule that prints how a long run goes."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import largest_in_batch
from iterdiff.loop.stopping import StopContext, StoppingRule
from iterdiff.problems.problem import Problem

DEFAULT_INTERVAL_STEPS = 100
"""Steps from one line to the next where the user does not say."""


class Reporting(StoppingRule):
    """Decide as another rule does, and print a line now and then.

    A line has the step, the residual's norm, and the estimated factor by which a step changes that
    norm. A batch prints one line, with the largest norm. A rule that is a fixed number of steps
    becomes one that is satisfied at its end.

    Attributes
    ----------
    rule : StoppingRule
        The other rule.
    every : int
        Steps from one line to the next.
    """

    rule: StoppingRule
    every: int = eqx.field(static=True)
    checks: ClassVar[bool] = True

    @property
    def max_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the other rule."""
        return self.rule.max_steps

    @property
    def judges_derivative(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the other rule judges the derivative."""
        return self.rule.judges_derivative

    def directions(self, theta: PyTree) -> PyTree:
        """Return the directions of the other rule."""
        return self.rule.directions(theta)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> PyTree:
        """Return what the other rule returns."""
        return self.rule.init(problem, x0, theta)

    def satisfied(self, context: StopContext) -> Bool[Array, ""]:
        """Return whether the other rule is satisfied; print if a line is due."""
        norm = tree.norm(context.problem.residual(context.x, context.theta))
        steps, norm = largest_in_batch(context.steps), largest_in_batch(norm)
        due = steps % self.every == 0
        line = _Line()
        jax.lax.cond(due, lambda: jax.debug.callback(line.show, steps, norm), lambda: None)
        if self.rule.checks:
            return self.rule.satisfied(context)
        return context.steps >= self.max_steps


class _Line:
    """Prints the lines of one program, and remembers the last."""

    def __init__(self):
        self.last = (0, -1.0)

    def show(self, steps: Any, norm: Any) -> None:
        """Print a line, unless another device has printed it."""
        # Convert to NumPy first: a jax.Array's methods would dispatch to the device, which is
        # blocked waiting for this callback.
        step, norm = int(np.asarray(steps)), float(np.asarray(norm))
        before, of_before = self.last
        if (step, norm) == self.last:
            return
        self.last = step, norm
        text = f"step {step:,}: residual {norm:.2e}"
        if step > before and norm > 0 and of_before > 0:
            text += f", estimated factor per step {(norm / of_before) ** (1 / (step - before)):.4f}"
        print(text, flush=True)


def as_interval(verbose: Any) -> int:
    """Return the steps from one line to the next; 0 for none.

    Raises
    ------
    TypeError
        If it is neither a bool nor an int.
    ValueError
        If it is negative.
    """
    if isinstance(verbose, bool):
        return DEFAULT_INTERVAL_STEPS if verbose else 0
    if not isinstance(verbose, int):
        raise TypeError(
            f"`verbose` must be a bool, or the number of steps between two lines, not {verbose!r}."
        )
    if verbose < 0:
        raise ValueError(f"`verbose` must not be negative, but it is {verbose}; pass 0 for none.")
    return verbose


def reporting(rule: StoppingRule, verbose: Any) -> StoppingRule:
    """Return a rule that reports as `verbose` says; `rule` itself if it says nothing."""
    every = as_interval(verbose)
    return Reporting(rule=rule, every=every) if every else rule  # pyright: ignore[reportCallIssue]
