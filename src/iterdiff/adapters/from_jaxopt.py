"""Solvers of jaxopt: minimisers, proximal methods, root finders, fixed points, programs."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.adapters.common import BRACKETS_CAVEAT, ForeignState
from iterdiff.algorithms.admm import dual_vector, stacked
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.extras import import_extra
from iterdiff.problems.constrained import PrimalDual
from iterdiff.problems.least_squares import MINIMIZATIONS, LeastSquares
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import (
    CompositeMinimization,
    FixedPoint,
    Problem,
    RootFinding,
    SmoothMinimization,
)
from iterdiff.problems.quadratic_program import QuadraticProgram


class JaxoptAlgorithm(Algorithm):
    """A solver of jaxopt with the problem's functions; one step is one ``update``."""

    solver: eqx.AbstractVar[Any]

    @property
    def lag(self) -> int:
        """1 if an update moves along the gradient that the previous one computed, else 0."""
        jaxopt = import_extra("jaxopt", "adapters")
        lagging = (jaxopt.BFGS, jaxopt.LBFGS, jaxopt.NonlinearCG, jaxopt.Broyden)
        return int(isinstance(self.solver, lagging))

    @property
    def last_steps_suffice(self) -> bool:
        """False if the solver rejects all steps once it has converged, and so does not move."""
        return not isinstance(self.solver, import_extra("jaxopt", "adapters").LevenbergMarquardt)

    def bound(self, problem: Problem) -> Any:
        """Return the solver with the problem's functions in place of its own."""
        return dataclasses.replace(self.solver, **_solver_fields(problem, self.solver))

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> ForeignState:
        """Return the state at `x0`."""
        solver, arguments = self.bound(problem), _arguments(problem, theta)
        memory = solver.init_state(x0, *arguments)
        after = eqx.filter_eval_shape(solver.update, x0, memory, *arguments)[1]
        return ForeignState(x0, _with_dtypes_of(after, memory))

    def step(self, problem: Problem, state: ForeignState, theta: PyTree) -> ForeignState:
        """Return the state after one update."""
        arguments = _arguments(problem, theta)
        return ForeignState(*self.bound(problem).update(state.x, state.memory, *arguments))


class JaxoptMinimiser(JaxoptAlgorithm):
    """A minimiser of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = MINIMIZATIONS
    consistent: ClassVar[bool] = True


class JaxoptProximal(JaxoptAlgorithm):
    """A proximal method of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (CompositeMinimization,)
    consistent: ClassVar[bool] = True


class JaxoptLeastSquares(JaxoptAlgorithm):
    """A least-squares solver of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (LeastSquares, RootFinding, LinearSystem)
    consistent: ClassVar[bool] = True


class JaxoptRootFinder(JaxoptAlgorithm):
    """A root finder of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (RootFinding, LinearSystem)
    consistent: ClassVar[bool] = True

    @property
    def differentiable(self) -> bool:
        """Whether the derivative of the steps approximates the derivative of the solution."""
        return not isinstance(self.solver, import_extra("jaxopt", "adapters").Bisection)

    @property
    def caveat(self) -> str:
        """Why the derivative of the steps is of no use; empty if it is."""
        return "" if self.differentiable else BRACKETS_CAVEAT


