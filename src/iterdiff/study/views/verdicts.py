"""Verdicts on a study: what its dataset shows, as data that prints as sentences."""

import abc
import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from iterdiff.study.run import cases
from iterdiff.study.views.summary import (
    BEST_START_MAX_RELATIVE_GAP,
    PERCENT_MAX_FACTOR,
    SMALL_MAX_RELATIVE_ERROR,
    Convergence,
    best_start,
    decay,
    deviation,
    divergence,
    factor,
    jacobian_of,
)

if TYPE_CHECKING:
    import xarray

ROUNDING_MAX_RELATIVE_ERROR = 1e-9
"""Largest error, relative to the largest one, that counts as rounding in a comparison of modes."""

BOUND_MAX_RATIO = 1 + 1e-9
"""Largest ratio of measurement to bound with which the bound holds, up to rounding."""

BOUND_MIN_RELATIVE_SIZE = 1e-12
"""Size of a bound, relative to its largest value, below which rounding hides the measurement."""


class Verdict(abc.ABC):
    """A statement about one case. Its fields are the numbers, ``str`` gives the sentence."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Return the statement as a sentence."""


@dataclasses.dataclass(frozen=True)
class Diverged(Verdict):
    """The run left the finite numbers, or moved far away from the solution.

    Attributes
    ----------
    how : str
        The status of the run with the iteration, or how much the error grew.
    """

    how: str

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        return f"the run {self.how}."


@dataclasses.dataclass(frozen=True)
class JacobianConvergence(Verdict):
    """How the Jacobian of one mode converged.

    Attributes
    ----------
    mode : str
        Label of the mode.
    found : Convergence
        The numbers of its error; absolute Frobenius norms.
    steps : int
        Number of iterations of the run.
    """

    mode: str
    found: Convergence
    steps: int

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        return f"{self.mode} Jacobian: {self._burn_in()}; {self._accuracy()}."

    def _burn_in(self) -> str:
        found, start = self.found, "its start"
        if not found.has_burn_in:
            return "no burn-in"
        if found.start_iteration:
            start = f"its value at iteration {found.start_iteration} (it starts at 0)"
        end = f"until iteration {found.burn_in_end}"
        if found.burn_in_end is None:
            end = f"not over at iteration {self.steps}"
        above = " above" if found.growth < PERCENT_MAX_FACTOR else ""
        peak = f"{factor(found.growth)}{above} {start} at {found.peak_iteration}"
        return f"burn-in {end}, peak {peak}"

    def _accuracy(self) -> str:
        found = self.found
        kind = "relative error" if found.relative else "absolute error (the true Jacobian is 0)"
        if found.small_from is None:
            return f"{kind} {found.final / found.scale:.2g} after {self.steps} iterations"
        return f"{kind} below {SMALL_MAX_RELATIVE_ERROR:g} from iteration {found.small_from}"


@dataclasses.dataclass(frozen=True)
class ImplicitAgainstUnrolled(Verdict):
    """From which iteration on the implicit Jacobian is more accurate than the unrolled one.

    Attributes
    ----------
    first : int or None
        The iteration: 0 for every iteration, None if the implicit one is not more accurate at
        the end.
    both_exact : bool
        Whether both are exact to rounding at every iteration, so that there is nothing to compare.
    """

    first: int | None
    both_exact: bool = False

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        if self.both_exact:
            return (
                "the implicit and the unrolled Jacobian are exact to rounding at every iteration."
            )
        if self.first is None:
            return "the implicit Jacobian is not more accurate than the unrolled one at the end."
        if self.first == 0:
            return "the implicit Jacobian is more accurate at every iteration."
        return f"the implicit Jacobian is more accurate from iteration {self.first} on."


@dataclasses.dataclass(frozen=True)
class ClosedFormGap(Verdict):
    """The largest distance of the unrolled Jacobian error from its closed form.

    Attributes
    ----------
    absolute : float
        Difference of two absolute Frobenius norms.
    relative : float
        The same, relative to the largest error.
    """

    absolute: float
    relative: float

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        return (
            f"closed form and measurement differ by at most {self.absolute:.1e} "
            f"({self.relative:.1e} of the largest error)."
        )


@dataclasses.dataclass(frozen=True)
class PredictedPeak(Verdict):
    """The burn-in of the scalar quadratic by theory.

    Attributes
    ----------
    peak : float
        The iteration of the peak, -1/ln(1 - eta theta).
    inverse_rate : float
        1/(eta theta) in iterations, about `peak`.
    burn_in_end : int
        The first iteration with an error at most that of iteration 1 again.
    """

    peak: float
    inverse_rate: float
    burn_in_end: int

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        return (
            f"theory: linear times exponential, peak at -1/ln(1 - eta theta) = {self.peak:.1f}, "
            f"which is about 1/(eta theta) = {self.inverse_rate:.0f}; burn-in over at iteration "
            f"{self.burn_in_end}."
        )


@dataclasses.dataclass(frozen=True)
class BoundCheck(Verdict):
    """Whether a bound by theory holds for one mode.

    Attributes
    ----------
    mode : str
        Label of the mode.
    holds : bool
        Whether no measured error exceeds the bound, up to rounding.
    least, largest : float
        The extreme ratios of measurement to bound from iteration 1 on, dimensionless.
    """

    mode: str
    holds: bool
    least: float
    largest: float

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        return (
            f"theory, {self.mode}: the bound {'holds' if self.holds else 'DOES NOT hold'}; the "
            f"measured error is {self.least:.2g} to {self.largest:.3g} of it from iteration 1 on."
        )


