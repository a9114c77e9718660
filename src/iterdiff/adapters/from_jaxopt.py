"""Solvers of jaxopt."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.adapters.common import BRACKETS, ForeignState
from iterdiff.algorithms.base import Algorithm
from iterdiff.jaxtools.extras import import_extra
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import (
    CompositeMinimization,
    FixedPoint,
    Minimization,
    Problem,
    RootFinding,
)


class JaxoptAlgorithm(Algorithm):
    """A solver of jaxopt, given the problem's function; one step is one ``update``."""

    solver: eqx.AbstractVar[Any]

    def bound(self, problem: Problem) -> Any:
        """Return the solver of the problem's own function."""
        return dataclasses.replace(self.solver, **_functions(problem, self.solver))

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> ForeignState:
        """Return the state at `x0`."""
        solver, arguments = self.bound(problem), _arguments(problem, theta)
        memory = solver.init_state(x0, *arguments)
        after = eqx.filter_eval_shape(solver.update, x0, memory, *arguments)[1]
        return ForeignState(x0, _like(memory, after))

    def step(self, problem: Problem, state: ForeignState, theta: PyTree) -> ForeignState:
        """Return the state after one update."""
        arguments = _arguments(problem, theta)
        return ForeignState(*self.bound(problem).update(state.x, state.memory, *arguments))


class JaxoptMinimiser(JaxoptAlgorithm):
    """A minimiser of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (Minimization,)
    consistent: ClassVar[bool] = True


class JaxoptProximal(JaxoptAlgorithm):
    """A proximal method of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (CompositeMinimization,)
    consistent: ClassVar[bool] = True


class JaxoptRootFinder(JaxoptAlgorithm):
    """A root finder or least-squares solver of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (RootFinding, LinearSystem)
    consistent: ClassVar[bool] = True

    @property
    def differentiable(self) -> bool:
        """Whether the steps are; halving a bracket is not."""
        return not isinstance(self.solver, import_extra("jaxopt", "adapters").Bisection)

    @property
    def caveat(self) -> str:
        """Why not."""
        return "" if self.differentiable else BRACKETS


class JaxoptFixedPoint(JaxoptAlgorithm):
    """A fixed-point solver of jaxopt; made by `from_jaxopt`."""

    solver: Any
    accepts: ClassVar[tuple[type[Problem], ...]] = (FixedPoint,)
    consistent: ClassVar[bool] = True


def _functions(problem: Problem, solver: Any) -> dict[str, Any]:
    """Return the fields of the solver that say what it solves."""
    fields = {field.name for field in dataclasses.fields(solver)}
    plain = {name: False for name in ("has_aux", "value_and_grad") if name in fields}
    if isinstance(problem, Minimization):
        return {"fun": problem.objective, **plain}
    if isinstance(problem, FixedPoint):
        return {"fixed_point_fun": problem.update, **plain}
    if isinstance(problem, CompositeMinimization):

        def prox(x: PyTree, theta: PyTree, scaling: Any = 1.0) -> PyTree:
            return problem.prox(
                x, jnp.asarray(scaling, jnp.result_type(*jax.tree.leaves(x))), theta
            )

        if "projection" in fields:
            return {"fun": problem.smooth, "projection": prox, **plain}
        return {"fun": problem.smooth, "prox": prox, **plain}
    name = next(name for name in ("fun", "optimality_fun", "residual_fun") if name in fields)
    return {name: problem.residual, **plain}


def _arguments(problem: Problem, theta: PyTree) -> tuple[PyTree, ...]:
    return (theta, theta) if isinstance(problem, CompositeMinimization) else (theta,)


def _like(memory: PyTree, after: PyTree) -> PyTree:
    """Give the first state the dtypes (and the presence) that later ones have."""

    def convert(shape: Any, leaf: Any) -> Any:
        if not isinstance(shape, jax.ShapeDtypeStruct):
            return leaf
        if leaf is None:
            return jnp.zeros(shape.shape, shape.dtype)
        return jnp.asarray(leaf, shape.dtype)

    return jax.tree.map(convert, after, memory, is_leaf=lambda leaf: leaf is None)


def from_jaxopt(solver: Any) -> JaxoptAlgorithm:
    """Return a solver of jaxopt as an algorithm.

    Minimisers (``GradientDescent``, ``LBFGS``, ``BFGS``, ``NonlinearCG``, ...) solve a
    `Minimization`, ``ProximalGradient`` and ``ProjectedGradient`` a `CompositeMinimization`, root
    finders and least-squares solvers (``Broyden``, ``Bisection``, ``GaussNewton``,
    ``LevenbergMarquardt``) a `RootFinding` or `LinearSystem`, and ``FixedPointIteration`` and
    ``AndersonAcceleration`` a `FixedPoint`. Each of our steps is one ``update`` of theirs, at its
    cost; our rules decide when to stop.

    The solver is a template: what it was made to solve (``fun`` and the like) is replaced by the
    problem's function, so that the two cannot disagree. A solver with a line search (``LBFGS``,
    ``BFGS``, ...) can be unrolled in reverse mode only if it was made with ``implicit_diff=False``
    (or ``linesearch_unroll=True``, where it has that); else JAX says "Reverse-mode
    differentiation does not work for lax.while_loop". The other ways out are ``Implicit()`` and
    forward mode (``jax.jvp``, ``jax.jacfwd``).

    Parameters
    ----------
    solver : solver of jaxopt
        Such as ``jaxopt.LBFGS(fun)``, with any function.

    Returns
    -------
    Algorithm
        For `solve`, `trace` and every mode.

    Raises
    ------
    ImportError
        If jaxopt is not installed.
    TypeError
        If `solver` is none of these.
    """
    jaxopt = import_extra("jaxopt", "adapters")
    kinds = {
        JaxoptMinimiser: (
            *(jaxopt.GradientDescent, jaxopt.BFGS, jaxopt.LBFGS, jaxopt.NonlinearCG),
            *(jaxopt.OptaxSolver, jaxopt.ArmijoSGD, jaxopt.PolyakSGD),
        ),
        JaxoptProximal: (jaxopt.ProximalGradient, jaxopt.ProjectedGradient),
        JaxoptRootFinder: (
            *(jaxopt.Broyden, jaxopt.Bisection, jaxopt.GaussNewton, jaxopt.LevenbergMarquardt),
        ),
        JaxoptFixedPoint: (jaxopt.FixedPointIteration, jaxopt.AndersonAcceleration),
    }
    for algorithm, classes in kinds.items():  # GradientDescent is a ProximalGradient, too
        if isinstance(solver, classes):
            return algorithm(solver)
    names = ", ".join(kind.__name__ for classes in kinds.values() for kind in classes)
    raise TypeError(
        f"`solver` must be a solver of jaxopt that solves one of our problems step by step "
        f"({names}), not {solver!r}; put @iterdiff.implicit on a function that calls any other."
    )
