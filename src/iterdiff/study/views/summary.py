"""The numbers of a study: peak, burn-in, and how soon each error is small."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray

TOLERANCE = 1e-6
"""What counts as small: relative to the true Jacobian's norm, or to the start of an iterate."""

ROUNDING = 1e-9
"""An error this much above its start, relatively, is not yet above it."""


class Convergence(NamedTuple):
    """How one error went.

    Attributes
    ----------
    start : float
        Its starting value, that is at iteration 0, or the first that is not zero.
    start_iteration : int
        Where that is.
    peak : float
        The largest, absolute.
    peak_iteration : int
        Where that is.
    burn_in_end : int or None
        The last recorded iteration at which it is above its start; 0 without burn-in, None if it
        still is at the end.
    small_from : int or None
        From where on it stays below `TOLERANCE` times `scale`; None if it does not.
    final : float
        The last one, absolute.
    scale : float
        What "relative" refers to.
    relative : bool
        False where the scale would be 0 and 1 is in its place.
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
        """The peak over the start, dimensionless; 1 without burn-in."""
        return self.peak / self.start if self.start > 0 else 1.0

    @property
    def has_burn_in(self) -> bool:
        """Whether the error is ever above its start."""
        return self.burn_in_end != 0


def converged(iterations: np.ndarray, errors: np.ndarray, scale: float) -> Convergence:
    """Return how an error went.

    Parameters
    ----------
    iterations : int array of shape (records,)
        Ascending.
    errors : float array of shape (records,)
        Nonnegative; what is not finite counts as above everything.
    scale : float
        What "relative" refers to; 0 stands for none, that is for absolute.
    """
    errors = np.where(np.isfinite(errors), np.abs(errors), np.inf)
    first = int(np.argmax(errors > 0))
    start = float(errors[first])
    above = np.flatnonzero(errors > start * (1 + ROUNDING))
    relative = scale > 0
    scale = float(scale) if relative else 1.0
    large = np.flatnonzero(errors > TOLERANCE * scale)
    last = len(errors) - 1
    return Convergence(
        start=start,
        start_iteration=int(iterations[first]),
        peak=float(errors.max()),
        peak_iteration=int(iterations[int(np.argmax(errors))]),
        burn_in_end=_end(iterations, above, last),
        small_from=_after(iterations, large, last),
        final=float(errors[-1]),
        scale=scale,
        relative=relative,
    )


def _end(iterations: np.ndarray, above: np.ndarray, last: int) -> int | None:
    if not above.size:
        return 0
    return None if above[-1] == last else int(iterations[above[-1]])


def _after(iterations: np.ndarray, large: np.ndarray, last: int) -> int | None:
    if not large.size:
        return int(iterations[0])
    return None if large[-1] == last else int(iterations[large[-1] + 1])


def iterate_of(case: "xarray.Dataset") -> Convergence:
    """Return how the iterate's suboptimality went, relative to its start."""
    errors = case.iterate_error.values
    return converged(case.iteration.values, errors, float(errors[0]))


def jacobian_of(case: "xarray.Dataset", mode: str) -> Convergence:
    """Return how a mode's Jacobian error went, relative to the norm of the true Jacobian."""
    errors = case.jacobian_error.sel(mode=mode).values
    return converged(case.iteration.values, errors, float(case.reference_norm))


def best_start(case: "xarray.Dataset", total: int) -> int:
    """Return after how many leading steps a late start of `total` iterations errs least.

    The first of all that are equally good, up to rounding relative to the true Jacobian.
    """
    errors = case.late_start_error.sel(total=total).dropna("start").values
    least = errors.min() + ROUNDING * 1e-3 * float(case.reference_norm)
    return int(np.argmax(errors <= least))


def deviation(case: "xarray.Dataset") -> tuple[float, float] | None:
    """Return how far the unrolled Jacobian error is from its closed form, at most.

    Returns
    -------
    (float, float) or None
        Absolute, and relative to the largest; None where there is no closed form.
    """
    if "closed_form" not in case or "unrolled" not in case["mode"].values:
        return None
    exact = case.closed_form.values
    if not np.isfinite(exact).all():
        return None
    gap = float(np.max(np.abs(case.jacobian_error.sel(mode="unrolled").values - exact)))
    return gap, gap / float(np.max(exact))


def times(growth: float) -> str:
    """Return a factor to be read; one near 1 as a percentage above it."""
    return f"+{100 * (growth - 1):.1g}%" if growth < 1.005 else f"{growth:.3g}x"
