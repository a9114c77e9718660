"""Confidence intervals of a hypergradient, and what a stochastic outer run returns."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import PyTree
from scipy.special import stdtrit

from iterdiff.bilevel.endings import Ending
from iterdiff.bilevel.history import Log, to_dataset
from iterdiff.bilevel.regions import Vector

if TYPE_CHECKING:
    import xarray

CONFIDENCE = 0.95
"""Of the intervals."""

MEAN_ROUNDINGS = 1e3
"""Rounding errors of a mean over all samples, in units of the machine precision."""


class Interval(NamedTuple):
    """A hypergradient with its confidence interval.

    Attributes
    ----------
    gradient : vector
        The mean over the chains.
    half_width : vector
        Of the interval of each number, at 95 %.
    value, value_half_width : float
        The same of the outer loss.
    settled : bool
        Whether two windows of steps in a row agree: chains have forgotten where they came from.
    """

    gradient: Vector
    half_width: Vector
    value: float
    value_half_width: float
    settled: bool

    @property
    def radius(self) -> float:
        """The length of `half_width`."""
        return float(np.linalg.norm(self.half_width))


@dataclasses.dataclass(frozen=True)
class StochasticMinimized:
    """What `minimize_stochastic` returns.

    Attributes
    ----------
    theta : pytree
        The last theta whose loss and hypergradient are finite.
    x : pytree
        The mean of the chains' iterates there.
    value, value_half_width : float
        The outer loss there, and half of its confidence interval.
    gradient, half_width : pytree
        Like the floating part of theta: the hypergradient, and half of the interval of each number.
    settled : bool
        Whether the chains had forgotten their start, which the interval assumes.
    status : Ending
        How the run ended.
    message : str
        The same in words.
    rounds, samples, batch : int
        Rounds; inner gradients of single samples, all chains together; the last batch.
    seconds : float
        Time.
    log : Log
        The rows of `history`.
    """

    theta: PyTree
    x: PyTree
    value: float
    value_half_width: float
    gradient: PyTree
    half_width: PyTree
    settled: bool
    status: Ending
    message: str
    rounds: int
    samples: int
    batch: int
    seconds: float
    log: Log

    @property
    def history(self) -> "xarray.Dataset":
        """One row for each round, over ``evaluation``: needs xarray, of the extra ``bilevel``."""
        return to_dataset(self.log, {"status": self.status.name, "message": self.message})

    def __repr__(self) -> str:
        """Return the numbers and the status on one line."""
        return (
            f"StochasticMinimized(value={self.value:.4g} ± {self.value_half_width:.2g}, "
            f"status={self.status.name}, rounds={self.rounds}, samples={self.samples})"
        )


MESSAGES = {
    Ending.STATIONARY: "Projected gradient and interval are below `rtol` times the gradient at "
    "the start.",
    Ending.AT_PRECISION: "The interval of the hypergradient covers zero, with all samples in a "
    "batch.",
    Ending.MAX_OUTER_REACHED: "`max_rounds` rounds have run. Pass a larger number, or start at "
    "the last theta.",
    Ending.BUDGET_SPENT: "The budget is spent. Pass a larger one, or start at the last theta.",
    Ending.INNER_FAILED: "A chain diverged, or the loss is not finite. Use smaller step sizes, "
    "another `theta0`, or bounds.",
}
"""What the endings mean here."""


def student(rows: np.ndarray) -> tuple[Vector, Vector]:
    """Return the mean of the rows, and half of the confidence interval of each number."""
    count = len(rows)
    factor = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) / np.sqrt(count)
    return rows.mean(axis=0), factor * rows.std(axis=0, ddof=1)


def rounding(rows: np.ndarray) -> float:
    """Return how much the mean of the rows may be wrong by rounding."""
    return MEAN_ROUNDINGS * float(np.finfo(rows.dtype).eps * np.linalg.norm(rows.mean(axis=0)))
