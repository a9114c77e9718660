"""Numbers of an error curve: its peak, its burn-in, and the iteration from which it is small."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from iterdiff.theory import measured_burn_in

if TYPE_CHECKING:
    import xarray

SMALL_MAX_RELATIVE_ERROR = 1e-6
"""Largest error that counts as small, relative to the true Jacobian or to the iterate's start."""

BEST_START_MAX_RELATIVE_GAP = 1e-12
"""Gap to the least error, relative to the true Jacobian, up to which late starts are equal."""

DIVERGED_MIN_GROWTH = 1e3
"""Growth of the iterate's error, from start to end, from which on a finite run has diverged."""

ROUNDING_EPS = 64
"""Errors below this many units of the machine precision, relative to the true size, round off."""

PERCENT_MAX_FACTOR = 1.005
"""Largest growth factor that is printed as a percentage."""


class Convergence(NamedTuple):
    """Numbers of one error curve.

    Attributes
    ----------
    start : float
        The error at iteration 0, or the first nonzero error.
    start_iteration : int
        The iteration of `start`.
    peak : float
        The largest error, absolute.
    peak_iteration : int
        The iteration of `peak`.
    burn_in_end : int or None
        The last recorded iteration with an error above the start; 0 without burn-in, None if
        the error is still above the start at the end.
    small_from : int or None
        The iteration from which the error stays below `SMALL_MAX_RELATIVE_ERROR` times `scale`;
        None if it does not.
    final : float
        The last error, absolute.
    scale : float
        The size that relative errors refer to.
    relative : bool
        Whether `scale` is a true size. If that size is 0, `scale` is 1 instead.
    """

    start: float
    start_iteration: int
    peak: float
    peak_iteration: int
    burn_in_end: int | None
    small_from: int | None
    final: float
    scale: float
    relative: bool

    @property
    def growth(self) -> float:
        """The peak divided by the start, dimensionless; 1 without burn-in."""
        return self.peak / self.start if self.start > 0 else 1.0

    @property
    def has_burn_in(self) -> bool:
        """Whether the error is ever above its start."""
        return self.burn_in_end != 0


def converged(iterations: np.ndarray, errors: np.ndarray, scale: float) -> Convergence:
    """Return the numbers of an error curve.

    Parameters
    ----------
    iterations : int array of shape (records,)
        Ascending.
    errors : float array of shape (records,)
        Nonnegative. An error that is not finite counts as infinite.
    scale : float
        The size that relative errors refer to; 0 if there is none.
    """
    errors = np.where(np.isfinite(errors), np.abs(errors), np.inf)
    relative = scale > 0
    # Rises among rounding errors are no burn-in.
    floor = ROUNDING_EPS * np.finfo(float).eps * scale if relative else 0.0
    curve = measured_burn_in(np.where(errors <= floor, 0.0, errors) if floor else errors)
    scale = float(scale) if relative else 1.0
    large = np.flatnonzero(errors > SMALL_MAX_RELATIVE_ERROR * scale)
    return Convergence(
        start=float(errors[curve.start_index]),
        start_iteration=int(iterations[curve.start_index]),
        peak=float(errors[curve.peak_index]),
        peak_iteration=int(iterations[curve.peak_index]),
        burn_in_end=_last_above(iterations, curve.length),
        small_from=_first_after(iterations, large),
        final=float(errors[-1]),
        scale=scale,
        relative=relative,
    )


def _last_above(iterations: np.ndarray, length: int) -> int | None:
    """Return the last iteration of the burn-in: 0 without one, None if it lasts to the end."""
    if length == 0:
        return 0
    return None if length == len(iterations) else int(iterations[length - 1])


def _first_after(iterations: np.ndarray, places: np.ndarray) -> int | None:
    """Return the first iteration after all `places`, None if there is none."""
    if not places.size:
        return int(iterations[0])
    return None if places[-1] == len(iterations) - 1 else int(iterations[places[-1] + 1])


def iterate_of(case: "xarray.Dataset") -> Convergence:
    """Return the numbers of the iterate's suboptimality, relative to its start."""
    errors = case.iterate_error.values
    return converged(case.iteration.values, errors, float(errors[0]))


def jacobian_of(case: "xarray.Dataset", mode: str) -> Convergence:
    """Return the numbers of a mode's Jacobian error, relative to the norm of the true Jacobian."""
    errors = case.jacobian_error.sel(mode=mode).values
    return converged(case.iteration.values, errors, float(case.reference_norm))


def reached(case: "xarray.Dataset", mode: str, tolerance: float) -> int | None:
    """Return the iteration from which a mode's Jacobian error stays within a relative tolerance.

    The error is relative to the norm of the true Jacobian; absolute if that is 0. None if it is not
    within the tolerance at the end.
    """
    errors, norm = case.jacobian_error.sel(mode=mode).values, float(case.reference_norm)
    large = np.flatnonzero(~(errors <= tolerance * (norm if norm > 0 else 1.0)))
    return _first_after(case.iteration.values, large)


def best_start(case: "xarray.Dataset", total: int) -> int:
    """Return the late start of `total` iterations with the smallest error.

    Returns the first of several that are equal up to `BEST_START_MAX_RELATIVE_GAP`.
    """
    errors = case.late_start_error.sel(total=total).dropna("start").values
    least = errors.min() + BEST_START_MAX_RELATIVE_GAP * float(case.reference_norm)
    return int(np.argmax(errors <= least))


def divergence(case: "xarray.Dataset") -> str | None:
    """Return how the run of a case diverges, as the end of a sentence; None if it does not."""
    status = str(case.status.values)
    if status.startswith("diverged"):
        return status
    errors = case.iterate_error.values
    if not errors[-1] > DIVERGED_MIN_GROWTH * errors[0] > 0:
        return None
    growth = float(errors[-1] / errors[0])
    return f"diverges: the error of the iterate grows {growth:.1e} times in {int(case.steps)} steps"


def deviation(case: "xarray.Dataset") -> tuple[float, float] | None:
    """Return the largest distance of the unrolled Jacobian error from its closed form.

    Returns
    -------
    (float, float) or None
        Absolute, and relative to the largest error; None without a closed form.
    """
    if "closed_form" not in case or "unrolled" not in case["mode"].values:
        return None
    exact = case.closed_form.values
    if not np.isfinite(exact).all():
        return None
    gap = float(np.max(np.abs(case.jacobian_error.sel(mode="unrolled").values - exact)))
    return gap, gap / float(np.max(exact))


def decay(case: "xarray.Dataset") -> float:
    """Return rho of the exponential factor rho**(t - 1), dimensionless."""
    return float(1 / case.exponential_factor.sel(iteration=0))


def factor(growth: float) -> str:
    """Return a growth factor as text; a factor near 1 as a percentage above 1."""
    if growth < PERCENT_MAX_FACTOR:
        return f"+{100 * (growth - 1):.1g}%"
    return f"{growth:.3g}x"
