"""The result of `diagnose`, and how it is printed."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping

LINE_WIDTH = 79
"""Characters to which the advice is wrapped."""


@dataclasses.dataclass(frozen=True)
class ModeDiagnosis:
    """What `diagnose` measured of one mode.

    Attributes
    ----------
    error : float
        Error of its derivative against the solution derivative, after the trial run. Relative,
        unless the true derivative is zero.
    steps_to_rtol : int or None
        Steps until that error stays below `rtol`: measured if the trial run got there (an upper
        bound if not every step was recorded), else extrapolated at the contraction rate; None if
        it never does.
    extrapolated : bool
        Whether `steps_to_rtol` is extrapolated.
    seconds : float
        Time of one compiled gradient over `steps_to_rtol` steps, or over the trial run's steps if
        that is None. The shortest of several measurements; scaled up in proportion to the steps if
        `steps_to_rtol` is extrapolated.
    temporary_bytes : int
        Temporary memory of the gradient that was timed.
    forward_only : bool
        Whether only forward mode can differentiate it, as through a line search. `seconds` is then
        the time of one derivative in forward mode for each parameter.
    """

    error: float
    steps_to_rtol: int | None
    extrapolated: bool
    seconds: float
    temporary_bytes: int
    forward_only: bool = False


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`. Printed, it is a page of text.

    Attributes
    ----------
    rtol : float
        The relative error of the derivative that is wanted.
    steps : int
        Steps of the trial run.
    every : int
        Steps from one record of the derivatives to the next.
    trusted : bool
        Whether the solution and its derivative, which all errors refer to, could be computed.
    reason : str
        Why not; empty if trusted.
    contraction_rate : float
        Spectral radius of the step's Jacobian at the end of the trial run, per step, for changes of
        the iterate. A Krylov estimate; NaN if the steps no longer move, at rounding level.
    symmetric, positive_definite : bool
        Whether ``d residual / dx`` is, as found by matrix-vector products with random vectors.
    declared_symmetric : bool
        Whether the problem declares it symmetric.
    relative : bool
        Whether the modes' errors are relative. They are absolute if the true derivative is zero.
    distance : float
        Estimated distance from the last iterate to the solution, relative to the solution's norm;
        NaN if not trusted.
    burn_in : int
        The last recorded iteration at which the error of the unrolled Jacobian exceeds its starting
        value; 0 without burn-in.
    burn_in_peak : float
        The largest error of the unrolled Jacobian over its starting value: 1 without burn-in, NaN
        if not trusted.
    modes : mapping of str to ModeDiagnosis
        What was measured of each mode; empty if not trusted.
    recommended : str or None
        The label of the mode to use; None if there is none.
    advice : str
        The recommendation and its reason.
    """

    rtol: float
    steps: int
    every: int
    trusted: bool
    reason: str
    contraction_rate: float
    symmetric: bool
    positive_definite: bool
    declared_symmetric: bool
    relative: bool
    distance: float
    burn_in: int
    burn_in_peak: float
    modes: Mapping[str, ModeDiagnosis]
    recommended: str | None
    advice: str

    def __str__(self) -> str:
        """Return the diagnosis as text in 80 columns."""
        error = "rel. error" if self.relative else "abs. error"
        rows = [
            f"trial run          {self.steps} steps",
            f"contraction rate   {self._rate()}",
            f"distance           {self._distance()}",
            f"system             {self._structure()}",
            f"burn-in            {self._burn_in()}",
        ]
        if self.modes:
            steps = f"steps to {self.rtol:g}"
            rows += ["", f"{'mode':<12}{error:>11}{steps:>18}{'ms':>11}{'memory':>13}"]
        for name, mode in self.modes.items():
            steps = self._steps_of(mode)
            rows.append(
                f"{name:<12}{mode.error:>11.2g}{steps:>18}"
                f"{1e3 * mode.seconds:>11.3g}{_bytes(mode.temporary_bytes):>13}"
            )
        return "\n".join([*rows, "", *textwrap.wrap(self.advice, LINE_WIDTH)])

    def _steps_of(self, mode: ModeDiagnosis) -> str:
        if mode.steps_to_rtol is None:
            return "never"
        if mode.extrapolated:
            return f"~{mode.steps_to_rtol}"
        exact = self.every == 1 or mode.steps_to_rtol == 0
        return f"{'' if exact else '<= '}{mode.steps_to_rtol}"

    def _rate(self) -> str:
        if math.isnan(self.contraction_rate):
            return "unknown: the steps no longer move, the last iterate is exact to rounding"
        return f"{self.contraction_rate:.6g} per step"

    def _distance(self) -> str:
        if not math.isfinite(self.distance):
            return "unknown"
        return f"{self.distance:.2g} of the solution's norm"

    def _structure(self) -> str:
        if not self.symmetric:
            return "not symmetric"
        return "symmetric positive definite" if self.positive_definite else "symmetric, indefinite"

    def _burn_in(self) -> str:
        if not math.isfinite(self.burn_in_peak):
            return "unknown"
        if self.burn_in == 0:
            return "none"
        return f"{self.burn_in} iterations, peak {self.burn_in_peak:.3g} times the start"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
