"""Differentiate the equation that the solution satisfies."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from iterdiff.accuracy.sensitivity import Equation, Residual, Sensitivity, explicit
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.arguments import check_count, check_linear_solver
from iterdiff.jaxtools.closures import attach_jvp
from iterdiff.jaxtools.raise_if import Throw
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.solve import Method, Structure
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.base import Mode, Outcome
from iterdiff.modes.dependent import refuse_lost
from iterdiff.problems.active_set import regular_at
from iterdiff.problems.problem import Problem


class Implicit(Mode):
    r"""Differentiate the equation that the solution satisfies.

    By the implicit function theorem (IFT), :math:`r(x^*(\theta), \theta) = 0` implies

    .. math::

        \frac{d x^*}{d \theta} = -A^{-1} \frac{\partial r}{\partial \theta}, \qquad
        A = \frac{\partial r}{\partial x}.

    The mode evaluates this formula at the iterate where the run stopped. At a converged point it is
    the *solution derivative*; for a loss of the solution, reverse mode gives the hypergradient.
    Elsewhere its error is of first order in the distance to the solution (of second order with
    `refine`): wrap the mode in `Checked` to be warned. It is *not* the derivative of the iterations
    that ran, and its derivative in `x0` and in the algorithm's hyper-parameters is zero.

    Forward and reverse mode work to any order, under ``jit`` and ``vmap``. Each right-hand side
    costs one linear solve, however many steps have run. Memory does not grow with the steps.

    Parameters
    ----------
    linear_solver : lineax.AbstractLinearSolver, optional
        Solves with ``A``, to its own tolerances. By default the method is chosen by size,
        structure and observed convergence, to a relative residual of at most 1e-10 in float64 and
        1e-5 in float32 (see `iterdiff.linalg.solve`).
    refine : int
        Number of Newton corrections of `x` before it is differentiated and returned. Each costs one
        linear solve and squares the distance to the solution. A correction that fails, or does not
        reduce the norm of the residual, is not made, and none after it.

    Raises
    ------
    TypeError
        If `refine` is not an int or `linear_solver` is not a lineax solver.
    ValueError
        If `refine` is negative.

    Notes
    -----
    Assumes that the residual is continuously differentiable near the solution and ``A`` is
    nonsingular there. A linear solve that fails raises, or gives NaN with ``throw=False``.

    HOAG (Pedregosa 2016) is this mode inside an outer optimiser whose tolerances decrease;
    `derivative_error` measures the error that such tolerances are meant to bound.

    References
    ----------
    M. Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022;
    F. Pedregosa, *Hyperparameter optimization with approximate gradient*, ICML 2016.
    """

    linear_solver: lx.AbstractLinearSolver | None = None
    refine: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        """Check the types and ranges of the fields."""
        check_count("refine", self.refine, least=0)
        check_linear_solver(self.linear_solver)

    @property
    def corrects_answer(self) -> bool:
        """Whether the mode returns another answer than it was given."""
        return self.refine > 0

    def check(self, stop: StoppingRule) -> None:
        """Accept every stopping rule."""
        del stop

    def solve(self, task: Task, *, throw: Throw) -> Outcome:
        """Run without a derivative, then attach the implicit one."""
        end = self.primal(task)
        x = self.attach(task.problem, end.state.x, task.theta, throw=throw)
        return Outcome(x, end.steps, end.status)

    def attach(self, problem: Problem, x: PyTree, theta: PyTree, *, throw: Throw) -> PyTree:
        """Return `x`, after the Newton corrections, with the implicit derivative in `theta`.

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
        problem, dependent = regular_at(problem, x, theta)
        residual, inputs = explicit(problem, x, theta)
        structure = problem.structure_at(x, theta)
        if self.refine:
            x = self._refined(residual, x, jax.lax.stop_gradient(inputs), structure)

        def rule(x, perturbed):
            in_primals = lambda y, primals: residual(y, perturbed.rebuild(primals)[0])  # noqa: E731
            equation = Equation(in_primals, x, perturbed.primals, structure)
            tangent = equation.derivative(perturbed.tangents, Method(self.linear_solver, throw))
            if dependent is None:
                return tangent
            return refuse_lost(tangent, residual, x, perturbed, throw)

        return attach_jvp(x, (inputs, dependent), rule)

    def _refined(
        self, residual: Residual, x: PyTree, inputs: PyTree, structure: Structure
    ) -> PyTree:
        """Return `x` after Newton corrections, as long as each reduces the residual."""

        def unfinished(carry):
            _, count, reduced = carry
            return reduced & (count < self.refine)

        def correct(carry):
            x, count, _ = carry
            equation = Equation(residual, x, inputs, structure)
            at = Sensitivity(equation, Method(self.linear_solver), factor=False)
            new = tree.sub(x, at.inverse(at.value))
            reduced = tree.norm(residual(new, inputs)) < tree.norm(at.value)  # False for NaN
            return tree.where(reduced, new, x), count + 1, reduced

        return manual_axes.while_loop(unfinished, correct, (x, jnp.int32(0), jnp.array(True)))[0]

    def answer(self, task: Task, x: PyTree, *, throw: Throw) -> PyTree:
        """Return `x` with its derivative, and without further Newton corrections."""
        return dataclasses.replace(self, refine=0).attach(task.problem, x, task.theta, throw=throw)

    def tangents(self, task: Task, directions: PyTree) -> "ImplicitTangents":
        """Return the tangents ``-A(x_t)^{-1} r_theta(x_t) v``."""
        return ImplicitTangents(self, task.problem, task.theta, directions)


class ImplicitTangents(Tangents):
    """Implicit tangents at each iterate; nothing is carried along."""

    mode: Implicit
    problem: Problem
    theta: PyTree
    directions: PyTree

    def init(self, state: PyTree) -> PyTree:
        """Return nothing."""
        del state

    def update(self, carry: PyTree, state: PyTree) -> PyTree:
        """Return nothing."""
        del carry, state

    def value(self, carry: PyTree, state: PyTree) -> PyTree:
        """Return the implicit tangents at ``state.x``."""
        del carry
        floating, rest = floating_part(self.theta)

        def attached(floating):
            theta = eqx.combine(floating, rest)
            return self.mode.attach(self.problem, state.x, theta, throw=False)

        return jax.vmap(lambda v: jax.jvp(attached, (floating,), (v,))[1])(self.directions)
