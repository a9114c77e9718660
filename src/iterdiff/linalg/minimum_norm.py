"""Solutions of least norm of singular systems that have solutions."""

from typing import Any

import lineax as lx
from jaxtyping import PyTree

from iterdiff.linalg.any_solver import AnySolver
from iterdiff.linalg.residual_check import Answer, CheckedSolver, default_rtol

SVD_MAX_UNKNOWNS = 500
"""Larger systems are solved by LSMR: a singular value decomposition takes 20 n^3 operations."""

ADVICE = (
    "The linear solve behind an implicit derivative failed with `singular='least_squares'`: the "
    "system has no solution, because the loss depends on what the equation leaves open (in "
    "reverse mode), or the solution does not exist for nearby parameters. Use a loss that does not "
    "see the null space of the Jacobian, or add the equations that make the solution unique."
)


class MinimumNorm(CheckedSolver):
    """Solve a system, which may be singular, by the solution of least norm.

    By a singular value decomposition up to `SVD_MAX_UNKNOWNS`, and by LSMR above. Singular values
    below `default_rtol` of the largest count as zero. The answer has to solve the system.
    """

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple:
        """Return the state of the solver that the size asks for, and that solver."""
        vector = operator.in_structure()
        rtol = default_rtol(vector.dtype)
        if operator.in_size() <= SVD_MAX_UNKNOWNS:
            solver = AnySolver(lx.SVD(rcond=rtol))
        else:
            solver = AnySolver(lx.LSMR(rtol=rtol, atol=rtol))
        return solver.init(operator, options), solver

    def compute(self, state: tuple, vector: PyTree, options: dict[str, Any]) -> Answer:
        """Return the answer; a failure unless it solves the system."""
        inner, solver = state
        return solver.compute(inner, vector, options)

    def transpose(self, state: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the state for the transposed operator."""
        inner, solver = state
        transposed, options = solver.transpose(inner, options)
        return (transposed, solver), options

    def conj(self, state: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return `state`: the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return False."""
        return False

    @property
    def advice(self) -> str:
        """What the error says."""
        return ADVICE