class JaxoptFixedPoint(JaxoptAlgorithm):
    """A fixed-point solver of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (FixedPoint,)
    consistent: ClassVar[bool] = True


class JaxoptProgram(Algorithm):
    """jaxopt's OSQP; made by `from_jaxopt`. The multipliers of the iterate are its dual variables.

    Attributes
    ----------
    solver : jaxopt.BoxOSQP
        With its own functions left out: the program's matrices are passed.
    """

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (QuadraticProgram,)
    consistent: ClassVar[bool] = True

    def init(self, problem: QuadraticProgram, x0: PrimalDual, theta: PyTree) -> ForeignState:
        """Return the state at `x0`."""
        arguments = _program_arguments(problem, x0, theta)
        lower, upper = arguments[2]
        values = jnp.clip(arguments[1] @ tree.to_vector(x0.x), lower, upper)
        memory = values, self.solver.init_state(_kkt(x0, values), *arguments)
        after = eqx.filter_eval_shape(self._updated, x0, memory, arguments)[1]
        return ForeignState(x0, _with_dtypes_of(after, memory))

    def step(self, problem: QuadraticProgram, state: ForeignState, theta: PyTree) -> ForeignState:
        """Return the state after one update."""
        arguments = _program_arguments(problem, state.x, theta)
        return ForeignState(*self._updated(state.x, state.memory, arguments))

    def _updated(self, x: PrimalDual, memory: tuple, arguments: tuple) -> tuple[PrimalDual, tuple]:
        values, inner = memory
        found, inner = self.solver.update(_kkt(x, values), inner, *arguments)
        vector, values = found.primal
        multipliers = x.multipliers
        if values.size:
            multipliers = tree.from_vector(found.dual_eq, multipliers)
        return PrimalDual(tree.from_vector(vector, x.x), multipliers), (values, inner)


def _program_arguments(problem: QuadraticProgram, at: PrimalDual, theta: PyTree) -> tuple:
    """Return a program as BoxOSQP's ``(Q, c)``, the matrix, and its lower and upper bounds."""
    program = stacked(problem, at, theta)
    lower = jnp.where(program.equal, program.upper, -jnp.inf)
    return (program.Q, program.c), program.M, (lower, program.upper)


def _kkt(at: PrimalDual, values: Any) -> Any:
    """Return an iterate as jaxopt stores it."""
    dual = dual_vector(at.multipliers, values.dtype)
    sides = jnp.maximum(dual, 0), jnp.maximum(-dual, 0)
    kind = import_extra("jaxopt.base", "adapters").KKTSolution
    return kind((tree.to_vector(at.x), values), dual, sides)


def _solver_fields(problem: Problem, solver: Any) -> dict[str, Any]:
    """Return values for the solver's fields that hold functions of the problem."""
    fields = {field.name for field in dataclasses.fields(solver)}

    def first_field(*names: str) -> str:
        return next(name for name in names if name in fields)

    # Our functions return a value only, without auxiliary output or gradient.
    values: dict[str, Any] = {name: False for name in fields & {"has_aux", "value_and_grad"}}
    if isinstance(problem, CompositeMinimization):
        values |= {"fun": problem.smooth, first_field("projection", "prox"): _jaxopt_prox(problem)}
    elif isinstance(problem, LeastSquares) and "residual_fun" in fields:
        values["residual_fun"] = problem.plain_residuals
    elif isinstance(problem, SmoothMinimization):
        values["fun"] = problem.objective
    elif isinstance(problem, FixedPoint):
        values["fixed_point_fun"] = problem.update
    else:
        values[first_field("fun", "optimality_fun", "residual_fun")] = problem.residual
    return values


def _jaxopt_prox(problem: CompositeMinimization) -> Callable[..., PyTree]:
    """Return the problem's prox with the arguments in jaxopt's order."""

    def prox(x: PyTree, theta: PyTree, scaling: Any = 1.0) -> PyTree:
        dtype = jnp.result_type(*jax.tree.leaves(x))
        return problem.prox(x, jnp.asarray(scaling, dtype), theta)

    return prox


def _arguments(problem: Problem, theta: PyTree) -> tuple[PyTree, ...]:
    """Return the arguments of ``update`` after the state: a composite problem takes two."""
    return (theta, theta) if isinstance(problem, CompositeMinimization) else (theta,)


def _with_dtypes_of(after: PyTree, memory: PyTree) -> PyTree:
    """Return the first state with the dtypes of the state after one step, `after`."""

    def convert(shape: Any, leaf: Any) -> Any:
        is_array = isinstance(shape, jax.ShapeDtypeStruct)
        return jnp.asarray(leaf, shape.dtype) if is_array else leaf

    return jax.tree.map(convert, after, memory)


