"""Which mode to use, and why, in words."""

from collections.abc import Mapping
from typing import NamedTuple

from iterdiff.diagnostics.diagnosis import ModeDiagnosis

MAX_EQUAL_TIME_RATIO = 1.25
"""Times within this factor of the shortest count as equal."""

MAX_CONVERGED_DISTANCE = 0.1
"""An iterate farther from the solution than this fraction of its norm has not converged."""

CONSTRUCTORS = {"unrolled": "Unrolled()", "one-step": "OneStep()", "implicit": "Implicit()"}
"""The modes that a diagnosis compares, and how to construct them."""


class Structure(NamedTuple):
    """What probing found of ``d residual / dx``, and what the problem declares.

    Attributes
    ----------
    symmetric, positive_definite : bool
        As found.
    declared_symmetric : bool
        As declared.
    minimization : bool
        Whether the problem is a `Minimization`, so that the matrix is a Hessian.
    """

    symmetric: bool
    positive_definite: bool
    declared_symmetric: bool
    minimization: bool


def recommend(modes: Mapping[str, ModeDiagnosis]) -> str | None:
    """Return the label of the mode that reaches the tolerance in the least time; None if none does.

    Of modes with about equal times, the one with the fewest steps, then the least memory, is
    chosen. Both are counted, not timed, so that the recommendation is the same in every run.
    """
    reachable = {label: m for label, m in modes.items() if m.steps_to_rtol is not None}
    if not reachable:
        return None
    limit = MAX_EQUAL_TIME_RATIO * min(m.seconds for m in reachable.values())
    fast = [label for label, m in reachable.items() if m.seconds <= limit]
    return min(fast, key=lambda k: (reachable[k].steps_to_rtol, reachable[k].temporary_bytes))


def explain(
    recommended: str | None,
    modes: Mapping[str, ModeDiagnosis],
    rtol: float,
    rate: float,
    distance: float,
    structure: Structure,
) -> str:
    """Return the recommendation with its reason, and warnings, in full sentences.

    Parameters
    ----------
    recommended : str or None
        From `recommend`.
    modes : mapping of str to ModeDiagnosis
        What was measured of each mode.
    rtol : float
        The relative error of the derivative that is wanted.
    rate : float
        The contraction rate per step.
    distance : float
        Distance from the last iterate to the solution, relative to its norm.
    structure : Structure
        Of the linear system.
    """
    if recommended is None:
        return (
            f"No mode reaches a derivative error of {rtol:g}: the iteration does not converge "
            "at this point. Make the step smaller, or use another algorithm."
        )
    text = (
        f"Use {CONSTRUCTORS[recommended]}: its derivative error is below {rtol:g} "
        f"{_cost(modes[recommended])}"
    )
    others = [f"{label} {_cost(mode)}" for label, mode in modes.items() if label != recommended]
    text += f" ({'; '.join(others)})." if others else "."
    if structure.minimization and structure.symmetric and not structure.positive_definite:
        text += " Warning: the solution is a saddle point, not a minimizer."
    if structure.declared_symmetric and not structure.symmetric:
        text += (
            " Warning: the problem declares d residual / dx symmetric, but probing found that it "
            "is not."
        )
    if not distance < MAX_CONVERGED_DISTANCE:
        text += (
            f" Warning: the iteration has not converged (contraction rate {rate:.4g} per step), so "
            "the answer itself is wrong, whatever its derivative."
        )
    return text


def _cost(mode: ModeDiagnosis) -> str:
    if mode.steps_to_rtol is None:
        return "never"
    when = "after about" if mode.extrapolated else "within"
    by = " in forward mode, the only one that can differentiate these steps"
    return (
        f"{when} {mode.steps_to_rtol} steps, {1e3 * mode.seconds:.2g} ms per gradient"
        f"{by if mode.forward_only else ''}"
    )
