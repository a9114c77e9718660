"""Newton's method for root finding, minimisation and fixed points."""

import dataclasses
from typing import ClassVar

import equinox as eqx
import lineax as lx
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_bool
from iterdiff.jaxtools.reverse_only import linearize
from iterdiff.linalg.any_solver import as_linear_solver
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from iterdiff.linalg.handed import HandedFactors
from iterdiff.linalg.solve import Inverse, Method
from iterdiff.problems.least_squares import MINIMIZATIONS
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import FixedPoint, Problem, RootFinding

SMOOTH_PROBLEMS = (RootFinding, *MINIMIZATIONS, LinearSystem, FixedPoint)
"""Problems whose residual has a Jacobian everywhere, which Newton's method needs."""


class NewtonState(State):
    """The iterate, and the factors of the Jacobian at the iterate before it if they are kept."""

    x: PyTree
    factors: HandedFactors | None = None


class Newton(Algorithm):
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
    keep_factors : bool
        Whether to factor the matrix by LU in every step, and keep the factors of the last one, for
        `Implicit(preconditioner="algorithm")`, which sets it.

    Raises
    ------
    TypeError
        If `linear_solver` or `keep_factors` has the wrong type.
    ValueError
        If `keep_factors` and `linear_solver` are both given. When it runs: if factors are to be
        kept of more than 3000 unknowns.

    References
    ----------
    J. Nocedal and S. J. Wright, *Numerical Optimization*, Springer 2006, section 11.1; for the
    derivative: J. C. Gilbert, *Automatic differentiation and iterative processes*, 1992.
    """

    linear_solver: lx.AbstractLinearSolver | None = eqx.field(
        converter=as_linear_solver, default=None
    )
    keep_factors: bool = eqx.field(static=True, default=False)
    accepts: ClassVar[tuple[type[Problem], ...]] = SMOOTH_PROBLEMS
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check the types of the fields."""
        check_bool(keep_factors=self.keep_factors)
        if self.keep_factors and self.linear_solver is not None:
            raise ValueError(
                "`keep_factors` needs the default solver, by LU: leave out `linear_solver`."
            )

    def keeping_factors(self) -> Algorithm:
        """Return the method that keeps its factors; itself with a `linear_solver`."""
        if self.linear_solver is not None:
            return self
        return dataclasses.replace(self, keep_factors=True)

    def last_factors(self, state: NewtonState) -> HandedFactors | None:
        """Return the factors of the last step."""
        return state.factors

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> NewtonState:
        """Return the initial state."""
        del problem, theta
        if not self.keep_factors:
            return NewtonState(x0)
        size, most = tree.size(x0), Limits().dense_max_unknowns
        if size > most:
            raise ValueError(
                f"`keep_factors`: the matrix of {size} unknowns is not factored by default (above "
                f"{most}). Leave it out, or use another `preconditioner` than 'algorithm'."
            )
        return NewtonState(x0, HandedFactors.unknown(size, tree.result_dtype(x0)))

    def step(self, problem: Problem, state: NewtonState, theta: PyTree) -> NewtonState:
        """Return the state after one Newton step."""
        if self.keep_factors:
            return _step_with_factors(problem, state.x, theta)
        return NewtonState(newton_step(problem, state.x, theta, self.linear_solver))


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


def _step_with_factors(problem: Problem, x: PyTree, theta: PyTree) -> NewtonState:
    """Return the state after one Newton step by LU factors, and the factors."""
    residual, tangent = linearize(lambda y: problem.residual(y, theta), x)
    structure = problem.structure_at(x, theta).without_claims()
    always = Limits(factored_max_unknowns=Limits().dense_max_unknowns)
    method = Method(DenseOrKrylov(limits=always))
    solve = Inverse(tangent, x, structure, method, factor=True, unique=False)
    assert solve.factors is not None
    return NewtonState(tree.sub(x, solve(residual)), HandedFactors.of(solve.factors))
