"""First-order methods for smooth minimisation."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, State, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_range, scalar
from iterdiff.problems.least_squares import MINIMIZATIONS
from iterdiff.problems.problem import Problem, SmoothMinimization


class GradientDescent(StatelessAlgorithm):
    r"""Gradient descent, :math:`x_{t+1} = x_t - h \nabla_x f(x_t, \theta)`.

    On a quadratic with spectrum in :math:`[\ell, L]` the method converges for
    :math:`0 < h < 2/L`, with rate :math:`\max(|1 - h\ell|, |1 - hL|)` per step;
    :math:`h = 2/(L + \ell)` is fastest. For :math:`h \le \sqrt 2 / L` the initial Jacobian error
    causes no burn-in of the unrolled Jacobian. Cost: one gradient a step.

    Parameters
    ----------
    step_size : scalar
        The step :math:`h`, positive, in units of `x` per unit of gradient.

    Raises
    ------
    ValueError
        If `step_size` is known and not positive.

    References
    ----------
    Y. Nesterov, *Lectures on Convex Optimization*, Springer 2018, section 2.1.5.
    """

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = MINIMIZATIONS
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `step_size` is positive."""
        check_range("step_size", self.step_size, 0.0)

    def step(self, problem: SmoothMinimization, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one gradient step."""
        gradient = problem.residual(state.x, theta)
        return Iterate(tree.axpy(-self.step_size, gradient, state.x))


class _TwoIterates(State):
    """The iterate and the previous one."""

    x: PyTree
    previous: PyTree


class _MomentumMethod(Algorithm):
    """Base class of methods with constant step size and momentum that start without velocity."""

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    momentum: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = MINIMIZATIONS
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check the ranges of `step_size` and `momentum`."""
        check_range("step_size", self.step_size, 0.0)
        check_range("momentum", self.momentum, -1.0, 1.0)

    def init(self, problem: SmoothMinimization, x0: PyTree, theta: PyTree) -> _TwoIterates:
        """Return the initial state, without momentum."""
        del problem, theta
        return _TwoIterates(x0, x0)


class HeavyBall(_MomentumMethod):
    r"""Polyak's heavy ball, :math:`x_{t+1} = x_t - h \nabla f(x_t) + \beta (x_t - x_{t-1})`.

    The first step has no momentum: :math:`x_{-1} = x_0`. On a quadratic with spectrum in
    :math:`[\ell, L]`, the parameters :math:`h = 4 / (\sqrt L + \sqrt \ell)^2` and
    :math:`\sqrt\beta = (\sqrt L - \sqrt \ell) / (\sqrt L + \sqrt \ell)` give the rate
    :math:`\sqrt\beta`. The burn-in of the unrolled Jacobian may then reach a peak of about
    :math:`0.22\,(L / \ell)^{3/2}` (see `iterdiff.theory`). Cost: one gradient a step.

    Parameters
    ----------
    step_size : scalar
        The step :math:`h`, positive.
    momentum : scalar
        The factor :math:`\beta`, in (-1, 1), dimensionless.

    Raises
    ------
    ValueError
        If a hyper-parameter is known and out of range.

    References
    ----------
    B. T. Polyak, *Some methods of speeding up the convergence of iteration methods*, 1964.
    """

    def step(self, problem: SmoothMinimization, state: _TwoIterates, theta: PyTree) -> _TwoIterates:
        """Return the state after one step."""
        gradient = problem.residual(state.x, theta)
        velocity = tree.sub(state.x, state.previous)
        moved = tree.axpy(self.momentum, velocity, state.x)
        return _TwoIterates(tree.axpy(-self.step_size, gradient, moved), state.x)


class Nesterov(_MomentumMethod):
    r"""Nesterov's accelerated gradient with constant momentum.

    .. math::

        y_t = x_t + \beta (x_t - x_{t-1}), \qquad x_{t+1} = y_t - h \nabla f(y_t),

    from :math:`x_{-1} = x_0`. For an :math:`\ell`-strongly convex function with an
    :math:`L`-Lipschitz gradient, choose :math:`h = 1/L` and
    :math:`\beta = (\sqrt L - \sqrt\ell) / (\sqrt L + \sqrt\ell)`. On a quadratic the error then
    falls like :math:`(1 - \sqrt{\ell / L})^t` up to a polynomial factor. Cost: one gradient a
    step.

    Parameters
    ----------
    step_size : scalar
        The step :math:`h`, positive.
    momentum : scalar
        The factor :math:`\beta`, in (-1, 1), dimensionless.

    Raises
    ------
    ValueError
        If a hyper-parameter is known and out of range.

    References
    ----------
    Y. Nesterov, *Lectures on Convex Optimization*, Springer 2018, section 2.2.1.
    """

    def step(self, problem: SmoothMinimization, state: _TwoIterates, theta: PyTree) -> _TwoIterates:
        """Return the state after one step."""
        ahead = tree.axpy(self.momentum, tree.sub(state.x, state.previous), state.x)
        gradient = problem.residual(ahead, theta)
        return _TwoIterates(tree.axpy(-self.step_size, gradient, ahead), state.x)