@dataclasses.dataclass(frozen=True)
class LateStart(Verdict):
    """The best late start of the whole run, measured and predicted.

    Attributes
    ----------
    total : int
        Number of iterations of the run.
    best : int
        Number of leading steps to leave undifferentiated, measured.
    best_error, full_error : float
        Absolute Frobenius errors of the Jacobian with the best start, and with all steps.
    predicted : int or None
        The best start by theory; None if theory has no prediction within the run.
    predicted_error : float or None
        The error with the predicted start.
    rounding : float
        Absolute errors up to this size are rounding.
    """

    total: int
    best: int
    best_error: float
    full_error: float
    predicted: int | None = None
    predicted_error: float | None = None
    rounding: float = 0.0

    def __str__(self) -> str:
        """Return the statement as a sentence."""
        if self.full_error <= self.rounding:
            return f"late start, T = {self.total}: all steps are exact to rounding; skip none."
        measured = (
            f"late start, T = {self.total}: best after {self.best} steps, error "
            f"{self.best_error:.2g} against {self.full_error:.2g} for all steps"
        )
        if self.predicted is None:
            return f"{measured}."
        return f"{measured}; theory predicts {self.predicted}, error {self.predicted_error:.2g}."


@dataclasses.dataclass(frozen=True)
class CaseVerdicts:
    """The verdicts on one case; ``str`` gives one line each, below the label.

    Attributes
    ----------
    label : str
        The case.
    verdicts : tuple of Verdict
        What its data show.
    """

    label: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        """Return the label and the sentences, one per line."""
        return "\n".join([f"{self.label}:", *(f"  {verdict}" for verdict in self.verdicts)])


def verdicts(data: "xarray.Dataset") -> tuple[CaseVerdicts, ...]:
    """Return what a dataset shows, for each of its cases.

    Parameters
    ----------
    data : xarray.Dataset
        The dataset that `iterdiff.study.run.run` returns.
    """
    return tuple(CaseVerdicts(label, tuple(_judged(case))) for label, case in cases(data))


def _judged(case: "xarray.Dataset") -> list[Verdict]:
    found: list[Verdict] = []
    how = divergence(case)
    if how is not None:
        found.append(Diverged(how))
    for mode in map(str, case["mode"].values):
        found.append(JacobianConvergence(mode, jacobian_of(case, mode), int(case.steps)))
    if {"unrolled", "implicit"} <= set(case["mode"].values):
        found.append(_compared(case))
    gap = deviation(case)
    if gap is not None:
        found.append(ClosedFormGap(*gap))
    if "exponential_factor" in case and np.isfinite(case.exponential_factor.values).all():
        found.append(_predicted_peak(case))
    for mode in map(str, case["mode"].values if "bound" in case else ()):
        if np.isfinite(case.bound.sel(mode=mode)).all():
            check = _bound_check(case, mode)
            found += [] if check is None else [check]
    if "late_start_error" in case:
        found.append(_late_start(case))
    return found


def _compared(case: "xarray.Dataset") -> ImplicitAgainstUnrolled:
    unrolled = case.jacobian_error.sel(mode="unrolled").values
    implicit = case.jacobian_error.sel(mode="implicit").values
    largest = max(float(case.reference_norm), float(np.nanmax(np.minimum(unrolled, implicit))))
    matters = np.maximum(unrolled, implicit) > ROUNDING_MAX_RELATIVE_ERROR * largest
    if not matters.any():
        return ImplicitAgainstUnrolled(None, both_exact=True)
    worse = np.flatnonzero(matters & ~(implicit < unrolled))
    if not worse.size:
        return ImplicitAgainstUnrolled(0)
    later = np.flatnonzero(matters & (np.arange(len(matters)) > worse[-1]))
    return ImplicitAgainstUnrolled(int(case.iteration.values[later[0]]) if later.size else None)


def _predicted_peak(case: "xarray.Dataset") -> PredictedPeak:
    rho = decay(case)
    peak = -1 / math.log(rho)
    t = math.ceil(peak)
    while math.log(t) + (t - 1) * math.log(rho) > 0:  # t rho**(t - 1) is above 1
        t += 1
    return PredictedPeak(peak, 1 / (1 - rho), t)


def _bound_check(case: "xarray.Dataset", mode: str) -> BoundCheck | None:
    error, bound = (case[name].sel(mode=mode).values for name in ("jacobian_error", "bound"))
    meaningful = (bound > BOUND_MIN_RELATIVE_SIZE * bound.max()) & (case.iteration.values > 0)
    ratios = (error / bound)[meaningful]
    if not ratios.size:
        return None
    holds = bool((ratios <= BOUND_MAX_RATIO).all())
    return BoundCheck(mode, holds, float(ratios.min()), float(ratios.max()))


def _late_start(case: "xarray.Dataset") -> LateStart:
    total = int(case.total[-1])
    errors = case.late_start_error.sel(total=total)
    best = best_start(case, total)
    measured = LateStart(
        total,
        best,
        float(errors.sel(start=best)),
        full_error=float(errors.sel(start=0)),
        rounding=BEST_START_MAX_RELATIVE_GAP * float(case.reference_norm),
    )
    if not float(case.late_start_predicted) <= total:
        return measured
    predicted = round(float(case.late_start_predicted))
    return dataclasses.replace(
        measured, predicted=predicted, predicted_error=float(errors.sel(start=predicted))
    )
