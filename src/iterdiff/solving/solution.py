"""What a solve returns: the solution, and a status whose members are sentences of advice."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.raise_if import SolveError
from iterdiff.loop.status import Status


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
