"""How a run ended."""

import enum

RUNNING = -1
"""The status of a run that has not ended."""


class Advised(enum.IntEnum):
    """Base class of outcomes; each member is a code and a sentence about it and what to do."""

    advice: str

    def __new__(cls, code: int, advice: str) -> "Advised":
        """Attach the advice to the code."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.advice = advice
        return member


class Status(Advised):
    """How a run ended; ``Status(code).advice`` is a sentence about it and what to do.

    `Solution.status` holds the code as an integer array, so that it passes through ``jit`` and
    ``vmap``. Compare it with a member directly: ``solution.status == Status.CONVERGED``.
    """

    CONVERGED = 0, "The stopping rule was satisfied."
    STEPS_DONE = (
        1,
        "The requested steps have run; no stopping rule checked convergence. Inspect "
        "`residual_norm`, or stop by `ResidualBelow`.",
    )
    MAX_STEPS_REACHED = (
        2,
        "The stopping rule was not satisfied within `max_steps`. Raise `max_steps`, loosen the "
        "tolerance (rounding limits how small a residual can become, and a derivative that may be "
        "zero needs the `atol` of DerivativeErrorBelow), or use a faster algorithm; with "
        "`throw=False` the last iterate is returned with its `residual_norm` and `steps`, and if "
        "that norm stagnates, step and residual may not belong together (see "
        "iterdiff.check_derivative).",
    )
    DIVERGED = (
        3,
        "An iterate was not finite. Use a smaller step size or a start closer to the solution (for "
        "Bisection, `lower` and `upper` at which the residual has different signs); with "
        "`throw=False` the last finite iterate is returned, and `steps` counts the steps that led "
        "to it.",
    )
    NOT_FINITE_AT_START = (
        4,
        "The residual at `x0` is not finite. Look for NaN or infinity in `x0`, `theta` and the "
        "data, and for an `x0` outside the problem's domain.",
    )
    SOLVER_FAILED = (
        5,
        "The wrapped solver reported failure. The exception quotes its message.",
    )

    INFEASIBLE = (
        6,
        "No point satisfies all constraints: the iterates hold a certificate. Loosen the "
        "constraints, or penalise their violation in the objective.",
    )
    UNBOUNDED = (
        7,
        "The objective decreases without bound: the iterates hold a feasible direction along which "
        "it does. Add the missing bounds, or a quadratic term.",
    )
    LOCALLY_INFEASIBLE = (
        8,
        "The run ended where the violation of the constraints is stationary but not zero. Either "
        "no point satisfies them, or this is a bad start: try another `x0`.",
    )

    @property
    def failed(self) -> bool:
        """Whether ``throw=True`` raises on this status."""
        return self >= Status.MAX_STEPS_REACHED
