"""What a diagnosis holds, and how it is printed."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class ModeDiagnosis:
    """What one mode does on this problem.

    Attributes
    ----------
    error : float
        Relative error of its derivative, as solution derivative, after the trial run.
    steps_to_rtol : int or None
        Steps until that error is below `rtol`: measured where the trial run reached it (an upper
        bound where only every so many steps were looked at), else extrapolated at the
        contraction rate; None where it never will be.
    extrapolated : bool
        Whether `steps_to_rtol` is extrapolated.
    seconds : float
        Time of one compiled gradient over `steps_to_rtol` steps (over the trial run's where that
        is None; in proportion to the steps where it is extrapolated); the best of several.
    temporary_bytes : int
        Temporary memory of the gradient that was timed.
    """

    error: float
    steps_to_rtol: int | None
    extrapolated: bool
    seconds: float
    temporary_bytes: int


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; printed, it is a page of text.

    Attributes
    ----------
    rtol : float
        The relative error of the derivative that is wanted.
    steps : int
        Steps of the trial run.
    every : int
        Steps from one look at the derivatives to the next.
    trusted : bool
        Whether the truth that everything is measured against could be established.
    reason : str
        Why not.
    contraction_rate : float
        Spectral radius of the Jacobian of the step, at the end of the trial run; a Krylov
        estimate.
    symmetric, positive_definite : bool
        Of d residual / dx, as probed, not as declared.
    declared_symmetric : bool
        What the problem says.
    relative : bool
        Whether the modes' errors are relative; absolute where the true derivative is zero.
    distance : float
        Estimated distance from the last iterate to the solution, relative to its norm.
    burn_in : int
        Iterations during which the unrolled Jacobian's error is above its starting value.
    burn_in_peak : float
        Its largest error, relative to its starting value (1: no burn-in).
    modes : mapping of str to ModeDiagnosis
        By mode.
    recommended : str or None
        The label of the mode to use.
    advice : str
        Which, and why.
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
        """Return the diagnosis as text of at most 80 columns."""
        error = "error now" if self.relative else "abs. error"
        rows = [
            f"trial run          {self.steps} steps",
            f"contraction rate   {self.contraction_rate:.6g} per step",
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
        return "\n".join([*rows, "", *textwrap.wrap(self.advice, 79)])

    def _steps_of(self, mode: ModeDiagnosis) -> str:
        if mode.steps_to_rtol is None:
            return "never"
        if mode.extrapolated:
            return f"~{mode.steps_to_rtol}"
        looked_at = self.every == 1 or mode.steps_to_rtol == 0
        return f"{'' if looked_at else '<= '}{mode.steps_to_rtol}"

    def _distance(self) -> str:
        known = math.isfinite(self.distance)
        return f"{self.distance:.2g} of the solution's norm" if known else "unknown"

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
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.3g} GB"
