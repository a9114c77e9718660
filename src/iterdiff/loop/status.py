"""How a run ended."""

import enum


class Status(enum.IntEnum):
    """How a run ended; ``Status(code).advice`` says it in words and what to do about it.

    `Solution.status` holds the code as an integer array, so that it passes through ``jit``
    and ``vmap``; compare it with a member directly: ``solution.status == Status.CONVERGED``.
    """

    advice: str

    CONVERGED = 0, "The stopping rule was satisfied."
    STEPS_DONE = (
        1,
        "The steps that were asked for have run. Whether they were enough was not checked: "
        "look at `residual_norm`, or stop by `ResidualBelow`.",
    )
    MAX_STEPS_REACHED = (
        2,
        "The stopping rule was not satisfied within `max_steps`. Raise `max_steps`, loosen the "
        "tolerance (the residual may have reached the floor of its floating-point precision; a "
        "derivative that may be zero needs DerivativeErrorBelow's `atol`), "
        "or use an algorithm that converges faster; with `throw=False` the last iterate is "
        "returned.",
    )
    DIVERGED = (
        3,
        "An iterate was not finite. The last finite iterate is returned, and `steps` counts "
        "the steps that led to it. Make the step size smaller, or start nearer to the solution.",
    )
    NOT_FINITE_AT_START = (
        4,
        "The residual at `x0` is not finite. Look for NaN or infinity in `x0`, `theta` and the "
        "data, and for an `x0` outside the problem's domain.",
    )
    SOLVER_FAILED = (
        5,
        "The solver that was wrapped says that it failed. Its own message is in the exception.",
    )

    def __new__(cls, code: int, advice: str) -> "Status":
        """Attach the advice to the code."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.advice = advice
        return member

    @property
    def failed(self) -> bool:
        """Whether ``throw=True`` raises on it."""
        return self >= Status.MAX_STEPS_REACHED
