"""Differentiate the equation that the solution satisfies."""

import dataclasses
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from iterdiff.accuracy.preconditioners import (
    OfTheRun,
    Preconditioner,
    applied,
    as_preconditioner,
)
from iterdiff.accuracy.sensitivity import Equation, Helpers, Sensitivity, explicit
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.arguments import check_bool, check_count, check_word
from iterdiff.jaxtools.raise_if import Throw
from iterdiff.jaxtools.tree import floating_part
from iterdiff.linalg.any_solver import as_linear_solver
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov
from iterdiff.linalg.handed import HandedFactors
from iterdiff.linalg.minimum_norm import MinimumNorm
from iterdiff.linalg.solve import Method
from iterdiff.loop.run import stop_gradient
from iterdiff.loop.stopping import StoppingRule
from iterdiff.loop.task import Tangents, Task
from iterdiff.modes.adjoint_state import helpers_from
from iterdiff.modes.base import Mode, Outcome
from iterdiff.modes.implicit_rule import attached
from iterdiff.problems.least_squares import without_curvature
from iterdiff.problems.problem import Problem

Singular = Literal["raise", "least_squares"]


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
    linear_solver : lineax.AbstractLinearSolver or callable, optional
        Solves with ``A``, to its own tolerances: a solver of lineax, or any function
        ``solve(matvec, b)`` that returns the solution for a vector `b` of shape (n,). In reverse
        mode it is called with the product with the transpose. By default the method is chosen by
        size, structure and observed convergence, to a relative residual of at most 1e-10 in
        float64 and 1e-5 in float32 (see `iterdiff.linalg.solve`). Every answer is checked.
    refine : int
        Number of Newton corrections of `x` before it is differentiated and returned. Each costs one
        linear solve and squares the distance to the solution. A correction that fails, or does not
        reduce the norm of the residual, is not made, and none after it.
    preconditioner : callable, "diagonal", "block" or "algorithm", optional
        ``preconditioner(problem, x, theta)`` returns a function ``v -> M v`` that approximates
        ``A^{-1} v``, for iterative solvers (ours above 500 unknowns, and lineax's). JAX transposes
        it for the adjoint solve. It changes how long a solve takes, never its answer. With
        "diagonal", the inverse diagonal of ``A`` is found by 31 products; with "block", the inverse
        of the blocks that the entries along the last axis of each leaf make (of up to 16). With
        "algorithm", it is what the algorithm held at the end of `solve`: the inverse of `Broyden`,
        the factors of `Chord`, or those of the last step of `Newton`, by which the derivative needs
        no factors of its own.
    guess : AdjointState or pytree, optional
        Where iterative adjoint solves start, like `x`, or what an earlier derivative left to this
        one: see `value_and_grad_with_state`. Forward mode uses the factors of a state only.
    singular : {"raise", "least_squares"}
        What happens if ``A`` is singular. With "least_squares", the solution of least norm is
        taken, if the system has one: a gauge or a conserved quantity makes ``A`` singular, and
        the gradient of a loss that does not depend on it exists. If the loss depends on it, the
        solve fails.
    gauss_newton : bool
        Whether to leave the curvature of the residuals out of the Hessian of a `LeastSquares`.
        The derivative is then wrong unless the residuals vanish at the solution or are linear in
        `x`; `Checked` and `derivative_error` tell by how much.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `refine` is negative, a word is unknown, or `singular` and `linear_solver` are both
        given. When it is differentiated: if `guess`, or what the preconditioner returns, is not
        like `x`.

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

    linear_solver: lx.AbstractLinearSolver | None = eqx.field(
        converter=as_linear_solver, default=None
    )
    refine: int = eqx.field(static=True, default=0)
    preconditioner: Preconditioner | None = eqx.field(converter=as_preconditioner, default=None)
    guess: PyTree = None
    singular: Singular = eqx.field(static=True, default="raise")
    gauss_newton: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        """Check the types and ranges of the fields."""
        check_count("refine", self.refine, least=0)
        check_word("singular", self.singular, get_args(Singular))
        check_bool(gauss_newton=self.gauss_newton)
        if self.singular != "raise" and self.linear_solver is not None:
            raise ValueError(
                "`singular` chooses the solver: leave out `linear_solver`, or pass a least-squares "
                "solver of lineax as `linear_solver` alone."
            )

    @property
    def method(self) -> Method:
        """How systems are solved, without helpers."""
        if self.singular == "least_squares":
            return Method(MinimumNorm(), unique=False)
        return Method(self.linear_solver)

    @property
    def is_default(self) -> bool:
        """Whether the derivative is that of `Implicit()`, solved for as `policy` does."""
        foreign = self.linear_solver is not None and self.policy is None
        approximate = self.gauss_newton or self.singular != "raise"
        return not (foreign or approximate)

    @property
    def policy(self) -> DenseOrKrylov | None:
        """The `linear_solver`, if it is the default one with other settings."""
        return self.linear_solver if isinstance(self.linear_solver, DenseOrKrylov) else None

    def helpers_at(self, problem: Problem, x: PyTree, theta: PyTree) -> Helpers:
        """Return what helps the solves at a point."""
        helpers = Helpers() if self.guess is None else helpers_from(self.guess, x)
        if self.preconditioner is None:
            return helpers
        helper = applied(self.preconditioner, *stop_gradient((problem, x, theta)))
        return helpers._replace(preconditioner=helper)

    def without_run(self) -> "Implicit":
        """Return the mode without a preconditioner that needs the state of a run."""
        if not isinstance(self.preconditioner, OfTheRun):
            return self
        return dataclasses.replace(self, preconditioner=None)

    @property
    def corrects_answer(self) -> bool:
        """Whether the mode returns another answer than it was given."""
        return self.refine > 0

    def check(self, stop: StoppingRule) -> None:
        """Accept every stopping rule."""
        del stop

    def solve(self, task: Task, *, throw: Throw) -> Outcome:
        """Run without a derivative, then attach the implicit one."""
        mode, factors = self, None
        if isinstance(self.preconditioner, OfTheRun):
            task = task._replace(algorithm=task.algorithm.keeping_factors())
        end = self.primal(task)
        if isinstance(self.preconditioner, OfTheRun):
            helper, factors = self.preconditioner.at(task.algorithm, stop_gradient(end.state))
            mode = dataclasses.replace(self, preconditioner=helper)
        x = mode._attached(task.problem, end.state.x, task.theta, throw, factors)
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
        return self._attached(problem, x, theta, throw)

    def _attached(
        self,
        problem: Problem,
        x: PyTree,
        theta: PyTree,
        throw: Throw,
        factors: HandedFactors | None = None,
    ) -> PyTree:
        """Return the answer of `attach`, with the factors of a Jacobian nearby."""
        x = jax.lax.stop_gradient(x)
        if self.gauss_newton:
            problem = without_curvature(problem)
        if self.refine:
            x = self._refined(problem, x, theta)
        helpers = self.helpers_at(problem, x, theta)
        if factors is not None:
            helpers = helpers._replace(factors=factors)
        return attached(problem, x, theta, self.method._replace(throw=throw), helpers)

    def _refined(self, problem: Problem, x: PyTree, theta: PyTree) -> PyTree:
        """Return `x` after Newton corrections, as long as each reduces the residual."""
        residual, inputs = explicit(problem, x, theta)
        structure, inputs = problem.structure_at(x, theta), jax.lax.stop_gradient(inputs)

        def unfinished(carry):
            _, count, reduced = carry
            return reduced & (count < self.refine)

        def correct(carry):
            x, count, _ = carry
            at = Sensitivity(Equation(residual, x, inputs, structure), self.method, factor=False)
            new = tree.sub(x, at.inverse(at.value))
            reduced = tree.norm(residual(new, inputs)) < tree.norm(at.value)  # False for NaN
            return tree.where(reduced, new, x), count + 1, reduced

        return manual_axes.while_loop(unfinished, correct, (x, jnp.int32(0), jnp.array(True)))[0]

    def answer(self, task: Task, x: PyTree, *, throw: Throw) -> PyTree:
        """Return `x` with its derivative, and without further Newton corrections."""
        mode = dataclasses.replace(self.without_run(), refine=0)
        return mode.attach(task.problem, x, task.theta, throw=throw)

    def tangents(self, task: Task, directions: PyTree) -> "ImplicitTangents":
        """Return the tangents ``-A(x_t)^{-1} r_theta(x_t) v``."""
        return ImplicitTangents(self.without_run(), task.problem, task.theta, directions)


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
