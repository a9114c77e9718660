"""Stationary methods for linear systems: each step is the same affine map."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, State, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_callable, check_range, scalar
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import Problem


class Richardson(StatelessAlgorithm):
    r"""Richardson iteration, :math:`x_{t+1} = x_t + h (b - A x_t)`.

    The method converges if every eigenvalue of :math:`A` satisfies :math:`|1 - h \lambda| < 1`;
    its rate is the largest of these values. A symmetric positive definite :math:`A` requires
    :math:`0 < h < 2 / \lambda_{\max}`, and :math:`h = 2 / (\lambda_{\min} + \lambda_{\max})` is
    fastest. The unrolled Jacobian converges at the same rate up to a factor :math:`t`. Cost: one
    operator product a step.

    Parameters
    ----------
    step_size : scalar
        The step :math:`h`, positive.

    Raises
    ------
    ValueError
        If `step_size` is known and not positive.

    References
    ----------
    Y. Saad, *Iterative Methods for Sparse Linear Systems*, SIAM 2003, section 4.2.
    """

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `step_size` is positive."""
        check_range("step_size", self.step_size, 0.0)

    def step(self, problem: LinearSystem, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one step."""
        residual = problem.residual(state.x, theta)
        return Iterate(tree.axpy(-self.step_size, residual, state.x))


PROBED_MAX_NUMBERS = 2**22
"""The diagonal of a matrix is found from blocks of its columns that hold up to this many numbers:
32 MiB in float64."""


class _Diagonal(State):
    """The iterate and the diagonal of the matrix."""

    x: PyTree
    diagonal: PyTree


class Jacobi(Algorithm):
    r"""Jacobi's method, :math:`x_{t+1} = x_t + \omega D^{-1} (b - A x_t)`, `D` the diagonal.

    The method converges for strictly diagonally dominant matrices (with :math:`\omega = 1`), and
    for symmetric positive definite ones if :math:`0 < \omega < 2 / \lambda_{\max}(D^{-1} A)`. Its
    rate is :math:`\rho(I - \omega D^{-1} A)`. The unrolled Jacobian converges at the same rate up
    to a factor :math:`t`. Cost: n operator products at the start to find the diagonal, a block of
    columns at a time, unless `diagonal` is given; then one product a step.

    Parameters
    ----------
    damping : scalar
        The factor :math:`\omega`, positive, dimensionless.
    diagonal : callable, optional
        ``diagonal(theta)`` returns the diagonal of ``A(theta)``, like `x`.

    Raises
    ------
    TypeError
        If `diagonal` is not callable.
    ValueError
        If `damping` is known and not positive.

    References
    ----------
    Y. Saad, *Iterative Methods for Sparse Linear Systems*, SIAM 2003, section 4.1.
    """

    damping: Float[Array, ""] = eqx.field(converter=scalar, default=1.0)
    diagonal: object = eqx.field(static=True, default=None)
    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `damping` is positive and `diagonal` a function."""
        check_range("damping", self.damping, 0.0)
        if self.diagonal is not None:
            check_callable(diagonal=self.diagonal)

    def init(self, problem: LinearSystem, x0: PyTree, theta: PyTree) -> _Diagonal:
        """Return the initial state, with the diagonal of ``A(theta)``."""
        if callable(self.diagonal):
            return _Diagonal(x0, self.diagonal(theta))
        return _Diagonal(x0, diagonal_of(lambda v: problem.operator(v, theta), x0))

    def step(self, problem: LinearSystem, state: _Diagonal, theta: PyTree) -> _Diagonal:
        """Return the state after one step."""
        residual = problem.residual(state.x, theta)
        scaled = jax.tree.map(jnp.divide, residual, state.diagonal)
        return _Diagonal(tree.axpy(-self.damping, scaled, state.x), state.diagonal)


def diagonal_of(
    operator: Callable[[PyTree], PyTree], like: PyTree, max_numbers: int = PROBED_MAX_NUMBERS
) -> PyTree:
    """Return the diagonal of a linear operator on vectors like `like`.

    One product for each unknown, in blocks of `max_numbers` numbers, or of one column.
    """
    numbers = jnp.arange(tree.size(like), dtype=jnp.int32)

    def entry(i: Array) -> Array:
        unit = (numbers == i).astype(tree.result_dtype(like))
        return tree.to_vector(operator(tree.from_vector(unit, like)))[i]

    if numbers.size**2 <= max_numbers:
        return tree.from_vector(jax.vmap(entry)(numbers), like)
    # Computed again in reverse mode: the unit vectors of all blocks would be kept.
    entry = jax.checkpoint(entry, prevent_cse=False)
    columns = max(1, max_numbers // numbers.size)
    return tree.from_vector(jax.lax.map(entry, numbers, batch_size=columns), like)


class _Triangular(State):
    """The iterate, and the lower triangular matrix of the splitting."""

    x: PyTree
    lower: Float[Array, "n n"]


def lower_triangle(
    problem: LinearSystem, x0: PyTree, theta: PyTree, relaxation: Array
) -> Float[Array, "n n"]:
    """Return ``L + D / relaxation``, with the strict lower triangle L and the diagonal D."""
    images = jax.vmap(lambda v: problem.operator(v, theta))(tree.basis(x0))
    matrix = tree.stack_to_matrix(images).T
    diagonal = jnp.diagonal(matrix) / relaxation.astype(matrix.dtype)
    return jnp.tril(matrix, -1) + jnp.diag(diagonal)


def sweep(problem: LinearSystem, state: _Triangular, theta: PyTree) -> _Triangular:
    """Return the state after ``x + lower^-1 (b - A x)``."""
    residual = tree.to_vector(problem.residual(state.x, theta))
    move = jax.scipy.linalg.solve_triangular(state.lower, residual, lower=True)
    return _Triangular(tree.sub(state.x, tree.from_vector(move, state.x)), state.lower)


class GaussSeidel(Algorithm):
    r"""The Gauss-Seidel method, :math:`x_{t+1} = x_t + (L + D)^{-1} (b - A x_t)`.

    `L` is the strict lower triangle of the matrix and `D` its diagonal: the method updates each
    unknown in turn from the newest values of the others. It converges for symmetric positive
    definite and for strictly diagonally dominant matrices, with rate
    :math:`\rho(I - (L + D)^{-1} A)`. For consistently ordered matrices (tridiagonal ones, for
    example) this is the square of Jacobi's rate. Cost: n operator products at the start to find
    the triangle, then one product and one triangular solve a step. Memory: :math:`n^2`.

    References
    ----------
    Y. Saad, *Iterative Methods for Sparse Linear Systems*, SIAM 2003, section 4.1.
    """

    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def init(self, problem: LinearSystem, x0: PyTree, theta: PyTree) -> _Triangular:
        """Return the initial state, with the triangle of ``A(theta)``."""
        return _Triangular(x0, lower_triangle(problem, x0, theta, scalar(1.0)))

    def step(self, problem: LinearSystem, state: _Triangular, theta: PyTree) -> _Triangular:
        """Return the state after one sweep."""
        return sweep(problem, state, theta)


class SOR(Algorithm):
    r"""Successive over-relaxation, :math:`x_{t+1} = x_t + (L + D/\omega)^{-1} (b - A x_t)`.

    For :math:`\omega = 1` this is `GaussSeidel`. The method converges for symmetric positive
    definite matrices and :math:`0 < \omega < 2`. For consistently ordered matrices with Jacobi
    rate :math:`\mu < 1`, :math:`\omega = 2 / (1 + \sqrt{1 - \mu^2})` is best, with rate
    :math:`\omega - 1`. The iteration matrix then has a Jordan block, so that the error falls like
    :math:`t (\omega - 1)^t`, and the error of the unrolled Jacobian like
    :math:`t^3 (\omega - 1)^t` in the worst case. Cost and memory are those of `GaussSeidel`.

    Parameters
    ----------
    relaxation : scalar
        The factor :math:`\omega`, in (0, 2), dimensionless.

    Raises
    ------
    ValueError
        If `relaxation` is known and not in (0, 2).

    References
    ----------
    D. M. Young, *Iterative Solution of Large Linear Systems*, 1971, chapter 6; Y. Saad, *Iterative
    Methods for Sparse Linear Systems*, SIAM 2003, section 4.1.
    """

    relaxation: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `relaxation` lies in (0, 2)."""
        check_range("relaxation", self.relaxation, 0.0, 2.0)

    def init(self, problem: LinearSystem, x0: PyTree, theta: PyTree) -> _Triangular:
        """Return the initial state, with the triangle of ``A(theta)``."""
        return _Triangular(x0, lower_triangle(problem, x0, theta, self.relaxation))

    def step(self, problem: LinearSystem, state: _Triangular, theta: PyTree) -> _Triangular:
        """Return the state after one sweep."""
        return sweep(problem, state, theta)
