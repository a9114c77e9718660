"""Differentiate the equation that the solution satisfies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import PyTree

from iterdiff.accuracy.sensitivity import explicit
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count
from iterdiff.jaxtools.closures import perturbed
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.solve import inverse
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.base import Mode, Outcome
from iterdiff.problems.problem import Problem, structure_of


class Implicit(Mode):
    r"""Differentiate the equation that the solution satisfies.

    From :math:`r(x^*(\theta), \theta) = 0` follows

    .. math::

        \frac{d x^*}{d \theta} = -A^{-1} \frac{\partial r}{\partial \theta}, \qquad
        A = \frac{\partial r}{\partial x},

    evaluated at the iterate where the run stopped. It is the *solution derivative* at a
    converged point, and wrong to first order in the distance to the solution elsewhere (to
    second order with `refine`): wrap it in `Checked` to be told. It is *not* the derivative of
    the iterations that ran, and the derivative in `x0` and in the algorithm's
    hyper-parameters is zero.

    Forward and reverse mode, to any order, under ``jit`` and ``vmap``; one linear solve per
    right-hand side, whatever the number of steps was. Memory does not depend on the steps.

    Parameters
    ----------
    linear_solver : lineax.AbstractLinearSolver, optional
        Solves with ``A``, to its own tolerances. By default the method is chosen by size,
        structure and observed convergence, to a relative residual of 1e-10 in float64 and 1e-5
        in float32 or better (see `iterdiff.linear`).
    refine : int
        Newton corrections of `x` before it is differentiated and returned; each costs one
        linear solve and squares the distance to the solution.

    Raises
    ------
    TypeError, ValueError
        If `refine` is not an int, or negative, or `linear_solver` is no lineax solver.

    Notes
    -----
    Assumes that the residual is continuously differentiable near the solution and ``A``
    nonsingular there (implicit function theorem). A linear solve that fails raises, or with
    ``throw=False`` gives NaN.

    References
    ----------
    M. Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022.
    """

    linear_solver: lx.AbstractLinearSolver | None = None
    refine: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        """Refuse what is no linear solver and no count."""
        check_count("refine", self.refine, least=0)
        solver = self.linear_solver
        if solver is not None and not isinstance(solver, lx.AbstractLinearSolver):
            raise TypeError(
                f"`linear_solver` must be a lineax solver instance such as lineax.CG(1e-8, 1e-8), "
                f"not {solver!r}."
            )

    def check(self, stop: StoppingRule) -> None:
        """Accept every stopping rule."""
        del stop

    def solve(self, task: Task, *, throw: bool) -> Outcome:
        """Run without a derivative, then attach the implicit one."""
        end = self.primal(task)
        x = self.attach(task.problem, end.state.x, task.theta, throw=throw)
        return Outcome(x, end.steps, end.status)

    def attach(self, problem: Problem, x: PyTree, theta: PyTree, *, throw: bool) -> PyTree:
        """Return `x` (after the Newton corrections) with the implicit derivative in `theta`.

        Parameters
        ----------
        problem : Problem
            Owns the residual.
        x : pytree of real floating arrays
            A solution, however it was found; its own derivative is cut.
        theta : pytree
            The parameters.
        throw : bool
            Whether a linear solve that fails raises.
        """
        x = jax.lax.stop_gradient(x)
        residual, inputs = explicit(problem, x, theta)
        for _ in range(self.refine):
            x = jax.lax.stop_gradient(self._corrected(residual, problem, x, inputs))
        return self._attach(residual, problem, x, inputs, throw)

    def _corrected(self, residual: Callable, problem: Problem, x: PyTree, inputs: Any) -> PyTree:
        value, tangent = jax.linearize(lambda y: residual(y, inputs), x)
        solve = inverse(tangent, x, structure_of(problem), solver=self.linear_solver)
        return tree.sub(x, solve(value))

    def _attach(
        self, residual: Callable, problem: Problem, x: PyTree, inputs: Any, throw: bool
    ) -> PyTree:
        @jax.custom_jvp
        def solution(inputs, x):
            del inputs
            return x

        def rule(primals, tangents):
            inputs, x = primals
            x = solution(inputs, x)  # so that A, below, moves with theta: higher orders
            moving, moving_tangents, fixed = perturbed(inputs, tangents[0])
            if not moving:
                return x, tree.zeros_like(x)

            def in_inputs(*moving):
                return residual(x, fixed(moving))

            _, pushed = jax.jvp(in_inputs, tuple(moving), tuple(moving_tangents))
            tangent = jax.linearize(lambda y: residual(y, inputs), x)[1]
            solve = inverse(
                tangent, x, structure_of(problem), solver=self.linear_solver, throw=throw
            )
            return x, tree.scale(-1.0, solve(pushed))

        solution.defjvp(rule, symbolic_zeros=True)
        return solution(inputs, x)

    def answer(self, task: Task, x: PyTree, *, throw: bool) -> PyTree:
        """Return `x`, its derivative attached; what the answer was corrected by is in it."""
        return dataclasses.replace(self, refine=0).attach(task.problem, x, task.theta, throw=throw)

    def tangents(self, task: Task, directions: PyTree) -> "ImplicitTangents":
        """Follow ``-A(x_t)^{-1} r_theta(x_t) v``."""
        return ImplicitTangents(self, task.problem, task.theta, directions)


class ImplicitTangents(Tangents):
    """Implicit tangents at each iterate; nothing is carried."""

    mode: Implicit
    problem: Problem
    theta: PyTree
    directions: PyTree

    def init(self, state: Any) -> PyTree:
        """Return nothing."""
        del state

    def update(self, carry: PyTree, state: Any) -> PyTree:
        """Return nothing."""
        del carry, state

    def value(self, carry: PyTree, state: Any) -> PyTree:
        """Return the implicit tangents at ``state.x``."""
        del carry
        moving, rest = floating_part(self.theta)

        def attached(moving):
            theta = eqx.combine(moving, rest)
            return self.mode.attach(self.problem, state.x, theta, throw=False)

        return jax.vmap(lambda v: jax.jvp(attached, (moving,), (v,))[1])(self.directions)
