"""How an outer run ended, and what may be spent on it."""

import dataclasses
from typing import Any

from iterdiff.algorithms.status import Advised
from iterdiff.jaxtools.arguments import check_count, check_tolerance


class Ending(Advised):
    """How `minimize` ended; ``ending.advice`` is a sentence about it and what to do."""

    STATIONARY = 0, "The projected gradient is below `rtol` times that of the start."
    AT_PRECISION = (
        1,
        "The projected gradient, or the decrease of a step, is below its own error bar, and the "
        "inner run cannot become more accurate. In float32, use float64; raise `max_steps` if the "
        "history shows that inner runs reached it.",
    )
    MAX_OUTER_REACHED = 2, "`max_outer` iterations have run. Pass a larger number and `resume`."
    BUDGET_SPENT = 3, "The budget is spent. Pass a larger one and `resume` to go on."
    INNER_INACCURATE = (
        4,
        "The inner run did not make the gradient accurate enough within `max_steps`. Raise "
        "`max_steps`, use a faster algorithm, or see `reason` in the message.",
    )
    INNER_FAILED = (
        5,
        "The inner run diverged, or the loss is not finite, at the first theta or where the method "
        "steps without a line search. Use a smaller step size, another `theta0`, or bounds.",
    )
    NO_DECREASE = (
        6,
        "No step along the direction decreases the loss, however short. The loss may have a kink "
        "in theta, or `loss` or the problem another derivative than its value has (see "
        "iterdiff.check_derivative).",
    )
    AT_KINK = (
        7,
        "The inner solution is at a kink, where it has only one-sided derivatives. The one that is "
        "known is zero, or no step along it decreases the loss: a step was refused. "
        "iterdiff.weakly_active shows where; start on either side of the kink to go on.",
    )

    @property
    def failed(self) -> bool:
        """Whether neither a stationary point, nor the precision, nor a limit was reached."""
        return self >= Ending.INNER_INACCURATE


@dataclasses.dataclass(frozen=True)
class Budget:
    """What may be spent on an outer run; an iteration that has begun is finished.

    Parameters
    ----------
    gradients : int, optional
        Evaluations of the inner residual, all inner problems together.
    seconds : float, optional
        Time, that of runs before `resume` included.

    Raises
    ------
    TypeError, ValueError
        If a number has the wrong type or is not positive.
    """

    gradients: int | None = None
    seconds: float | None = None

    def __post_init__(self):
        """Check the numbers."""
        if self.gradients is not None:
            check_count("gradients", self.gradients)
        if self.seconds is not None:
            check_tolerance("seconds", self.seconds)

    def spent(self, gradients: int, seconds: float) -> bool:
        """Return whether as much has been spent."""
        return (self.gradients is not None and gradients >= self.gradients) or (
            self.seconds is not None and seconds >= self.seconds
        )


def checked_budget(budget: Any) -> Budget:
    """Return what may be spent; None means no limit.

    Raises
    ------
    TypeError, ValueError
        If it is no budget; the message names it.
    """
    if isinstance(budget, Budget):
        return budget
    if budget is None:
        return Budget()
    try:
        return Budget(gradients=check_count("budget", budget))
    except TypeError as error:
        raise TypeError(f"`budget` must be a Budget or an int, not {budget!r}.") from error


def checked_rtol(rtol: Any) -> float:
    """Return the tolerance of an outer run.

    Raises
    ------
    TypeError, ValueError
        If it is no positive number; the message names it.
    """
    check_tolerance("rtol", rtol)
    return float(rtol)
