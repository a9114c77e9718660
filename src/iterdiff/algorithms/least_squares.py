r"""Algorithms for nonlinear least squares.

Both linearise the weighted residuals at the iterate, :math:`\sqrt W (r + J d)` with the weights
:math:`W` of a robust loss held fixed, and minimise the norm over the step :math:`d`.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, State, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_range, scalar
from iterdiff.linalg.block_elimination import BlockElimination
from iterdiff.problems.least_squares import LeastSquares
from iterdiff.problems.problem import Problem

QR_MAX_NUMBERS = 2**22
"""A larger Jacobian is not formed: its least-squares problems are solved by LSMR."""

LSMR_RTOL = {64: 1e-10, 32: 1e-5}
"""Tolerance of LSMR, by the bits of the dtype."""

ROUNDING_FACTOR = 16
"""A change of the objective below this many times eps times its value is rounding."""


def _solver(given: Any) -> lx.AbstractLinearSolver | None:
    if given is not None and not isinstance(given, lx.AbstractLinearSolver):
        raise TypeError(
            "`linear_solver` must be a lineax solver for least squares, such as lineax.QR(), not "
            f"{given!r}."
        )
    if isinstance(given, BlockElimination):
        return lx.Normal(given)
    return given


class Linearised(eqx.Module):
    """The weighted residuals at a point, and their Jacobian.

    Attributes
    ----------
    value : array, shape (m,)
        The weighted residuals.
    push : callable
        ``v -> sqrt(W) J v``, from vectors of n numbers to vectors of m.
    x : array, shape (n,)
        The point.
    """

    value: Float[Array, " m"]
    push: lx.FunctionLinearOperator
    x: Float[Array, " n"]

    @classmethod
    def at(cls, problem: LeastSquares, x: PyTree, theta: PyTree) -> "Linearised":
        """Linearise the residuals of `problem` at `x`."""

        def residuals(vector: Float[Array, " n"]) -> Float[Array, " m"]:
            return problem.residual_vector(tree.from_vector(vector, x), theta)

        vector = tree.to_vector(x)
        value, push = jax.linearize(residuals, vector)
        roots = jnp.sqrt(problem.weights(value))
        operator = lx.FunctionLinearOperator(
            lambda v: roots * push(v), jax.eval_shape(lambda: vector)
        )
        return cls(roots * value, operator, vector)

    def gradient(self) -> Float[Array, " n"]:
        """Return the gradient of the objective."""
        return self.push.transpose().mv(self.value)

    def step(
        self, damping: Float[Array, ""] | None, solver: lx.AbstractLinearSolver | None
    ) -> Float[Array, " n"]:
        """Return the minimiser of ``|value + J d|^2 + damping |d|^2``; NaN if the solve fails."""
        dtype = self.x.dtype
        operator, b = self.push, -self.value
        if damping is not None:
            root = jnp.sqrt(damping)
            operator = lx.FunctionLinearOperator(
                lambda d: jnp.concatenate([self.push.mv(d), root * d]),
                self.push.in_structure(),
            )
            b = jnp.concatenate([b, jnp.zeros(self.x.size, dtype)])
        if solver is None:
            tolerance = LSMR_RTOL[jnp.finfo(dtype).bits]
            small = b.size * self.x.size <= QR_MAX_NUMBERS
            solver = lx.QR() if small else lx.LSMR(rtol=tolerance, atol=tolerance)
        solution = lx.linear_solve(operator, b, solver, throw=False)
        return jnp.where(solution.result == lx.RESULTS.successful, solution.value, jnp.nan)


class GaussNewton(StatelessAlgorithm):
    r"""The Gauss-Newton method, :math:`x_{t+1} = x_t + \arg\min_d \|\sqrt W (r + J d)\|`.

    Near a solution it converges linearly, with the spectral radius of
    :math:`(J^\top J)^{-1} \sum_i r_i \nabla^2 r_i` as rate: fast if the residuals at the solution
    are small or nearly linear, and not at all if they are large and curved. From far away it may
    diverge: then use `LevenbergMarquardt`. Cost: one linear least-squares problem a step. A failed
    one ends the run with `Status.DIVERGED`.

    Parameters
    ----------
    linear_solver : lineax.AbstractLinearSolver, optional
        Solves linear least-squares problems, such as ``lineax.QR()``, ``lineax.SVD()`` (for a
        Jacobian without full rank), ``lineax.LSMR(rtol, atol)``, or
        ``lineax.Normal(lineax.CG(rtol, atol))``. By default QR, and LSMR without a matrix for
        Jacobians of more than 4 million numbers. A `BlockElimination` solves the normal equations.

    Raises
    ------
    TypeError
        If `linear_solver` is not a lineax solver.

    References
    ----------
    J. Nocedal and S. J. Wright, *Numerical Optimization*, Springer 2006, section 10.3.
    """

    linear_solver: lx.AbstractLinearSolver | None = eqx.field(converter=_solver, default=None)
    accepts: ClassVar[tuple[type[Problem], ...]] = (LeastSquares,)
    consistent: ClassVar[bool] = True

    def step(self, problem: LeastSquares, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one step."""
        here = Linearised.at(problem, state.x, theta)
        return Iterate(tree.from_vector(here.x + here.step(None, self.linear_solver), state.x))


