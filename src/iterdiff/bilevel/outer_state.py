"""Where an outer run stands: a theta with what is known there, and the memory of the method."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from iterdiff.accuracy.reasons import ONE_SIDED
from iterdiff.bilevel.inner_run import (
    ENDED_EXHAUSTED,
    ENDED_FAILED,
    ENDED_STANDSTILL,
    InnerState,
)
from iterdiff.bilevel.regions import Vector


class Point(NamedTuple):
    """The outer loss at one theta, and the inner run there.

    Attributes
    ----------
    vector, gradient : vector
        Theta, and the gradient.
    value, value_error, error, upper : float
        Value, its error bar, the estimated error of the gradient, and its upper bound.
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
    upper: float
    trusted: bool
    reason: int
    ended: int
    accuracy: float
    x: PyTree
    inner: InnerState

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
        """How wrong the gradient may be; at a kink, as one of two derivatives."""
        return self.error if self.one_sided else self.upper

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
    iteration : int
        Iterations that have run.
    gradients : int
        Inner residuals evaluated.
    seconds : float
        Time spent.
    """

    point: Point
    memory: PyTree
    accuracy: float
    scale: float
    iteration: int
    gradients: int
    seconds: float


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
