"""What a solve returns: the solution, and a status whose members are sentences of advice."""

import enum
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff import tree
from iterdiff.failure import SolveError


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


class SolverFailed(SolveError):
    """A wrapped solver says that it failed.

    Attributes
    ----------
    status : Status
        `Status.SOLVER_FAILED`.
    foreign_message : str
        The solver's own words.
    """

    def __init__(self, name: str, message: str):
        super().__init__(f"{Status.SOLVER_FAILED.advice} `{name}` said: {message}")
        self.status = Status.SOLVER_FAILED
        self.foreign_message = message


class Solution(eqx.Module):
    """Where a run ended.

    Differentiate through `x`; the other fields carry no derivative.

    Attributes
    ----------
    x : pytree of real floating arrays
        The answer, like `x0`.
    steps : integer scalar
        How many steps led to `x`.
    status : integer scalar
        A `Status` code.
    residual_norm : scalar
        Euclidean norm of ``problem.residual(x, theta)``, absolute, in the units of the residual.
    weakly_active : pytree of bool arrays, or None
        Like `x`, for a `CompositeMinimization`: True at the coordinates where the solution has no
        derivative but one-sided ones, so that the derivative of `x` is one of two. None for the
        other problems, which are taken to be smooth (`weakly_active`, the function, looks).
    """

    x: PyTree
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residual_norm: Float[Array, ""]
    weakly_active: PyTree[Bool[Array, "..."]] | None = None

    @property
    def message(self) -> str:
        """The advice that belongs to `status`; only outside ``jit`` and ``vmap``."""
        return Status(int(self.status)).advice

    def __repr__(self) -> str:
        """Return a line: shapes of what is long or being traced, values of what is not."""
        parts = [
            f"x={eqx.tree_pformat(self.x, width=1000)}",
            f"steps={_number(self.steps, '{}')}",
            f"status={_status(self.status)}",
            f"residual_norm={_number(self.residual_norm, '{:.3g}')}",
        ]
        if self.weakly_active is not None:
            parts.append(f"weakly_active={_count(self.weakly_active)}")
        return f"Solution({', '.join(parts)})"


def _known(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic) and not tree.is_traced(value)


def _number(value: Any, form: str) -> str:
    """Return a scalar's value; of a batch its range; else shape and dtype."""
    if not _known(value) or np.size(value) == 0:
        return eqx.tree_pformat(value, width=1000)
    low, high = form.format(np.min(value)), form.format(np.max(value))
    return low if np.ndim(value) == 0 else f"{low}..{high}"


def _status(value: Any) -> str:
    """Return the member's name; of a batch, how often each occurs."""
    if not _known(value):
        return eqx.tree_pformat(value, width=1000)
    names = {member.value: member.name for member in Status}
    codes, counts = np.unique(np.asarray(value), return_counts=True)
    called = [names.get(code, str(code)) for code in codes.tolist()]
    if np.ndim(value) == 0:
        return called[0]
    return " + ".join(f"{count} {name}" for name, count in zip(called, counts, strict=True))


def _count(flags: Any) -> str:
    """Return how many of the flags are up."""
    leaves = jax.tree.leaves(flags)
    if not all(_known(leaf) for leaf in leaves):
        return eqx.tree_pformat(flags, width=1000)
    return f"{sum(int(np.sum(leaf)) for leaf in leaves)} of {sum(leaf.size for leaf in leaves)}"
