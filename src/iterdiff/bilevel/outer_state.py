"""Where an outer run stands: a theta with what is known there, and the memory of the method."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from iterdiff.accuracy.reasons import ONE_SIDED
from iterdiff.bilevel.inner_run import (
    ENDED_EXHAUSTED,
    ENDED_FAILED,
    ENDED_STANDSTILL,
    Found,
)
from iterdiff.bilevel.nudged import RunState
from iterdiff.bilevel.regions import Layout, Vector

BAR_FACTOR = 2.0
"""Decisions allow a value to be wrong by this many times its error bar."""


class Point(NamedTuple):
    """The outer loss at one theta, and the inner run there.

    Attributes
    ----------
    vector, gradient : vector
        Theta, and the gradient.
    value, value_error, error : float
        The value at the Newton correction of the iterate, its error bar, and the estimated error of
        the gradient.
    direction : vector
        The corrected gradient, on which decisions rest.
    uncertainty : float
        How wrong that may be.
    trusted : bool
        Whether `error` is trusted.
    reason : int
        Why not: the index of a sentence.
    ended : int
        Why the inner run ended.
    accuracy : float
        The accuracy that it was asked for.
    x : pytree
        The inner iterate.
    inner : InnerState
        Where the inner run stands.
    """

    vector: Vector
    gradient: Vector
    value: float
    value_error: float
    error: float
    direction: Vector
    uncertainty: float
    trusted: bool
    reason: int
    ended: int
    accuracy: float
    x: PyTree
    inner: RunState

    @classmethod
    def of(cls, found: Found, vector: Vector, accuracy: float, layout: Layout) -> "Point":
        """Return the point at `vector`, from what an inner run found there."""
        examined = found.examined
        gradient, direction = map(layout.vector, (examined.gradient, examined.corrected))
        with np.errstate(invalid="ignore"):  # infinite where nothing is known
            error = float(np.linalg.norm(direction - gradient))
        return cls(
            vector=vector,
            gradient=gradient,
            value=float(examined.better_value),
            value_error=float(examined.value_slack),
            error=error,
            direction=direction,
            uncertainty=float(examined.uncertainty),
            trusted=bool(examined.trusted),
            reason=int(examined.reason_code),
            ended=int(np.max(np.asarray(found.ended))),
            accuracy=accuracy,
            x=examined.nearest,
            inner=found.state,
        )

    @property
    def bar(self) -> float:
        """How wrong the value may be: its error bar is an estimate, within a factor of two."""
        return BAR_FACTOR * self.value_error

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return self.ended == ENDED_FAILED or not np.isfinite(self.value)

    @property
    def final(self) -> bool:
        """Whether the inner run cannot become more accurate."""
        return self.ended in (ENDED_STANDSTILL, ENDED_EXHAUSTED)

    @property
    def noise(self) -> float:
        """How wrong the direction may be; at a kink, as one of two derivatives."""
        return self.error if self.one_sided else self.uncertainty

    @property
    def one_sided(self) -> bool:
        """Whether the inner solution is at a kink."""
        return self.reason == ONE_SIDED


class Progress(NamedTuple):
    """Where an outer run stands between two iterations.

    Attributes
    ----------
    point : Point
        The last good theta.
    memory : pytree
        The method's.
    accuracy : float
        What the next inner run is asked for.
    scale : float
        Length of the projected gradient at the start; zero until it is known.
    longest : float
        The longest step that the next iteration may try.
    iteration : int
        Iterations that have run.
    gradients : int
        Inner residuals evaluated.
    seconds : float
        Time spent.
    ended : int
        How the run ended, if nothing is left to do; else negative.
    """

    point: Point
    memory: PyTree
    accuracy: float
    scale: float
    longest: float
    iteration: int
    gradients: int
    seconds: float
    ended: int = -1


class Verdict(NamedTuple):
    """What came of a trial step.

    Attributes
    ----------
    text : str
        In words.
    rounds : int
        How often an inner run went on to decide.
    accepted, open : bool
        Whether the loss certainly decreases, or cannot be compared.
    """

    text: str
    rounds: int
    accepted: bool = False
    open: bool = False
