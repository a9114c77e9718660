"""Proximal gradient methods for a smooth term plus a term given by its proximal operator."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.algorithms.base import Algorithm, Iterate, State, StatelessAlgorithm
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_range, scalar
from iterdiff.problems.problem import CompositeMinimization, Problem


class ProximalGradient(StatelessAlgorithm):
    r"""Proximal gradient, :math:`x_{t+1} = \mathrm{prox}_{h g}(x_t - h \nabla f(x_t, \theta))`.

    The method converges for :math:`0 < h < 2/L`, where `L` is the Lipschitz constant of the
    gradient of the smooth term. Once it has identified the support, it is gradient descent on
    the support, with rate :math:`\max |1 - h \lambda|` over the eigenvalues of the Hessian there;
    the unrolled Jacobian converges at the same rate. Before, the unrolled Jacobian contains steps
    with the wrong support. Cost: one gradient and one proximal operator a step.

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
    A. Beck, *First-Order Methods in Optimization*, SIAM 2017, chapter 10; for derivatives
    Q. Bertrand et al., *Implicit differentiation for fast hyperparameter selection in
    non-smooth convex learning*, JMLR 2022.
    """

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = (CompositeMinimization,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `step_size` is positive."""
        check_range("step_size", self.step_size, 0.0)

    def step(self, problem: CompositeMinimization, state: Iterate, theta: PyTree) -> Iterate:
        """Return the state after one step."""
        return Iterate(problem.forward_backward(state.x, self.step_size, theta))


class _Accelerated(State):
    """The iterate, the previous one, and the scalar that determines the momentum."""

    x: PyTree
    previous: PyTree
    count: Float[Array, ""]


class FISTA(Algorithm):
    r"""Accelerated proximal gradient (FISTA).

    .. math::

        \tau_{t+1} = \tfrac12 \Bigl(1 + \sqrt{1 + 4 \tau_t^2}\Bigr), \quad
        y_t = x_t + \frac{\tau_t - 1}{\tau_{t+1}} (x_t - x_{t-1}), \quad
        x_{t+1} = \mathrm{prox}_{h g}(y_t - h \nabla f(y_t, \theta)),

    from :math:`x_{-1} = x_0` and :math:`\tau_0 = 1`. For convex :math:`f` with an
    :math:`L`-Lipschitz gradient and :math:`0 < h \le 1/L` the suboptimality of the objective is at
    most :math:`2 \|x_0 - x^*\|^2 / (h (t + 1)^2)`. The objective need not decrease in every step.
    For strongly convex problems the iterate oscillates, and so does the unrolled Jacobian. Cost:
    one gradient and one proximal operator a step.

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
    A. Beck and M. Teboulle, *A fast iterative shrinkage-thresholding algorithm for linear inverse
    problems*, SIAM J. Imaging Sci. 2009.
    """

    step_size: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = (CompositeMinimization,)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that `step_size` is positive."""
        check_range("step_size", self.step_size, 0.0)

    def init(self, problem: CompositeMinimization, x0: PyTree, theta: PyTree) -> _Accelerated:
        """Return the initial state, without momentum."""
        del problem, theta
        return _Accelerated(x0, x0, jnp.ones((), tree.result_dtype(x0)))

    def step(
        self, problem: CompositeMinimization, state: _Accelerated, theta: PyTree
    ) -> _Accelerated:
        """Return the state after one step."""
        count = (1 + jnp.sqrt(1 + 4 * state.count**2)) / 2
        momentum = (state.count - 1) / count
        ahead = tree.axpy(momentum, tree.sub(state.x, state.previous), state.x)
        x = problem.forward_backward(ahead, self.step_size, theta)
        return _Accelerated(x, state.x, count)
