"""The result of a solve, and the error that a wrapped solver raises."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.algorithms.status import Status
from iterdiff.jaxtools.arguments import is_known, is_number
from iterdiff.jaxtools.raise_if import SolveError
from iterdiff.problems.constrained import Multipliers

MAX_LINE_CHARACTERS = 1000
"""Line width of a printed pytree, so that a `Solution` prints on one line."""


class SolverFailed(SolveError):
    """A solver wrapped by `implicit` failed or returned an answer that is not finite.

    Attributes
    ----------
    status : Status
        `Status.SOLVER_FAILED`.
    foreign_message : str
        The solver's own message; empty if it reported success.
    """

    def __init__(self, message: str, foreign_message: str = ""):
        super().__init__(message)
        self.status = Status.SOLVER_FAILED
        self.foreign_message = foreign_message


class Solution(eqx.Module):
    """The answer of `solve`, and how the run ended.

    Differentiate through `x`, `multipliers` and `aux`; the other fields carry no derivative. A
    `Solution` is a pytree, so that it passes through ``jit`` and ``vmap``. It prints as one line,
    with values where they are known and shapes where JAX is tracing.

    Attributes
    ----------
    x : pytree
        The answer, like `x0`: the last iterate, or the last finite one if the run diverged.
    steps : integer scalar
        Number of steps that led to `x`.
    status : integer scalar
        A `Status` code. Compare it with a member, as in ``solution.status == Status.CONVERGED``,
        or read `message`.
    residual_norm : scalar
        Euclidean norm of ``problem.residual(x, theta)``: absolute, in the units of the residual.
        A small residual does not imply a small error of the derivative; see `derivative_error`.
    weakly_active : pytree of bool arrays, or None
        For a `CompositeMinimization`: like `x`, True at coordinates where the solution has only
        one-sided derivatives, so that the derivative of `x` is one of the two. For a problem with
        constraints: the same, like the value of the inequality constraints. None for all other
        problems, which `solve` assumes to be smooth; the function `weakly_active` checks them.
    aux : pytree
        With ``has_aux=True`` in the problem, the auxiliary output at the answer. It is
        differentiable through `x` and `theta`. None otherwise.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
    >>> theta = jnp.array([1.0, 3.0])
    >>> solution = itd.solve(
    ...     problem, itd.GradientDescent(0.5), jnp.zeros(2), theta, stop=itd.ResidualBelow(1e-6)
    ... )
    >>> solution
    Solution(x=f...[2], steps=1, status=CONVERGED, residual_norm=0)
    >>> solution.message
    'The stopping rule was satisfied.'
    """

    x: PyTree
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residual_norm: Float[Array, ""]
    weakly_active: PyTree[Bool[Array, "..."]] | None = None
    aux: PyTree = None
    multipliers: Multipliers | None = None

    @property
    def message(self) -> str:
        """What `status` means and what to do; available only outside ``jit`` and ``vmap``.

        For a batch, one line for each status that occurs, with the number of its members.
        """
        codes, counts = np.unique(np.asarray(self.status), return_counts=True)
        members = [Status(code) for code in codes.tolist()]
        if np.ndim(self.status) == 0:
            return members[0].advice
        lines = zip(members, counts.tolist(), strict=True)
        return "\n".join(f"{count} x {member.name}: {member.advice}" for member, count in lines)

    def __repr__(self) -> str:
        """Return one line: known scalars by value, arrays and traced values by shape."""
        parts = [
            f"x={_shapes(self.x)}",
            f"steps={_number(self.steps, '{}')}",
            f"status={_status(self.status)}",
            f"residual_norm={_number(self.residual_norm, '{:.3g}')}",
        ]
        if self.weakly_active is not None:
            parts.append(f"weakly_active={_count(self.weakly_active)}")
        return f"Solution({', '.join(parts)})"


def _has_value(leaf: Any) -> bool:
    return is_number(leaf) and is_known(leaf)


def _shapes(value: Any) -> str:
    """Return dtypes and shapes, such as ``f64[2]``."""
    return eqx.tree_pformat(value, width=MAX_LINE_CHARACTERS)


def _number(value: Any, form: str) -> str:
    """Return a scalar's value, or a batch's range; without values, dtype and shape."""
    if not _has_value(value) or np.size(value) == 0:
        return _shapes(value)
    low, high = form.format(np.min(value)), form.format(np.max(value))
    return low if np.ndim(value) == 0 else f"{low}..{high}"


def _status(value: Any) -> str:
    """Return the member's name, or for a batch how often each occurs."""
    if not _has_value(value):
        return _shapes(value)
    members = {member.value: member.name for member in Status}
    codes, counts = np.unique(np.asarray(value), return_counts=True)
    names = [members.get(code, str(code)) for code in codes.tolist()]
    if np.ndim(value) == 0:
        return names[0]
    return " + ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))


def _count(flags: Any) -> str:
    """Return how many of the flags are set."""
    leaves = jax.tree.leaves(flags)
    if not all(_has_value(leaf) for leaf in leaves):
        return _shapes(flags)
    return f"{sum(int(np.sum(leaf)) for leaf in leaves)} of {sum(np.size(leaf) for leaf in leaves)}"
