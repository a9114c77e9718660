"""How a run ended."""

import enum


class Status(enum.IntEnum):
    """How a run ended; ``Status(code).advice`` says what happened and what to do.

    `Solution.status` holds the code as an integer array, which passes through ``jit`` and
    ``vmap``. Compare it with a member directly: ``solution.status == Status.CONVERGED``.

    Examples
    --------
    >>> import iterdiff as itd
    >>> itd.Status(0).name, itd.Status(0).advice
    ('CONVERGED', 'The stopping rule was satisfied.')
    """

    advice: str

    CONVERGED = 0, "The stopping rule was satisfied."
    STEPS_DONE = (
        1,
        "All requested steps ran; convergence was not checked. Read `residual_norm`, or stop by "
        "`ResidualBelow`.",
    )
    MAX_STEPS_REACHED = (
        2,
        "The stopping rule was not satisfied within `max_steps`. Raise `max_steps`, loosen the "
        "tolerance (rounding limits how small a residual can get, and a derivative that may be "
        "zero needs `atol` of DerivativeErrorBelow), use an algorithm that converges faster, or "
        "pass `throw=False` to get the last iterate.",
    )
    DIVERGED = (
        3,
        "The run diverged: an iterate was not finite. Make the step size smaller or start nearer "
        "to the solution; `throw=False` returns the last finite iterate and the number of steps "
        "that led to it.",
    )
    NOT_FINITE_AT_START = (
        4,
        "The residual at `x0` is not finite. Look for NaN or infinity in `x0`, `theta` and the "
        "data, or move `x0` into the problem's domain.",
    )
    SOLVER_FAILED = (
        5,
        "The wrapped solver reported failure; its message follows.",
    )

    def __new__(cls, code: int, advice: str) -> "Status":
        """Make a member of its code and its advice."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.advice = advice
        return member

    @property
    def failed(self) -> bool:
        """Whether ``throw=True`` raises an error for this status."""
        return self >= Status.MAX_STEPS_REACHED