def from_jaxopt(solver: Any) -> JaxoptAlgorithm | JaxoptProgram:
    """Return a solver of jaxopt as an algorithm.

    Minimisers (``GradientDescent``, ``LBFGS``, ``BFGS``, ``NonlinearCG``, ...) solve a
    `Minimization` or a `LeastSquares`; ``ProximalGradient`` and ``ProjectedGradient`` solve a
    `CompositeMinimization`; ``GaussNewton`` and ``LevenbergMarquardt`` solve a `LeastSquares` with
    the linear loss, and like the root finders (``Broyden``, ``Bisection``) a `RootFinding` or a
    `LinearSystem`;
    ``FixedPointIteration`` and ``AndersonAcceleration`` solve a `FixedPoint`; ``OSQP`` and
    ``BoxOSQP`` solve a `QuadraticProgram`, and their dual variables are ``solution.multipliers``.
    One of our steps is one ``update`` of the solver, at the same cost. Our stopping rules apply.

    The solver is a template: the problem's function replaces its own (``fun`` and the like), so
    the two cannot disagree.

    Limits: a solver with a line search (``LBFGS``, ``BFGS``, ...) can be unrolled in reverse mode
    only if it was made with ``implicit_diff=False`` (or ``linesearch_unroll=True``, if it has this
    option). Otherwise JAX raises "Reverse-mode differentiation does not work for lax.while_loop".
    ``Implicit()`` and forward mode (``jax.jvp``, ``jax.jacfwd``) always work.

    Parameters
    ----------
    solver : solver of jaxopt
        Such as ``jaxopt.LBFGS(fun)``; `fun` is not used and may be None.

    Returns
    -------
    Algorithm
        For `solve`, `trace` and every mode.

    Raises
    ------
    ImportError
        If jaxopt is not installed.
    TypeError
        If `solver` is not one of the solvers above.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxopt
    >>> import iterdiff as itd
    >>> problem = itd.FixedPoint(lambda x, theta: theta * jnp.cos(x))
    >>> picard = itd.adapters.from_jaxopt(jaxopt.FixedPointIteration(None))
    >>> def solution(theta):
    ...     return itd.solve(problem, picard, jnp.array(0.0), theta, stop=itd.Steps(60)).x
    >>> jax.grad(solution)(0.5)
    Array(0.7395, dtype=float...)
    """
    jaxopt = import_extra("jaxopt", "adapters")
    kinds = {
        JaxoptMinimiser: (
            jaxopt.GradientDescent,
            jaxopt.BFGS,
            jaxopt.LBFGS,
            jaxopt.NonlinearCG,
            jaxopt.OptaxSolver,
            jaxopt.ArmijoSGD,
            jaxopt.PolyakSGD,
        ),
        JaxoptProximal: (jaxopt.ProximalGradient, jaxopt.ProjectedGradient),
        JaxoptRootFinder: (jaxopt.Broyden, jaxopt.Bisection),
        JaxoptLeastSquares: (jaxopt.GaussNewton, jaxopt.LevenbergMarquardt),
        JaxoptFixedPoint: (jaxopt.FixedPointIteration, jaxopt.AndersonAcceleration),
    }
    if isinstance(solver, jaxopt.OSQP):  # it only transforms its arguments for BoxOSQP
        solver = solver._box_osqp
    if isinstance(solver, jaxopt.BoxOSQP):
        return JaxoptProgram(
            dataclasses.replace(solver, matvec_Q=None, matvec_A=None, fun=None, jit=True)
        )
    # The order matters: jaxopt.GradientDescent is a subclass of jaxopt.ProximalGradient.
    for algorithm, classes in kinds.items():
        if isinstance(solver, classes):
            return algorithm(solver)
    classes = [kind for classes in kinds.values() for kind in classes]
    names = ", ".join(kind.__name__ for kind in (*classes, jaxopt.OSQP, jaxopt.BoxOSQP))
    raise TypeError(
        f"`solver` must be one of jaxopt's {names}, not {solver!r}. "
        "Put @iterdiff.implicit on a function that calls any other solver."
    )
