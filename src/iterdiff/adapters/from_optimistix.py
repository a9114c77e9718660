"""Solvers of optimistix: minimisers, root finders, least squares, fixed points."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.adapters.common import BRACKETS_CAVEAT, SIMPLICES_CAVEAT, ForeignState
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.extras import import_extra
from iterdiff.problems.least_squares import MINIMIZATIONS, LeastSquares
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import FixedPoint, Problem, RootFinding, SmoothMinimization

NO_TAGS: frozenset[object] = frozenset()


class _Function(eqx.Module):
    """A function as optimistix calls it: it returns a value and no auxiliary output."""

    function: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, x: PyTree, theta: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.asarray, self.function(x, theta)), None


class OptimistixAlgorithm(Algorithm):
    """A solver of optimistix, run step by step; its own stopping test is not used."""

    solver: eqx.AbstractVar[Any]
    options: eqx.AbstractVar[dict[str, Any]]

    @property
    def differentiable(self) -> bool:
        """Whether the derivative of the steps approximates the derivative of the solution."""
        return not self.caveat

    @property
    def caveat(self) -> str:
        """Why the derivative of the steps is of no use; empty if it is."""
        return caveat_of(self.solver)

    @property
    def lag(self) -> int:
        """1 if a step moves to the point that the previous step has proposed, else 0."""
        return lag_of(self.solver)

    @property
    def last_steps_suffice(self) -> bool:
        """False if the solver's search rejects all steps once it has converged."""
        search = _search_of(self.solver)
        return search is None or isinstance(search, _optimistix().LearningRate)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> ForeignState:
        """Return the state at `x0`."""
        function = _function(problem, self.solver)
        struct, aux_struct = eqx.filter_eval_shape(function, x0, theta)
        memory = self.solver.init(function, x0, theta, self.options, struct, aux_struct, NO_TAGS)
        return ForeignState(x0, memory)

    def step(self, problem: Problem, state: ForeignState, theta: PyTree) -> ForeignState:
        """Return the state after one step."""
        x, memory, _ = self.solver.step(
            _function(problem, self.solver), state.x, theta, self.options, state.memory, NO_TAGS
        )
        return ForeignState(x, memory)


class OptimistixMinimiser(OptimistixAlgorithm):
    """A minimiser of optimistix; made by `from_optimistix`."""

    solver: Any
    options: dict[str, Any]
    accepts: ClassVar[tuple[type[Problem], ...]] = MINIMIZATIONS
    consistent: ClassVar[bool] = True


class OptimistixLeastSquares(OptimistixAlgorithm):
    """A least-squares solver of optimistix; made by `from_optimistix`."""

    solver: Any
    options: dict[str, Any]
    accepts: ClassVar[tuple[type[Problem], ...]] = (LeastSquares, RootFinding, LinearSystem)
    consistent: ClassVar[bool] = True


class OptimistixRootFinder(OptimistixAlgorithm):
    """A root finder of optimistix; made by `from_optimistix`."""

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


def _optimistix() -> ModuleType:
    return import_extra("optimistix", "adapters")


def _layers(solver: Any) -> Iterator[Any]:
    """Yield a solver and the solvers that it wraps, outermost first.

    Optimistix wraps a solver to return its best iterate, or to solve another kind of problem.
    """
    while isinstance(solver, _optimistix().AbstractIterativeSolver):
        yield solver
        solver = getattr(solver, "solver", None)


def innermost(solver: Any) -> Any:
    """Return the solver that takes the steps."""
    return list(_layers(solver))[-1]


def returns_best_iterate(solver: Any) -> bool:
    """Whether the answer is the best iterate instead of the last one."""
    optimistix = _optimistix()
    kinds = (
        optimistix.BestSoFarMinimiser,
        optimistix.BestSoFarLeastSquares,
        optimistix.BestSoFarRootFinder,
        optimistix.BestSoFarFixedPoint,
    )
    return any(isinstance(layer, kinds) for layer in _layers(solver))


def needs_bracket(solver: Any) -> bool:
    """Whether the solver starts from a bracket, and its iterates are points of brackets."""
    return isinstance(innermost(solver), (_optimistix().Bisection, _optimistix().GoldenSearch))


