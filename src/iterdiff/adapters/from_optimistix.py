"""Minimisers, root finders, least-squares and fixed-point solvers of optimistix."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.adapters.common import BRACKETS, SIMPLICES, ForeignState
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.extras import import_extra
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import FixedPoint, Minimization, Problem, RootFinding

NO_TAGS: frozenset[object] = frozenset()


class _Function(eqx.Module):
    """What optimistix calls ``fn``: it returns its value and nothing beside it."""

    function: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, x: PyTree, theta: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.asarray, self.function(x, theta)), None


class OptimistixAlgorithm(Algorithm):
    """A solver of optimistix, driven step by step; its own stopping test is not asked."""

    solver: eqx.AbstractVar[Any]
    options: eqx.AbstractVar[dict[str, Any]]

    @property
    def differentiable(self) -> bool:
        """Whether the steps are; those that only compare values of the function are not."""
        return not self.caveat

    @property
    def caveat(self) -> str:
        """Why not."""
        return why_not_differentiable(self.solver)

    @property
    def lag(self) -> int:
        """1 where a step moves to the point that the step before has proposed."""
        return lag_of(self.solver)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> ForeignState:
        """Return the state at `x0`."""
        function = _function(problem)
        struct, aux_struct = eqx.filter_eval_shape(function, x0, theta)
        memory = self.solver.init(function, x0, theta, self.options, struct, aux_struct, NO_TAGS)
        return ForeignState(x0, memory)

    def step(self, problem: Problem, state: ForeignState, theta: PyTree) -> ForeignState:
        """Return the state after one step."""
        x, memory, _ = self.solver.step(
            _function(problem), state.x, theta, self.options, state.memory, NO_TAGS
        )
        return ForeignState(x, memory)


class OptimistixMinimiser(OptimistixAlgorithm):
    """A minimiser of optimistix; made by `from_optimistix`."""

    solver: Any
    options: dict[str, Any]
    accepts: ClassVar[tuple[type[Problem], ...]] = (Minimization,)
    consistent: ClassVar[bool] = True


class OptimistixRootFinder(OptimistixAlgorithm):
    """A root finder or least-squares solver of optimistix; made by `from_optimistix`."""

    solver: Any
    options: dict[str, Any]
    accepts: ClassVar[tuple[type[Problem], ...]] = (RootFinding, LinearSystem)
    consistent: ClassVar[bool] = True


class OptimistixFixedPoint(OptimistixAlgorithm):
    """A fixed-point solver of optimistix; made by `from_optimistix`."""

    solver: Any
    options: dict[str, Any]
    accepts: ClassVar[tuple[type[Problem], ...]] = (FixedPoint,)
    consistent: ClassVar[bool] = True


def _bracketing() -> tuple[type, ...]:
    optimistix = import_extra("optimistix", "adapters")
    return optimistix.Bisection, optimistix.GoldenSearch


def unwrapped(solver: Any) -> Any:
    """Return the solver that takes the steps.

    Optimistix wraps one that is to keep its best iterate, or that solves another kind of problem.
    """
    inner = getattr(solver, "solver", None)
    wraps = isinstance(inner, import_extra("optimistix", "adapters").AbstractIterativeSolver)
    return unwrapped(inner) if wraps else solver


def keeps_the_best(solver: Any) -> bool:
    """Return whether the answer is the best iterate, not the last one."""
    optimistix = import_extra("optimistix", "adapters")
    kinds = (
        *(optimistix.BestSoFarMinimiser, optimistix.BestSoFarLeastSquares),
        *(optimistix.BestSoFarRootFinder, optimistix.BestSoFarFixedPoint),
    )
    inner = getattr(solver, "solver", None)
    return isinstance(solver, kinds) or (inner is not None and keeps_the_best(inner))


def why_not_differentiable(solver: Any) -> str:
    """Return why the derivative of the steps is of no use; empty where it is."""
    inner = unwrapped(solver)
    if isinstance(inner, _bracketing()):
        return BRACKETS
    return SIMPLICES if isinstance(inner, import_extra("optimistix", "adapters").NelderMead) else ""


def lag_of(solver: Any) -> int:
    """Return how many steps before the last one the iterate was made, see `Algorithm.lag`.

    Solvers with a search (a line search, a trust region, or a fixed step) propose a point at the
    end of a step, and the next one goes there or rejects it.
    """
    return 1 if hasattr(unwrapped(solver), "search") else 0


def _function(problem: Problem) -> _Function:
    if isinstance(problem, Minimization):
        return _Function(problem.objective)
    if isinstance(problem, FixedPoint):
        return _Function(problem.update)
    return _Function(problem.residual)


def from_optimistix(solver: Any, options: dict[str, Any] | None = None) -> OptimistixAlgorithm:
    """Return a solver of optimistix as an algorithm.

    Minimisers (BFGS, LBFGS, nonlinear CG, gradient descent with line searches, ...) solve a
    `Minimization`; root finders and least-squares solvers (Newton, Chord, Dogleg,
    Levenberg-Marquardt, ...) a `RootFinding` or `LinearSystem`; fixed-point solvers a
    `FixedPoint`. Each of our steps is one of theirs, rejected trial steps included; when to stop is
    decided by our rules, not by the solver's ``rtol`` and ``atol``. A step costs what theirs does.

    ``Bisection`` and ``GoldenSearch`` need ``options={"lower": ..., "upper": ...}``. They and
    ``NelderMead``, which compare values of the function and do no more, are not unrolled. Where a
    step moves to the point that the step before has proposed (solvers with a line search, a trust
    region or a fixed step), ``Unrolled(last=k)`` differentiates the k proposals that led to the
    answer; one that the search rejected adds nothing. What a solver does after its last step
    (``BestSoFarMinimiser`` then picks the best iterate) is left out.

    Parameters
    ----------
    solver : optimistix.AbstractIterativeSolver
        Such as ``optimistix.BFGS(rtol=1e-8, atol=1e-8)``.
    options : dict, optional
        What optimistix calls so: settings of one run. Constants, as far as derivatives go.

    Returns
    -------
    Algorithm
        For `solve`, `trace` and every mode.

    Raises
    ------
    ImportError
        If optimistix is not installed.
    TypeError
        If `solver` is none of its iterative solvers.
    ValueError
        If it needs `options` that are not given.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optimistix
    >>> import iterdiff as itd
    >>> problem = itd.FixedPoint(lambda x, theta: theta * jnp.cos(x))
    >>> picard = itd.adapters.from_optimistix(optimistix.FixedPointIteration(1e-8, 1e-8))
    >>> def solution(theta):
    ...     return itd.solve(problem, picard, jnp.array(0.0), theta, stop=itd.Steps(60)).x
    >>> jax.grad(solution)(0.5)
    Array(0.7395, dtype=float...)
    """
    optimistix = import_extra("optimistix", "adapters")
    options = {} if options is None else options
    if isinstance(unwrapped(solver), _bracketing()) and not {"lower", "upper"} <= set(options):
        raise ValueError(
            f"`options` must hold the bracket that {type(unwrapped(solver)).__name__} starts from: "
            "options={'lower': ..., 'upper': ...}."
        )
    if isinstance(solver, optimistix.AbstractMinimiser):
        return OptimistixMinimiser(solver, options)
    if isinstance(solver, optimistix.AbstractFixedPointSolver):
        return OptimistixFixedPoint(solver, options)
    if isinstance(solver, optimistix.AbstractRootFinder | optimistix.AbstractLeastSquaresSolver):
        return OptimistixRootFinder(solver, options)
    raise TypeError(
        "`solver` must be a minimiser, root finder, least-squares or fixed-point solver of "
        f"optimistix such as optimistix.Newton(1e-8, 1e-8), not {solver!r}."
    )
