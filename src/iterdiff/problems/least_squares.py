"""Nonlinear least squares, with robust losses."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_callable, check_range, check_word, scalar
from iterdiff.problems.problem import Minimization, Problem, SmoothMinimization

Squares = Float[Array, " m"]


def _linear(squares: Squares) -> Squares:
    return squares


def _soft_l1(squares: Squares) -> Squares:
    return 2 * squares / (1 + jnp.sqrt(1 + squares))


def _huber(squares: Squares) -> Squares:
    outside = squares > 1
    return jnp.where(outside, 2 * jnp.sqrt(jnp.where(outside, squares, 1)) - 1, squares)


LOSSES: dict[str, Callable[[Squares], Squares]] = {
    "linear": _linear,
    "soft_l1": _soft_l1,
    "huber": _huber,
    "cauchy": jnp.log1p,
    "arctan": jnp.arctan,
}
"""Losses by name, as functions of the squared residuals in units of the scale."""


class LeastSquares(SmoothMinimization):
    r"""Minimise half the sum of squared residuals over `x`, or a robust loss of them.

    The objective is

    .. math::

        f(x, \theta) = \tfrac12 s^2 \sum_i \rho\bigl(r_i(x, \theta)^2 / s^2\bigr),

    with :math:`\rho(z) = z` by default. There may be any number of residuals. `GaussNewton` and
    `LevenbergMarquardt` use their structure; the algorithms for a `Minimization` work, too.

    The implicit derivative rests on the true Hessian. For the linear loss this is
    :math:`J^\top J + \sum_i r_i \nabla^2 r_i` with :math:`J = \partial r / \partial x`. Many
    programs leave out the second term, which is wrong unless the residuals vanish at the solution
    or are linear in `x`; ``Implicit(gauss_newton=True)`` does so on request.

    Parameters
    ----------
    residuals : callable
        ``residuals(x, theta)`` returns a pytree of real floating arrays, the residuals
        :math:`r_i`. It must be twice differentiable near the solution.
    loss : str or callable
        The loss :math:`\rho`: "linear", "soft_l1" :math:`2(\sqrt{1+z} - 1)`, "huber" (z up to 1,
        then :math:`2\sqrt z - 1`), "cauchy" :math:`\ln(1+z)`, "arctan" :math:`\arctan z`; or a
        function of an array of squares, element by element, with :math:`\rho(0) = 0` and
        :math:`\rho'(0) = 1`. Except for the first three, the objective is not convex even if the
        residuals are linear.
    scale : scalar
        The size :math:`s` of residuals above which a robust loss reduces their weight; positive,
        in units of the residuals.
    has_aux : bool
        Whether `residuals` returns a pair ``(residuals, aux)``: the second, any pytree, becomes
        ``Solution.aux``, which JAX differentiates like the answer.

    Raises
    ------
    TypeError
        If `residuals` is not callable, or `loss` neither callable nor a name.
    ValueError
        If `loss` is an unknown name, or `scale` is known and not positive.

    References
    ----------
    B. Triggs et al., *Bundle adjustment: a modern synthesis*, 1999, section 4.3. The names of the
    losses are SciPy's (``scipy.optimize.least_squares``).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> times = jnp.arange(5.0)
    >>> problem = itd.LeastSquares(lambda x, data: x[0] * jnp.exp(-x[1] * times) - data)
    >>> start, data = jnp.array([1.0, 0.1]), 2 * jnp.exp(-0.5 * times)
    >>> stop = itd.ResidualBelow(atol=1e-6, max_steps=50)
    >>> itd.solve(problem, itd.LevenbergMarquardt(), start, data, stop=stop).x.round(3).tolist()
    [2.0, 0.5]
    """

    residuals: Callable[[PyTree, PyTree], PyTree]
    loss: str | Callable[[Squares], Squares] = eqx.field(kw_only=True, default="linear")
    scale: Float[Array, ""] = eqx.field(kw_only=True, converter=scalar, default=1.0)
    functions: ClassVar[dict[str, int]] = {"residuals": 2}

    def __check_init__(self):
        """Check the types and ranges of the fields."""
        check_callable(residuals=self.residuals)
        if not callable(self.loss):
            check_word("loss", self.loss, tuple(LOSSES))
        check_range("scale", self.scale, 0.0)

    def objective(self, x: PyTree, theta: PyTree) -> Float[Array, ""]:
        """Return half the loss of all residuals at `x`."""
        squares = self._squares(self.residual_vector(x, theta))
        scale = self.scale.astype(squares.dtype)
        return scale**2 * jnp.sum(self._rho(squares)) / 2

    def residual_vector(self, x: PyTree, theta: PyTree) -> Float[Array, " m"]:
        """Return all residuals at `x` as one vector."""
        return tree.to_vector(self.residuals(x, theta))

    def plain_residuals(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the residuals for a solver that minimises half the sum of their squares.

        Raises
        ------
        ValueError
            With another loss than the linear one.
        """
        if self.loss != "linear":
            raise ValueError(
                "`loss`: this solver minimises squares only; use iterdiff.LevenbergMarquardt, or "
                "loss='linear'."
            )
        return self.residuals(x, theta)

    def weights(self, residuals: Float[Array, " m"]) -> Float[Array, " m"]:
        r"""Return the weights :math:`\rho'(r_i^2 / s^2)` of residuals; 1 for the linear loss."""
        if self.loss == "linear":
            return jnp.ones_like(residuals)
        squares = self._squares(residuals)
        return jax.jvp(self._rho, (squares,), (jnp.ones_like(squares),))[1]

    def _squares(self, residuals: Float[Array, " m"]) -> Squares:
        return (residuals / self.scale.astype(residuals.dtype)) ** 2

    def _rho(self, squares: Squares) -> Squares:
        return (self.loss if callable(self.loss) else LOSSES[self.loss])(squares)


class WithoutCurvature(Problem):
    r"""A least-squares problem with the Gauss-Newton approximation of its Hessian.

    The residual is the gradient :math:`J^\top W r`, whose Jacobian in `x` holds :math:`J` fixed.
    Its derivative in theta is exact.
    """

    of: LeastSquares

    @property
    def symmetric(self) -> bool:
        """True: the matrix is ``J^T D J`` with a diagonal ``D``."""
        return True

    @property
    def positive_definite(self) -> bool:
        """Whether the loss is linear; a robust one may have negative curvature."""
        return self.of.loss == "linear"

    def residual(self, x: PyTree, theta: PyTree) -> PyTree:
        """Return the gradient at `x`."""
        fixed: Any = jax.lax.stop_gradient(x)
        pull = jax.vjp(lambda y: self.of.residual_vector(y, theta), fixed)[1]
        found = self.of.residual_vector(x, theta)
        return pull(self.of.weights(found) * found)[0]


def without_curvature(problem: Problem) -> WithoutCurvature:
    """Return the problem whose Hessian leaves the curvature of the residuals out.

    Raises
    ------
    ValueError
        If it is no `LeastSquares`.
    """
    if not isinstance(problem, LeastSquares):
        raise ValueError(
            "`gauss_newton`: only a LeastSquares has a Gauss-Newton approximation, not a "
            f"{type(problem).__name__}; leave the option out."
        )
    return WithoutCurvature(problem, snapshot=problem.snapshot)


MINIMIZATIONS = (Minimization, LeastSquares)
"""The problems that have an objective without constraints, differentiable everywhere."""