def caveat_of(solver: Any) -> str:
    """Return why the derivative of the steps is of no use; empty if it is."""
    if needs_bracket(solver):
        return BRACKETS_CAVEAT
    return SIMPLICES_CAVEAT if isinstance(innermost(solver), _optimistix().NelderMead) else ""


def lag_of(solver: Any) -> int:
    """Return how many steps before the last one the iterate was made, see `Algorithm.lag`.

    A solver with an ``optimistix.AbstractSearch`` (a line search, a trust region, a fixed step)
    proposes a point at the end of a step; the next step moves there or rejects it.
    """
    return int(_search_of(solver) is not None)


def _search_of(solver: Any) -> Any:
    """Return the solver's ``optimistix.AbstractSearch``, or None."""
    search = getattr(innermost(solver), "search", None)
    return search if isinstance(search, _optimistix().AbstractSearch) else None


def _function(problem: Problem, solver: Any) -> _Function:
    least_squares = isinstance(solver, _optimistix().AbstractLeastSquaresSolver)
    if isinstance(problem, LeastSquares) and least_squares:
        return _Function(problem.plain_residuals)
    if isinstance(problem, SmoothMinimization):
        return _Function(problem.objective)
    if isinstance(problem, FixedPoint):
        return _Function(problem.update)
    return _Function(problem.residual)


def from_optimistix(solver: Any, options: dict[str, Any] | None = None) -> OptimistixAlgorithm:
    """Return a solver of optimistix as an algorithm.

    Minimisers (BFGS, LBFGS, nonlinear CG, gradient descent with line searches, ...) solve a
    `Minimization` or a `LeastSquares`. Least-squares solvers (Levenberg-Marquardt, Dogleg, ...)
    solve a `LeastSquares` with the linear loss, and like root finders (Newton, Chord, ...) a
    `RootFinding` or a `LinearSystem`. Fixed-point solvers solve a `FixedPoint`. One of our steps is
    one step of the solver, at the same cost; rejected trial steps count. Our stopping rules apply,
    not the solver's ``rtol`` and ``atol``.

    ``Bisection`` and ``GoldenSearch`` need ``options={"lower": ..., "upper": ...}``. These two and
    ``NelderMead`` only compare values of the function, so `Unrolled` refuses them.

    In solvers with a line search, a trust region or a fixed step, a step moves to the point that
    the previous step has proposed. With a fixed step, ``Unrolled(last=k)`` then differentiates the
    k proposals that led to the answer, and ``OneStep()`` (Jacobian-free backpropagation, JFB) the
    last one. The other searches reject every proposal once they have converged, so that the last
    steps carry no derivative: these two modes then raise ValueError.

    Limits: what a solver does after its last step is left out, for example the choice of the best
    iterate by ``BestSoFarMinimiser``.

    Parameters
    ----------
    solver : optimistix.AbstractIterativeSolver
        Such as ``optimistix.BFGS(rtol=1e-8, atol=1e-8)``.
    options : dict, optional
        Optimistix's ``options``, the settings of a run. They are not differentiated.

    Returns
    -------
    Algorithm
        For `solve`, `trace` and every mode.

    Raises
    ------
    ImportError
        If optimistix is not installed.
    TypeError
        If `solver` is not an iterative solver of optimistix, or `options` not a dict.
    ValueError
        If the solver needs a bracket and `options` has none.

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
    optimistix = _optimistix()
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise TypeError(f"`options` must be a dict of optimistix's options, not {options!r}.")
    algorithms = {
        optimistix.AbstractMinimiser: OptimistixMinimiser,
        optimistix.AbstractFixedPointSolver: OptimistixFixedPoint,
        optimistix.AbstractRootFinder: OptimistixRootFinder,
        optimistix.AbstractLeastSquaresSolver: OptimistixLeastSquares,
    }
    for kind, algorithm in algorithms.items():
        if isinstance(solver, kind):
            if needs_bracket(solver) and not {"lower", "upper"} <= options.keys():
                name = type(innermost(solver)).__name__
                raise ValueError(
                    f"`options` must hold the bracket from which {name} starts: "
                    "options={'lower': ..., 'upper': ...}."
                )
            return algorithm(solver, options)
    raise TypeError(
        "`solver` must be a minimiser, root finder, least-squares or fixed-point solver of "
        f"optimistix such as optimistix.Newton(1e-8, 1e-8), not {solver!r}."
    )
