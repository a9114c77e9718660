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
    """The iterate, the residual ``b - A x``, the search direction, the squared residual norm."""

    x: PyTree
    remainder: PyTree
    direction: PyTree
    square: Float[Array, ""]


def safe_ratio(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """Return ``a / b``, or 0 with derivative 0 if `b` is 0, as at the exact solution."""
    zero = b == 0
    return jnp.where(zero, 0.0, a / jnp.where(zero, 1.0, b))


class ConjugateGradient(Algorithm):
    r"""Conjugate gradients for a symmetric positive definite system.

    .. math::

        \alpha_t = \frac{r_t^\top r_t}{p_t^\top A p_t}, \quad
        x_{t+1} = x_t + \alpha_t p_t, \quad r_{t+1} = r_t - \alpha_t A p_t, \quad
        p_{t+1} = r_{t+1} + \frac{r_{t+1}^\top r_{t+1}}{r_t^\top r_t} p_t .

    In exact arithmetic the method ends after n steps. The energy norm of the error falls at least
    like :math:`2 ((\sqrt\kappa - 1)/(\sqrt\kappa + 1))^t`, where :math:`\kappa` is the condition
    number. Cost: one operator product a step.

    The unrolled derivative passes through :math:`\alpha` and the updates of the direction. It
    converges with the iterate, but loses accuracy in steps after convergence, where both become
    ratios of rounding errors. Stop by `ResidualBelow`, or use `Implicit`.

    References
    ----------
    M. R. Hestenes and E. Stiefel, *Methods of conjugate gradients for solving linear systems*,
    1952.
    """

    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def init(self, problem: LinearSystem, x0: PyTree, theta: PyTree) -> _Conjugate:
        """Return the initial state, with the residual as search direction."""
        remainder = tree.scale(-1.0, problem.residual(x0, theta))
        return _Conjugate(x0, remainder, remainder, tree.dot(remainder, remainder))

    def step(self, problem: LinearSystem, state: _Conjugate, theta: PyTree) -> _Conjugate:
        """Return the state after one step; the exact solution stays where it is."""
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

    Let :math:`r_t = b - A x_t`, and let :math:`V` be an orthonormal basis of the Krylov space
    :math:`\mathrm{span}\{r_t, A r_t, \dots, A^{m-1} r_t\}`, from Arnoldi's process
    :math:`A V = W H`. Then

    .. math::

        x_{t+1} = x_t + V \arg\min_y \|r_t - A V y\| .

    The residual norm never grows, for any nonsingular matrix. With :math:`m \ge n` one step
    solves the system. With m < n the method converges if the symmetric part of :math:`A` is
    positive definite, and may stall otherwise. Cost: m + 1 operator products and
    :math:`O(n m^2)` operations a step; the basis is orthogonalised twice. Memory: (m + 1) n.

    First unrolled derivatives converge with the iterate. Second derivatives keep fewer digits,
    because each restart divides by a norm that tends to zero; `Implicit` does not have this
    problem.

    Parameters
    ----------
    restart : int
        Number m of Krylov vectors in a cycle, at least 1. A cycle uses no more than n.

    Raises
    ------
    TypeError
        If `restart` is not an int.
    ValueError
        If `restart` is below 1.

    References
    ----------
    Y. Saad and M. H. Schultz, *GMRES: a generalized minimal residual algorithm for solving
    nonsymmetric linear systems*, 1986.
    """

    restart: int = eqx.field(static=True)
    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `restart` is a positive int."""
        check_count("restart", self.restart)

    def step(self, problem: LinearSystem, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one cycle; the exact solution stays where it is."""
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
    """Return the Arnoldi basis, and the images of its first m vectors as coordinates in it.

    If the Krylov space is exhausted, the remaining basis vectors are zero.
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
