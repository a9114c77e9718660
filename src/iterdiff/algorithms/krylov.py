"""Krylov methods for linear systems."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, State, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count
from iterdiff.linalg.krylov import CGState, arnoldi, cg_step
from iterdiff.linalg.least_squares import least_squares
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import Problem


class _Conjugate(State):
    """The iterate and, in units of the first residual's norm, the state of the method.

    These are the residual ``b - A x``, the search direction and the squared norm of the residual.
    """

    x: PyTree
    remainder: PyTree
    direction: PyTree
    square: Float[Array, ""]
    unit: Float[Array, ""]


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
    converges with the iterate. Once the updated residual has fallen to rounding, relative to the
    first one, the iterate and its derivative stay where they are: later steps would be ratios of
    rounding errors. So the last steps have no derivative of their own, and ``Unrolled(last=k)`` and
    `OneStep` are refused.

    References
    ----------
    M. R. Hestenes and E. Stiefel, *Methods of conjugate gradients for solving linear systems*,
    1952.
    """

    accepts: ClassVar[tuple[type[Problem], ...]] = (LinearSystem,)
    consistent: ClassVar[bool] = True

    @property
    def last_steps_suffice(self) -> bool:
        """False: the right-hand side enters the first state alone."""
        return False

    def init(self, problem: LinearSystem, x0: PyTree, theta: PyTree) -> _Conjugate:
        """Return the initial state, with the residual as search direction."""
        remainder = tree.scale(-1.0, problem.residual(x0, theta))
        length = jax.lax.stop_gradient(tree.norm(remainder))
        unit = jnp.where(length > 0, length, jnp.ones_like(length))
        remainder = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), remainder)
        return _Conjugate(x0, remainder, remainder, tree.dot(remainder, remainder), unit)

    def step(self, problem: LinearSystem, state: _Conjugate, theta: PyTree) -> _Conjugate:
        """Return the state after one step; at the solution it stays where it is."""
        square = state.square
        unfinished = square > float(jnp.finfo(square.dtype).eps) ** 2
        # A residual of zero instead of a discarded step, whose derivative might be infinite.
        known = (state.remainder, state.direction, square)
        known = tree.where(unfinished, known, tree.zeros_like(known))
        before = CGState(tree.zeros_like(state.x), *known)
        after, _ = cg_step(lambda v: problem.operator(v, theta), before)
        x = tree.axpy(state.unit, after.x, state.x)
        return _Conjugate(x, after.residual, after.direction, after.square, state.unit)


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
    problem. At a residual of zero a step keeps the derivative of its start, so that
    ``Unrolled(last=k)`` and `OneStep` are refused.

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

    @property
    def last_steps_suffice(self) -> bool:
        """False: a residual of zero spans no space in which a step could see theta."""
        return False

    def step(self, problem: LinearSystem, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one cycle; the exact solution stays where it is."""
        x = state.x

        def matvec(v: Float[Array, " n"]) -> Float[Array, " n"]:
            return tree.to_vector(problem.operator(tree.from_vector(v, x), theta))

        remainder = -tree.to_vector(problem.residual(x, theta))
        length = min(self.restart, remainder.size)
        basis, hessenberg = arnoldi(matvec, remainder, length)
        target = basis @ remainder
        weights = least_squares(hessenberg, target, float(jnp.finfo(target.dtype).eps))
        return Iterate(tree.add(x, tree.from_vector(weights @ basis[:length], x)))
