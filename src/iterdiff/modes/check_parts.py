"""What the mode `Checked` evaluates, as functions whose every input is explicit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree

from iterdiff.accuracy.kinks import at_marked_kink
from iterdiff.jaxtools.closures import hoist, merge
from iterdiff.modes.adjoint_state import solution_of
from iterdiff.problems.problem import Problem

Part = Callable[[PyTree, Any], PyTree]
"""``part(y, inputs)``, a function of a point and of everything that is differentiated in."""


class Parts(NamedTuple):
    """What a check evaluates.

    Attributes
    ----------
    answer : callable
        ``answer(y, inputs)`` is the answer, with the mode's derivative; `y` is ignored.
    residual : callable
        ``residual(y, inputs)``.
    step : callable, optional
        ``step(y, inputs)`` is the next iterate, if the algorithm may solve another problem.
    leaving : callable, optional
        The same, if the algorithm may leave a root.
    at_marked_kink : callable, optional
        ``at_marked_kink(y, inputs)`` is whether `y` is at a kink, if the problem marks its kinks.
    """

    answer: Part
    residual: Part
    step: Part | None = None
    leaving: Part | None = None
    at_marked_kink: Part | None = None

    def map(self, change: Callable[[Part], Part]) -> "Parts":
        """Return the parts after a change to each."""
        return Parts(*(None if part is None else change(part) for part in self))  # pyright: ignore

    def explicit(self, given: Any, x: PyTree) -> tuple["Parts", Any]:
        """Return the parts as functions of arrays: those of `given` and those they close over."""
        arrays, static = eqx.partition(given, eqx.is_array)
        functions = list(dict.fromkeys(part for part in self if part is not None))
        hoisted = [
            hoist(lambda y, arrays, part=part: part(y, eqx.combine(arrays, static)), x, arrays)
            for part in functions
        ]
        closed_over, rebuild = merge(*(own for _, own in hoisted))
        converted = {
            part: lambda y, inputs, f=f, own=own: f(own(inputs[1]), y, inputs[0])
            for part, (f, _), own in zip(functions, hoisted, rebuild, strict=True)
        }
        return self.map(lambda part: converted[part]), (arrays, closed_over)


JUDGED, HANDED_ON = -1, -2
"""A part of the gradient that a check judges; one that only hands something to the next solve."""


def roles_of(leaves: list, guess: Any) -> list[int]:
    """Return what the cotangent of each input of a derivative is.

    That of a first guess is no part of the gradient: it is the adjoint itself, and its role is the
    number of the adjoint's leaf. All other roles are negative.
    """
    solution, held = jax.tree.leaves(solution_of(guess)), jax.tree.leaves(guess)

    def role(leaf: Any) -> int:
        found = [number for number, own in enumerate(solution) if own is leaf]
        other = HANDED_ON if any(own is leaf for own in held) else JUDGED
        return found[0] if found else other

    return [role(leaf) for leaf in leaves]


def parts_of(
    problem: Problem, answer: Part, step: Part | None = None, leaving: Part | None = None
) -> Parts:
    """Return the parts of a check, as functions of a `Task` or a `_ForeignAnswer`."""

    def kinked(y, given):
        return at_marked_kink(given.problem, y, given.theta)

    has_marks = problem.marks_kinks
    return Parts(
        answer,
        lambda y, given: given.problem.residual(y, given.theta),
        step,
        leaving,
        kinked if has_marks else None,
    )
