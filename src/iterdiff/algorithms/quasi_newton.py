"""Quasi-Newton methods: Newton's method with an old or an approximate Jacobian."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.algorithms.newton import SMOOTH_PROBLEMS
from iterdiff.jaxtools import tree
from iterdiff.problems.problem import Problem


def residual_vector(problem: Problem, x: PyTree, theta: PyTree) -> Float[Array, " n"]:
    """Return the residual as one vector."""
    return tree.to_vector(problem.residual(x, theta))


def factored_jacobian(
    problem: Problem, x: PyTree, theta: PyTree
) -> tuple[Float[Array, "n n"], Int[Array, " n"]]:
    """Return the LU factors and the pivots of ``d residual / dx`` at `x`."""
    start = tree.to_vector(x)

    def of_vector(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return residual_vector(problem, tree.from_vector(vector, x), theta)

    return jax.scipy.linalg.lu_factor(jax.jacfwd(of_vector)(start))


class _Factored(State):
    """The iterate, and the LU factors of the Jacobian at `x0`."""

    x: PyTree
    factors: Float[Array, "n n"]
    pivots: Int[Array, " n"]


class Chord(Algorithm):
    r"""The chord method, :math:`x_{t+1} = x_t - A(x_0)^{-1} r(x_t, \theta)`.

    This is Newton's method with the Jacobian :math:`A = \partial r / \partial x` at `x0`, which
    is formed and factored once. The method converges locally at the linear rate
    :math:`\rho(I - A(x_0)^{-1} A(x^*))`: the nearer the start, the faster. The unrolled derivative
    converges at the same rate up to a factor :math:`t`. Cost: n Jacobian products and
    :math:`O(n^3)` operations at the start, then one residual and :math:`O(n^2)` operations a
    step. Memory: :math:`n^2`. A singular Jacobian ends the run with `Status.DIVERGED`.

    References
    ----------
    C. T. Kelley, *Iterative Methods for Linear and Nonlinear Equations*, SIAM 1995, section
    5.4.1.
    """

    accepts: ClassVar[tuple[type[Problem], ...]] = SMOOTH_PROBLEMS
    consistent: ClassVar[bool] = True

    def inverse_jacobian(self, state: _Factored) -> Callable[[PyTree], PyTree]:
        """Return the solve with the Jacobian at `x0`."""

        def apply(v: PyTree) -> PyTree:
            solved = jax.scipy.linalg.lu_solve((state.factors, state.pivots), tree.to_vector(v))
            return tree.from_vector(solved, v)

        return apply

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _Factored:
        """Return the initial state, with the factored Jacobian at `x0`."""
        return _Factored(x0, *factored_jacobian(problem, x0, theta))

    def step(self, problem: Problem, state: _Factored, theta: PyTree) -> _Factored:
        """Return the state after one step."""
        residual = residual_vector(problem, state.x, theta)
        move = jax.scipy.linalg.lu_solve((state.factors, state.pivots), residual)
        x = tree.sub(state.x, tree.from_vector(move, state.x))
        return _Factored(x, state.factors, state.pivots)


class _Secant(State):
    """The iterate, its residual, and an approximate inverse of the Jacobian."""

    x: PyTree
    residual: Float[Array, " n"]
    inverse: Float[Array, "n n"]


class Broyden(Algorithm):
    r"""Broyden's (first, "good") method.

    .. math::

        s_t = -H_t r_t, \quad x_{t+1} = x_t + s_t, \quad y_t = r_{t+1} - r_t, \quad
        H_{t+1} = H_t + \frac{(s_t - H_t y_t) s_t^\top H_t}{s_t^\top H_t y_t},

    where :math:`r_t = r(x_t, \theta)` and :math:`H_0 = A(x_0)^{-1}`, the inverse of
    :math:`A = \partial r / \partial x`. The method converges superlinearly near a solution with
    nonsingular :math:`A`, and in one step on a linear problem. The unrolled derivative passes
    through the updates of :math:`H`; it converges too, later than the iterate. Cost: the Jacobian
    is formed once, at `x0`; each step takes one residual and :math:`O(n^2)` operations. Memory:
    :math:`n^2`. If a step is no larger than rounding, :math:`H` stays unchanged.

    References
    ----------
    C. G. Broyden, *A class of methods for solving nonlinear simultaneous equations*, 1965;
    C. T. Kelley, *Iterative Methods for Linear and Nonlinear Equations*, SIAM 1995, chapter 7;
    for derivatives A. Griewank, C. Bischof, G. Corliss, A. Carle, K. Williamson, *Derivative
    convergence for iterative equation solvers*, 1993.
    """

    accepts: ClassVar[tuple[type[Problem], ...]] = SMOOTH_PROBLEMS
    consistent: ClassVar[bool] = True

    @property
    def lag(self) -> int:
        """1, because a step moves by what the previous one computed at the iterate."""
        return 1

    def inverse_jacobian(self, state: _Secant) -> Callable[[PyTree], PyTree]:
        """Return the product with the approximate inverse."""
        return lambda v: tree.from_vector(state.inverse @ tree.to_vector(v), v)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _Secant:
        """Return the initial state, with the inverse Jacobian at `x0`."""
        factors, pivots = factored_jacobian(problem, x0, theta)
        unit = jnp.eye(factors.shape[0], dtype=factors.dtype)
        inverse = jax.scipy.linalg.lu_solve((factors, pivots), unit)
        return _Secant(x0, residual_vector(problem, x0, theta), inverse)

    def step(self, problem: Problem, state: _Secant, theta: PyTree) -> _Secant:
        """Return the state after one step."""
        inverse = state.inverse
        s = -(inverse @ state.residual)
        x = tree.add(state.x, tree.from_vector(s, state.x))
        residual = residual_vector(problem, x, theta)
        mapped = inverse @ (residual - state.residual)
        pivot = s @ mapped
        rounding = jnp.finfo(s.dtype).eps * tree.norm(state.x)
        sound = (tree.norm(s) > rounding.astype(s.dtype)) & (pivot != 0)
        row = (s @ inverse) / jnp.where(sound, pivot, 1)
        update = jnp.outer(s - mapped, row)
        return _Secant(x, residual, inverse + jnp.where(sound, update, 0))
