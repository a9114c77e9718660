"""Newton's method for root finding, minimisation and fixed points."""

from typing import ClassVar

import equinox as eqx
import lineax as lx
from jaxtyping import PyTree

from iterdiff.algorithms.base import Iterate, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.reverse_only import linearize
from iterdiff.linalg.any_solver import as_linear_solver
from iterdiff.linalg.solve import Inverse, Method
from iterdiff.problems.least_squares import MINIMIZATIONS
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import FixedPoint, Problem, RootFinding

SMOOTH_PROBLEMS = (RootFinding, *MINIMIZATIONS, LinearSystem, FixedPoint)
"""Problems whose residual has a Jacobian everywhere, which Newton's method needs."""


class Newton(StatelessAlgorithm):
    r"""Newton's method, :math:`x_{t+1} = x_t - A(x_t)^{-1} r(x_t, \theta)`.

    Here :math:`r` is the problem's residual and :math:`A = \partial r / \partial x`. The method
    converges quadratically near a solution with nonsingular :math:`A`; from far away it may
    diverge or cycle. The unrolled derivative converges quadratically too, one step behind the
    iterate. Cost: one linear solve a step. A failed linear solve ends the run with
    `Status.DIVERGED`.

    Parameters
    ----------
    linear_solver : lineax.AbstractLinearSolver or callable, optional
        Solves with :math:`A`; a function ``solve(matvec, b)`` works, too. By default iterdiff
        chooses the method by size and structure, as `Implicit` does.

    Raises
    ------
    TypeError
        If `linear_solver` is neither.

    References
    ----------
    J. Nocedal and S. J. Wright, *Numerical Optimization*, Springer 2006, section 11.1; for the
    derivative: J. C. Gilbert, *Automatic differentiation and iterative processes*, 1992.
    """

    linear_solver: lx.AbstractLinearSolver | None = eqx.field(
        converter=as_linear_solver, default=None
    )
    accepts: ClassVar[tuple[type[Problem], ...]] = SMOOTH_PROBLEMS
    consistent: ClassVar[bool] = True

    def step(self, problem: Problem, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one Newton step."""
        return Iterate(newton_step(problem, state.x, theta, self.linear_solver))


def newton_step(
    problem: Problem,
    x: PyTree,
    theta: PyTree,
    linear_solver: lx.AbstractLinearSolver | None = None,
) -> PyTree:
    """Return `x` after one Newton step on the residual; NaN if the linear solve fails."""
    residual, tangent = linearize(lambda y: problem.residual(y, theta), x)
    structure = problem.structure_at(x, theta)
    solve = Inverse(tangent, x, structure, Method(linear_solver), unique=False)
    return tree.sub(x, solve(residual))
