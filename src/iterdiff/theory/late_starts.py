r"""Error bounds of cheap derivatives: late start, one step (JFB), Neumann series, implicit.

One-step differentiation is also known as Jacobian-free backpropagation (JFB). The Neumann series
with k terms gives phantom gradients.

Notation: the map :math:`F` contracts at rate :math:`\rho`, :math:`J^*` is the Jacobian of the
solution, and :math:`e_0 = x_0 - x^*`. The *drift* :math:`C(x) = (F_x(x) - F_x(x^*)) J^* +
F_\theta(x) - F_\theta(x^*)` is what a step at :math:`x \ne x^*` adds to the error of a Jacobian;
:math:`\|C(x_t)\| \le c \rho^t \|e_0\|`. Norms are absolute, in any units.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks


def late_start_bound(
    total: ArrayLike,
    start: ArrayLike,
    rho: ArrayLike,
    initial_drift: ArrayLike,
    jacobian_norm: ArrayLike,
) -> Float[Array, "..."]:
    r"""Return the error bound of differentiating only the last ``total - start`` steps.

    .. math::

        \|\tilde E_{T,K}\| \le \rho^{T-K} \|J^*\| + (T - K)\, \rho^{T-1}\, c\|e_0\| .

    Assumptions: :math:`\|F_x(x_t)\| \le \rho` along the path and :math:`\|C(x_t)\| \le c \rho^t
    \|e_0\|`. In one dimension the bound is an equality if the terms have equal signs.

    Parameters
    ----------
    total : int
        T, the number of iterations that run.
    start : int
        K, the number of leading iterations that are not differentiated, at most T.
    rho : float
        The contraction rate per step, in (0, 1), dimensionless.
    initial_drift : float
        :math:`c\|e_0\|`, the drift at the start, absolute.
    jacobian_norm : float
        :math:`\|J^*\|`, absolute.

    Returns
    -------
    float array
        A bound in the norm of `jacobian_norm`, absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    rate = _checks.as_rate("rho", rho)
    last, first = _checks.as_counts("total", total), _checks.as_counts("start", start)
    known_total = _checks.known_value(last)
    if known_total is not None:
        _checks.require("start", first, lambda v: v <= known_total, "at most `total`")
    drift = _checks.as_nonnegative("initial_drift", initial_drift)
    norm = _checks.as_nonnegative("jacobian_norm", jacobian_norm)
    differentiated = _checks.cast_like(last - first, rate)
    drift_at_end = rate ** (_checks.cast_like(last, rate) - 1) * drift
    return rate**differentiated * norm + differentiated * drift_at_end


def late_start(
    rho: ArrayLike, initial_drift: ArrayLike, jacobian_norm: ArrayLike
) -> Float[Array, "..."]:
    r"""Return the number of leading steps to leave undifferentiated, independent of the total.

    .. math::

        K^* = \max\Big(0,\; 1 + \frac{1}{|\ln\rho|}
              \ln \frac{c\|e_0\|}{|\ln\rho|\,\|J^*\|}\Big)

    minimises `late_start_bound` over K and does not depend on T. In words: start when the drift
    has decreased to about :math:`(1 - \rho)\|J^*\|`. Late start saves memory; it rarely improves
    accuracy.

    Assumptions are those of `late_start_bound`, with one dominant mode.

    With several modes, fast ones dominate the norm of the drift although they decay soon, and
    the rule starts far too late. In that case replace the drift by :math:`(1 - \rho)\|J(x_t) -
    J^*\|` with the implicit derivative :math:`J(x_t)` (for one mode this is the drift itself), and
    start at the first t for which the function returns 0. At this t the implicit derivative at
    :math:`x_t` has the same error as a derivative of zero.

    For gradient descent with :math:`h = 1/L` on quadratics with 30 modes the error is then within
    a factor 1.07 of the best. The rule **fails for heavy ball and for the step size 2/(L + l)**,
    whose fast modes oscillate: the error is up to 3 times the best one there, and more on other
    problems. From ordinary starting points, gradient descent with :math:`h = 1/L` is best
    differentiated from the first step on.

    Parameters
    ----------
    rho : float
        The contraction rate per step, in (0, 1).
    initial_drift : float
        :math:`c\|e_0\|`, the drift at the start, absolute.
    jacobian_norm : float
        :math:`\|J^*\|`, absolute, positive, in the same norm.

    Returns
    -------
    float array
        :math:`K^*`, in iterations, not rounded.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    Examples
    --------
    >>> from iterdiff import theory
    >>> round(float(theory.late_start(0.99, 1.0, 1.0)), 1)
    458.7
    """
    log = -jnp.log(_checks.as_rate("rho", rho))
    drift = _checks.as_nonnegative("initial_drift", initial_drift)
    norm = _checks.as_positive("jacobian_norm", jacobian_norm)
    drifts = drift > 0
    ratio = jnp.where(drifts, drift, 1.0) / (log * norm)
    return jnp.where(drifts, jnp.maximum(0.0, 1 + jnp.log(ratio) / log), 0.0)