class Damped(State):
    """The iterate and the damping of the next step.

    Attributes
    ----------
    x : pytree
        The iterate.
    damping : scalar
        The weight of ``|d|^2``.
    growth : scalar
        The factor by which a rejected step increases the damping.
    """

    x: PyTree
    damping: Float[Array, ""]
    growth: Float[Array, ""]


class LevenbergMarquardt(Algorithm):
    r"""The Levenberg-Marquardt method: Gauss-Newton steps with a damping that adapts.

    A step minimises :math:`\|\sqrt W (r + J d)\|^2 + \lambda \|d\|^2`. It is taken if it does not
    increase the objective. The damping :math:`\lambda` then shrinks by up to a factor of three,
    the more the better the objective agrees with its model; otherwise it grows, faster after every
    rejection (Nielsen 1999). Near a solution :math:`\lambda` vanishes, and the method converges as
    `GaussNewton` does. It works where the Jacobian has no full rank. Cost: one linear least-squares
    problem and one further evaluation of the residuals a step; rejected steps count.

    Parameters
    ----------
    damping : scalar
        The first :math:`\lambda`, positive, relative to the squared size of the Jacobian in the
        direction of the gradient. Larger values make the first steps more careful.
    linear_solver : lineax.AbstractLinearSolver, optional
        As in `GaussNewton`.

    Raises
    ------
    TypeError
        If `linear_solver` is not a lineax solver.
    ValueError
        If `damping` is known and not positive.

    Notes
    -----
    All unknowns are damped alike: choose units in which they have similar sizes.

    References
    ----------
    H. B. Nielsen, *Damping parameter in Marquardt's method*, Technical University of Denmark, 1999;
    J. Nocedal and S. J. Wright, *Numerical Optimization*, Springer 2006, section 10.3.
    """

    damping: Float[Array, ""] = eqx.field(converter=scalar, default=1e-3)
    linear_solver: lx.AbstractLinearSolver | None = eqx.field(converter=_solver, default=None)
    accepts: ClassVar[tuple[type[Problem], ...]] = (LeastSquares,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check the range of `damping`."""
        check_range("damping", self.damping, 0.0)

    def init(self, problem: LeastSquares, x0: PyTree, theta: PyTree) -> Damped:
        """Return the state at `x0`."""
        here = Linearised.at(problem, x0, theta)
        gradient = here.gradient()
        length, image = tree.norm(gradient), tree.norm(here.push.mv(gradient))
        size = jnp.where(length > 0, image / jnp.where(length > 0, length, 1), 1)
        damping = self.damping.astype(size.dtype) * jnp.where(size > 0, size, 1) ** 2
        return Damped(x0, damping, jnp.full_like(damping, 2))

    def step(self, problem: LeastSquares, state: Damped, theta: PyTree) -> Damped:
        """Return the state after one trial step."""
        here = Linearised.at(problem, state.x, theta)
        d = here.step(state.damping, self.linear_solver)
        trial = tree.from_vector(here.x + d, state.x)
        value = problem.objective(state.x, theta).astype(d.dtype)
        reduced = value - problem.objective(trial, theta).astype(d.dtype)
        # The model's reduction is (|J d|^2 + 2 damping |d|^2) / 2, without cancellation.
        image = here.push.mv(d)
        predicted = (image @ image) / 2 + state.damping * (d @ d)
        rounding = ROUNDING_FACTOR * jnp.finfo(d.dtype).eps * value
        certain = predicted > rounding
        gain = jnp.where(certain, reduced / jnp.where(certain, predicted, 1), 1)
        taken = (reduced >= -rounding) | ~jnp.isfinite(reduced) & ~jnp.all(jnp.isfinite(d))
        shrunk = state.damping * jnp.maximum(1 / 3, 1 - (2 * jnp.clip(gain, 0, 1) - 1) ** 3)
        damping = jnp.where(taken, shrunk, state.damping * state.growth)
        growth = jnp.where(taken, 2, 2 * state.growth)
        info = jnp.finfo(d.dtype)
        least, most = float(info.tiny) ** 0.5, float(info.max) ** 0.5
        return Damped(
            tree.where(taken, trial, state.x),
            jnp.clip(damping, least, most),
            jnp.minimum(growth, most),
        )
