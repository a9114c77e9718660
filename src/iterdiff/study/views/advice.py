"""Advice from a study's dataset: which mode to use, when to stop, how large the error is."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from iterdiff.study.views.summary import divergence, jacobian_of, reached
from iterdiff.study.views.verdicts import ROUNDING_MAX_RELATIVE_ERROR, Verdict

if TYPE_CHECKING:
    import xarray

TOLERANCE = 1e-3
"""The relative error of a derivative that is small enough for most outer optimisations."""

ROUNDED_MAX_RELATIVE_ERROR = 1e-13
"""An error up to this is rounding, also if it still changes: some hundred units of precision."""

TREND_MIN_RECORDS = 16
"""Smallest number of the last records in which a fall is looked for; the last quarter if longer.

Rounding errors do not fall by chance in that many.
"""


@dataclasses.dataclass(frozen=True)
class UseMode(Verdict):
    """The mode with the smallest error at the end.

    Attributes
    ----------
    mode : str
        Its label.
    steps : int
        Number of iterations of the run.
    errors : tuple of (str, float)
        The error of every mode at the end, the smallest one first.
    relative : bool
        Whether the errors are relative to the norm of the true Jacobian, or absolute.
    rounding : bool
        Whether all of them are at the level of rounding.
    falling : tuple of str
        The labels of the modes whose error still falls, if all are small but not at rounding.
    """

    mode: str
    steps: int
    errors: tuple[tuple[str, float], ...]
    relative: bool
    rounding: bool
    falling: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        kind = "relative" if self.relative else "absolute"
        numbers = ", ".join(f"{mode} {error:.2g}" for mode, error in self.errors)
        if self.relative and self.errors[0][1] > 1:
            return (
                f"after {self.steps} iterations every derivative is wrong by more than the size of "
                f"the true one ({numbers}); zero would be closer."
            )
        if self.rounding:
            return f"after {self.steps} iterations every mode is right to rounding ({numbers})."
        if self.falling:
            names = " and ".join(self.falling)
            falls = "falls" if len(self.falling) == 1 else "fall"
            return (
                f"{kind} error of the derivative after {self.steps} iterations: {numbers}; {names} "
                f"still {falls}."
            )
        if len(self.errors) == 1:
            return f"{kind} error of the derivative after {self.steps} iterations: {numbers}."
        return (
            f"use {self.mode}: it has the smallest {kind} error after {self.steps} iterations "
            f"({numbers})."
        )


@dataclasses.dataclass(frozen=True)
class WhenToStop(Verdict):
    """From which iteration on the best mode is accurate.

    Attributes
    ----------
    mode : str
        Its label.
    first : int or None
        The iteration; None if the run is too short.
    steps : int
        Number of iterations of the run.
    relative : bool
        Whether the tolerance is relative.
    """

    mode: str
    first: int | None
    steps: int
    relative: bool

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        kind = "relative" if self.relative else "absolute"
        if self.first is None:
            return (
                f"when to stop: later; after {self.steps} iterations no derivative is within "
                f"{TOLERANCE:g} ({kind})."
            )
        return (
            f"when to stop: at iteration {self.first}; from there on the {self.mode} derivative "
            f"stays within {TOLERANCE:g} ({kind})."
        )


@dataclasses.dataclass(frozen=True)
class ErrorBar(Verdict):
    """The error at the end, estimated without knowing the solution, beside the true one.

    Attributes
    ----------
    mode : str
        The mode's label.
    estimated, true : float
        The two, absolute Frobenius norms.
    trusted : bool
        Whether the estimate is meant to be within a factor of two of the truth.
    """

    mode: str
    estimated: float
    true: float
    trusted: bool

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        if not self.trusted:
            return (
                f"error bar, {self.mode}: no trusted estimate at the end (the true error is "
                f"{self.true:.2g}); the iterate is too far from the solution, or exact to rounding."
            )
        return (
            f"error bar, {self.mode}: estimated {self.estimated:.2g} without knowing the solution; "
            f"the true error is {self.true:.2g}."
        )


def sentence(verdict: Verdict) -> str:
    """Return a verdict with a capital letter, as a line of its own."""
    text = str(verdict)
    return text[:1].upper() + text[1:]


def advice(case: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Return which mode to use, when to stop, and the error bars; nothing for a run that diverges.

    Parameters
    ----------
    case : xarray.Dataset
        A case as `iterdiff.study.run.cases` yields it.
    """
    if divergence(case) is not None:
        return ()
    modes = [str(mode) for mode in case["mode"].values]
    numbers = {mode: jacobian_of(case, mode) for mode in modes}
    errors = {mode: found.final / found.scale for mode, found in numbers.items()}
    order = sorted(modes, key=lambda mode: errors[mode])
    best, steps = order[0], int(case.steps)
    relative = numbers[best].relative
    small = max(errors.values()) <= ROUNDING_MAX_RELATIVE_ERROR
    falling = tuple(mode for mode in order if small and _falls(case, mode))
    ranked = tuple((mode, errors[mode]) for mode in order)
    found: list[Verdict] = [
        UseMode(best, steps, ranked, relative, small and not falling, falling),
    ]
    firsts = [(reached(case, mode, TOLERANCE), mode) for mode in modes]
    soonest = min((pair for pair in firsts if pair[0] is not None), default=(None, best))
    found.append(WhenToStop(soonest[1], soonest[0], steps, relative))
    if "jacobian_error_estimate" in case and np.isfinite(case.jacobian_error_estimate).any():
        for mode in modes:
            found.append(_error_bar(case.sel(mode=mode).isel(iteration=-1), mode))
    return tuple(found)


def _falls(case: "xarray.Dataset", mode: str) -> bool:
    """Return whether a mode's Jacobian error is above rounding and falls in the last records.

    It falls if their second half is below their first one, or its largest error half as large.
    """
    norm = float(case.reference_norm)
    errors = case.jacobian_error.sel(mode=mode).values / (norm if norm > 0 else 1.0)
    last = errors[-max(TREND_MIN_RECORDS, len(errors) // 4) :]
    before, after = last[: len(last) // 2], last[len(last) // 2 :]
    if not before.size or after[-1] <= ROUNDED_MAX_RELATIVE_ERROR:
        return False
    return bool(after.max() < before.min() or after.max() < before.max() / 2)


def _error_bar(end: "xarray.Dataset", mode: str) -> ErrorBar:
    estimated, true = float(end.jacobian_error_estimate), float(end.jacobian_error)
    return ErrorBar(mode, estimated, true, bool(end.estimate_trusted))