def neumann_bound(
    terms: ArrayLike, rho: ArrayLike, jacobian_norm: ArrayLike, drift: ArrayLike = 0.0
) -> Float[Array, "..."]:
    r"""Return the error bound of a Neumann series with k terms (phantom gradient) at x.

    :math:`J^{(k)} = \sum_{i<k} F_x(x)^i F_\theta(x)` satisfies

    .. math::

        \|J^{(k)} - J^*\| \le \rho^k \|J^*\| + \frac{1 - \rho^k}{1 - \rho}\, \|C(x)\| .

    At the solution the drift is 0, and the error is exactly :math:`-F_x^k J^*`. k = 1 is one-step
    differentiation (JFB).

    Assumption: :math:`F` is continuously differentiable.

    Parameters
    ----------
    terms : int
        k, nonnegative.
    rho : float
        :math:`\|F_x(x)\|` in (0, 1), dimensionless: the norm, not the spectral radius. For a
        non-normal :math:`F_x` the spectral radius gives no bound.
    jacobian_norm : float
        :math:`\|J^*\|`, absolute.
    drift : float
        :math:`\|C(x)\|`, absolute.

    Returns
    -------
    float array
        A bound in the norm of the arguments, absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*, 2023.
    """
    rate, count = _checks.as_rate("rho", rho), _checks.as_counts("terms", terms)
    norm = _checks.as_nonnegative("jacobian_norm", jacobian_norm)
    power = _checks.power(rate, count)
    return power * norm + (1 - power) / (1 - rate) * _checks.as_nonnegative("drift", drift)


def one_step_bound(rho: ArrayLike, update_derivative_norm: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`\frac{\rho}{1-\rho}\|F_\theta\|`, the error bound of one step (JFB) at x*.

    It does not depend on the unknown :math:`J^*`, because :math:`\|J^*\| \le \|F_\theta\| /
    (1-\rho)`. It is small for Newton-like maps (:math:`\rho \approx 0`) and useless for slow maps.

    Assumptions: :math:`F` is continuously differentiable, and x is the solution.

    Parameters
    ----------
    rho : float
        :math:`\|F_x(x^*)\|` in (0, 1), dimensionless: the norm, not the spectral radius.
    update_derivative_norm : float
        :math:`\|F_\theta(x^*)\|`, absolute.

    Returns
    -------
    float array
        A bound in the norm of the arguments, absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*, 2023.
    """
    rate = _checks.as_rate("rho", rho)
    return (
        rate / (1 - rate) * _checks.as_nonnegative("update_derivative_norm", update_derivative_norm)
    )


def implicit_bound(
    iterate_error: ArrayLike,
    smallest: ArrayLike,
    jacobian_norm: ArrayLike,
    lipschitz_x: ArrayLike,
    lipschitz_theta: ArrayLike,
) -> Float[Array, "..."]:
    r"""Return the error bound of implicit differentiation (IFT) at an inexact point x.

    For :math:`G(x, \theta) = 0` and :math:`J(x) = -G_x(x)^{-1} G_\theta(x)`,

    .. math::

        \|J(x) - J^*\| \le \frac{\|x - x^*\|}{\ell}\,\big(M_x \|J^*\| + M_\theta\big),

    because :math:`J(x) - J^* = -G_x(x)^{-1}\big[(G_x(x) - G_x^*) J^* + G_\theta(x) -
    G_\theta^*\big]`. To first order the derivative is as inaccurate as the iterate. A Newton
    correction of x before the differentiation makes the error second order.

    Assumptions: :math:`G` is continuously differentiable, and :math:`G_x(x)` is nonsingular.

    Parameters
    ----------
    iterate_error : float
        :math:`\|x - x^*\|`, absolute.
    smallest : float
        :math:`\ell`, the smallest singular value of :math:`G_x(x)`, positive, absolute.
    jacobian_norm : float
        :math:`\|J^*\|_F`, absolute.
    lipschitz_x : float
        A Lipschitz constant :math:`M_x` of :math:`G_x` (spectral norm) between x and x*,
        absolute.
    lipschitz_theta : float
        A Lipschitz constant :math:`M_\theta` of :math:`G_\theta` (Frobenius norm), absolute.

    Returns
    -------
    float array
        A bound in the Frobenius norm, absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    M. Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022.
    """
    error = _checks.as_nonnegative("iterate_error", iterate_error)
    norm = _checks.as_nonnegative("jacobian_norm", jacobian_norm)
    M_x = _checks.as_nonnegative("lipschitz_x", lipschitz_x)
    M_theta = _checks.as_nonnegative("lipschitz_theta", lipschitz_theta)
    return error * (M_x * norm + M_theta) / _checks.as_positive("smallest", smallest)
