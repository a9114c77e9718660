"""The burn-in of a measured curve of errors, in NumPy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from iterdiff.theory import _checks

MAX_ROUNDING = 1e-9
"""An error counts as above its start only if it exceeds it by more than this, relatively."""


class MeasuredBurnIn(NamedTuple):
    """The burn-in of a measured curve. Indices count the entries of the curve.

    Attributes
    ----------
    start_index : int
        The first entry that is not zero; its error is what the others are compared with. 0 if
        every entry is zero.
    peak_index : int
        The largest entry; the first of several.
    peak_ratio : float
        The largest error over the error at the start; 1 without burn-in, infinite if the curve
        is infinite or NaN somewhere.
    length : int
        The entry from which on the error stays at or below its start: 0 without burn-in, the
        number of entries if the last one is still above.
    """

    start_index: int
    peak_index: int
    peak_ratio: float
    length: int


def measured_burn_in(errors: ArrayLike) -> MeasuredBurnIn:
    """Return how long, and by how much, a measured error exceeds its starting value.

    Compared with `burn_in`, which serves predicted curves, a start at an error of zero is skipped,
    and an error above the start by no more than rounding does not count.

    Parameters
    ----------
    errors : float array of shape (records,)
        Nonnegative errors in the order of iterations. NaN counts as infinite.

    Returns
    -------
    MeasuredBurnIn
        Indices count entries; the ratio is dimensionless.

    Raises
    ------
    TypeError
        If `errors` is not real.
    ValueError
        If `errors` is empty or has more than one dimension.

    Examples
    --------
    >>> from iterdiff.theory.measured import measured_burn_in
    >>> measured_burn_in([0.0, 1.0, 3.0, 2.0, 0.5])
    MeasuredBurnIn(start_index=1, peak_index=2, peak_ratio=3.0, length=4)
    """
    _checks.require_real("errors", errors)
    curve = np.asarray(errors, float)
    if curve.ndim != 1 or curve.size == 0:
        raise ValueError(f"`errors` must be a nonempty vector, but its shape is {curve.shape}.")
    curve = np.where(np.isnan(curve), np.inf, curve)
    start, peak = int(np.argmax(curve > 0)), int(np.argmax(curve))
    above = np.flatnonzero(curve > curve[start] * (1 + MAX_ROUNDING))
    if above.size == 0:
        ratio = np.inf if np.isinf(curve[start]) else 1.0
        return MeasuredBurnIn(start, peak, ratio, 0)
    return MeasuredBurnIn(start, peak, float(curve[peak] / curve[start]), int(above[-1]) + 1)
