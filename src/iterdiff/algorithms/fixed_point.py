"""Methods for fixed points: plain iteration and Anderson acceleration."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, State, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_count, check_range, scalar
from iterdiff.linalg.least_squares import least_squares
from iterdiff.problems.problem import FixedPoint, Problem


class Picard(StatelessAlgorithm):
    r"""Fixed-point iteration, :math:`x_{t+1} = x_t + \omega (F(x_t, \theta) - x_t)`.

    With damping :math:`\omega = 1` this is :math:`x_{t+1} = F(x_t, \theta)`. The method
    converges locally if the spectral radius of
    :math:`I + \omega (\partial F / \partial x - I)` at the fixed point is below 1, with that
    rate. The unrolled Jacobian converges at the same rate up to a factor :math:`t`. Cost: one
    evaluation of `F` a step.

    Parameters
    ----------
    damping : scalar
        The factor :math:`\omega`, positive, dimensionless. Values below 1 damp oscillations.

    Raises
    ------
    ValueError
        If `damping` is known and not positive.

    References
    ----------
    C. T. Kelley, *Iterative Methods for Linear and Nonlinear Equations*, SIAM 1995, chapter 4.
    """

    damping: Float[Array, ""] = eqx.field(converter=scalar, default=1.0)
    accepts: ClassVar[tuple[type[Problem], ...]] = (FixedPoint,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `damping` is positive."""
        check_range("damping", self.damping, 0.0)

    def step(self, problem: FixedPoint, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one step."""
        residual = problem.residual(state.x, theta)
        return Iterate(tree.axpy(-self.damping, residual, state.x))


class _Window(State):
    """The iterate, its step ``F(x) - x``, and the most recent differences of both."""

    x: PyTree
    move: Float[Array, " n"]
    x_differences: Float[Array, "k n"]
    move_differences: Float[Array, "k n"]


class Anderson(Algorithm):
    r"""Anderson acceleration (type II) with a window of `depth` differences.

    Let :math:`f_t = F(x_t, \theta) - x_t`, and let the columns of :math:`\Delta X_t` and
    :math:`\Delta F_t` be the most recent differences of iterates and of :math:`f`. Then

    .. math::

        \gamma_t = \arg\min_\gamma \|f_t - \Delta F_t \gamma\|, \qquad
        x_{t+1} = x_t + \omega f_t - (\Delta X_t + \omega \Delta F_t) \gamma_t .

    For an affine `F` and a long enough window the method is equivalent to GMRES and ends after at
    most n + 1 steps. For a contraction it converges asymptotically at least as fast as `Picard`.
    We solve the least-squares problem by a QR factorisation of normalised columns, damped at the
    square root of the machine epsilon. Cost: one evaluation of `F` and :math:`O(n k^2)` operations
    a step for a window of length k. Memory: 2 k n.

    `Unrolled` warns, because :math:`\gamma_t` becomes a ratio of rounding errors near the
    solution: its derivative loses accuracy as the iterate converges, and may never converge
    itself.

    Parameters
    ----------
    depth : int
        Length of the window, at least 1. The default of 5 suits most problems.
    damping : scalar
        The factor :math:`\omega`, positive, dimensionless.

    Raises
    ------
    TypeError
        If `depth` is not an int.
    ValueError
        If `depth` is below 1, or `damping` is known and not positive.

    References
    ----------
    D. G. Anderson, *Iterative procedures for nonlinear integral equations*, 1965; H. F. Walker and
    P. Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer. Anal. 2011.
    """

    depth: int = eqx.field(static=True, default=5)
    damping: Float[Array, ""] = eqx.field(converter=scalar, default=1.0)
    accepts: ClassVar[tuple[type[Problem], ...]] = (FixedPoint,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `depth` and `damping` are positive."""
        check_count("depth", self.depth)
        check_range("damping", self.damping, 0.0)

    @property
    def caveat(self) -> str:
        """Why the derivative of the steps may be inaccurate."""
        return (
            "its weights are ratios of differences that vanish at the solution, so that their "
            "derivative loses accuracy as the iterate converges, and may never converge itself."
        )

    @property
    def lag(self) -> int:
        """1, because a step moves by what the previous one computed at the iterate."""
        return 1

    def init(self, problem: FixedPoint, x0: PyTree, theta: PyTree) -> _Window:
        """Return the initial state, with an empty window."""
        move = _move(problem, x0, theta)
        window = tree.zero_rows(move, self.depth)
        return _Window(x0, move, window, window)

    def step(self, problem: FixedPoint, state: _Window, theta: PyTree) -> _Window:
        """Return the state after one step; a fixed point stays where it is."""
        damping = self.damping.astype(state.move.dtype)
        rounding = float(jnp.finfo(state.move.dtype).eps) ** 0.5
        weights = least_squares(state.move_differences, state.move, rounding)
        change = damping * state.move
        change -= weights @ (state.x_differences + damping * state.move_differences)
        x = tree.add(state.x, tree.from_vector(change, state.x))
        move = _move(problem, x, theta)
        return _Window(
            x,
            move,
            jnp.concatenate([state.x_differences[1:], change[None]]),
            jnp.concatenate([state.move_differences[1:], (move - state.move)[None]]),
        )


def _move(problem: FixedPoint, x: PyTree, theta: PyTree) -> Float[Array, " n"]:
    """Return ``F(x, theta) - x`` as one vector."""
    return -tree.to_vector(problem.residual(x, theta))
