"""Krylov methods for linear systems."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, State, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count
from iterdiff.linalg.least_squares import least_squares, safe_length
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import Problem


class _Conjugate(State):
    """Iterate, residual ``b - A x``, search direction, and the residual's squared norm."""

    x: PyTree
    remainder: PyTree
    direction: PyTree
    square: Float[Array, ""]


def safe_ratio(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """Return ``a / b``, and 0 with derivative 0 where `b` is 0 (the solution is reached)."""
    zero = b == 0
    return jnp.where(zero, 0.0, a / jnp.where(zero, 1.0, b))


class ConjugateGradient(Algorithm):
    r"""Conjugate gradients for a symmetric positive definite system.

    .. math::

        \alpha_t = \frac{r_t^\top r_t}{p_t^\top A p_t}, \quad
        x_{t+1} = x_t + \alpha_t p_t, \quad r_{t+1} = r_t - \alpha_t A p_t, \quad
        p_{t+1} = r_{t+1} + \frac{r_{t+1}^\top r_{t+1}}{r_t^\top r_t} p_t .

    In exact arithmetic it ends in n steps; the error's energy norm falls at least like
    :math:`2 ((\sqrt\kappa - 1)/(\sqrt\kappa + 1))^t`, where :math:`\kappa` is the condition
    number. One operator product a step. Its unrolled derivative goes through
    :math:`\alpha` and the direction updates: it converges with the iterate, but loses accuracy in
    steps that go on after convergence, where these are ratios of rounding errors; stop by
    `ResidualBelow`, or take the implicit mode.

    References
    ----------
    M. R. Hestenes and E. Stiefel, *Methods of conjugate gradients for solving linear systems*,
    1952.
    """

    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def init(self, problem: LinearSystem, x0: PyTree, theta: PyTree) -> _Conjugate:
        """Return the state at `x0`; the first direction is the residual."""
        remainder = tree.scale(-1.0, problem.residual(x0, theta))
        return _Conjugate(x0, remainder, remainder, tree.dot(remainder, remainder))

    def step(self, problem: LinearSystem, state: _Conjugate, theta: PyTree) -> _Conjugate:
        """Return the state after one step; at the solution it stays where it is."""
        image = problem.operator(state.direction, theta)
        alpha = safe_ratio(state.square, tree.dot(state.direction, image))
        remainder = tree.axpy(-alpha, image, state.remainder)
        square = tree.dot(remainder, remainder)
        beta = safe_ratio(square, state.square)
        return _Conjugate(
            tree.axpy(alpha, state.direction, state.x),
            remainder,
            tree.axpy(beta, state.direction, remainder),
            square,
        )


class GMRES(StatelessAlgorithm):
    r"""Restarted GMRES; one step is a whole cycle of `restart` Krylov vectors.

    With :math:`r_t = b - A x_t` and an orthonormal basis :math:`V` of
    :math:`\mathrm{span}\{r_t, A r_t, \dots, A^{m-1} r_t\}` (Arnoldi's process,
    :math:`A V = W H`),

    .. math::

        x_{t+1} = x_t + V \arg\min_y \|r_t - A V y\| .

    For any nonsingular matrix; the residual's norm never grows, and with :math:`m \ge n` one step
    solves. With m < n it converges when the symmetric part of :math:`A` is positive definite, and
    may stall otherwise. A step costs m + 1 operator products and :math:`O(n m^2)` operations;
    memory (m + 1) n. The basis is orthogonalised twice.

    First derivatives through its steps converge with the iterate; second ones keep fewer digits,
    since each restart divides by a norm that goes to zero. The implicit mode has no such trouble.

    Parameters
    ----------
    restart : int
        The vectors m of a cycle, at least 1; no more than n are used.

    Raises
    ------
    TypeError, ValueError
        If `restart` is no positive int.

    References
    ----------
    Y. Saad and M. H. Schultz, *GMRES: a generalized minimal residual algorithm for solving
    nonsymmetric linear systems*, 1986.
    """

    restart: int = eqx.field(static=True)
    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Refuse a cycle without vectors."""
        check_count("restart", self.restart)

    def step(self, problem: LinearSystem, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one cycle; at the solution it stays where it is."""
        x = state.x

        def matvec(v: Float[Array, " n"]) -> Float[Array, " n"]:
            return tree.to_vector(problem.operator(tree.from_vector(v, x), theta))

        remainder = -tree.to_vector(problem.residual(x, theta))
        length = min(self.restart, remainder.size)
        basis, hessenberg = _arnoldi(matvec, remainder, length)
        target = basis @ remainder
        weights = least_squares(hessenberg, target, float(jnp.finfo(target.dtype).eps))
        return Iterate(tree.add(x, tree.from_vector(weights @ basis[:length], x)))


def _arnoldi(
    matvec: Callable[[Array], Array], start: Float[Array, " n"], length: int
) -> tuple[Float[Array, "{length}+1 n"], Float[Array, "{length} {length}+1"]]:
    """Return the Arnoldi basis, and the coordinates in it of the images of its first m vectors.

    When the Krylov space is exhausted the remaining vectors are zero.
    """
    rounding = 10 * jnp.finfo(start.dtype).eps

    def extend(basis, k):
        image = matvec(basis[k])
        once = basis @ image
        rest = image - once @ basis
        again = basis @ rest
        rest = rest - again @ basis
        height = safe_length(rest)
        new = jnp.any(rest != 0) & (height > rounding * safe_length(image))
        unit = jnp.where(new, rest / height, 0)
        coordinates = (once + again).at[k + 1].add(jnp.where(new, height, 0))
        return basis.at[k + 1].set(unit), coordinates

    basis = jnp.zeros((length + 1, start.size), start.dtype).at[0].set(start / safe_length(start))
    return jax.lax.scan(extend, basis, jnp.arange(length))
