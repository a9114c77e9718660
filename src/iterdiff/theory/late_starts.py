r"""Error bounds of the cheap derivatives: late start, one step, a few Neumann terms, implicit.

Notation: the map :math:`F` contracts at rate :math:`\rho`, :math:`J^*` is the Jacobian of the
solution, :math:`e_0 = x_0 - x^*`, and :math:`C(x) = (F_x(x) - F_x(x^*)) J^* + F_\theta(x) -
F_\theta(x^*)`, the *drift*: what a step that is not taken at the solution adds to the error of
a Jacobian, :math:`\|C(x_t)\| \le c \rho^t \|e_0\|`.
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
    r"""Return the error bound when only the last ``total - start`` steps are differentiated.

    .. math::

        \|\tilde E_{T,K}\| \le \rho^{T-K} \|J^*\| + (T - K)\, \rho^{T-1}\, c\|e_0\| .

    Assumptions: :math:`\|F_x(x_t)\| \le \rho` along the path and :math:`\|C(x_t)\| \le c \rho^t
    \|e_0\|`. In one dimension, with equal signs, it is an equality.

    Parameters
    ----------
    total : int
        T, the iterations that run.
    start : int
        K, the leading iterations left undifferentiated.
    rho : float
        The contraction rate per step, in (0, 1).
    initial_drift : float
        :math:`c\|e_0\|`, the drift at the start, absolute.
    jacobian_norm : float
        :math:`\|J^*\|`.

    Returns
    -------
    float array
        Absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    rate = _checks.rate("rho", rho)
    last, first = _checks.steps("total", total), _checks.steps("start", start)
    known = _checks.concrete(last)
    if known is not None:
        _checks.require("start", first, lambda v: v <= known, "at most `total`")
    drift = _checks.nonnegative("initial_drift", initial_drift)
    norm = _checks.nonnegative("jacobian_norm", jacobian_norm)
    length = _checks.counted(last - first, rate)
    return rate**length * norm + length * rate ** (_checks.counted(last, rate) - 1) * drift


def late_start(
    rho: ArrayLike, initial_drift: ArrayLike, jacobian_norm: ArrayLike
) -> Float[Array, "..."]:
    r"""Return how many leading steps to leave undifferentiated, whatever the total.

    .. math::

        K^* = \max\Big(0,\; 1 + \frac{1}{|\ln\rho|}
              \ln \frac{c\|e_0\|}{|\ln\rho|\,\|J^*\|}\Big)

    minimises `late_start_bound` over K, and does not depend on T. In words: start when the
    drift has fallen to about :math:`(1 - \rho)\|J^*\|`.

    Assumptions are those of `late_start_bound`, with one dominant mode. Where several modes
    matter the norm of the drift is governed by fast ones, which soon do not count, and the rule
    comes out far too late. Put :math:`(1 - \rho)\|J(x_t) - J^*\|` in place of the drift, with
    the implicit derivative :math:`J(x_t)` (in one mode that is the drift itself), and start at
    the first t for which the answer is 0: when implicit differentiation at :math:`x_t` is no
    more wrong than no derivative. That is within 1.07 of the best error for gradient descent
    with :math:`1/L` on quadratics of 30 modes, but it **fails for heavy ball and for the step
    2/(L + l)**, whose fast modes oscillate: up to 3 times the best error there, and more on
    others. From ordinary starting points gradient descent with :math:`1/L` is best differentiated
    from the first step on. Late start saves memory; it seldom gains accuracy.

    Parameters
    ----------
    rho : float
        The contraction rate per step, in (0, 1).
    initial_drift : float
        :math:`c\|e_0\|`, the drift at the start, absolute.
    jacobian_norm : float
        :math:`\|J^*\|`, positive, in the same norm.

    Returns
    -------
    float array
        K*, in iterations, not rounded.

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
    log = -jnp.log(_checks.rate("rho", rho))
    drift = _checks.nonnegative("initial_drift", initial_drift)
    norm = _checks.positive("jacobian_norm", jacobian_norm)
    some = drift > 0
    ratio = jnp.where(some, drift, 1.0) / (log * norm)
    return jnp.where(some, jnp.maximum(0.0, 1 + jnp.log(ratio) / log), 0.0)


def neumann_bound(
    terms: ArrayLike, rho: ArrayLike, jacobian_norm: ArrayLike, drift: ArrayLike = 0.0
) -> Float[Array, "..."]:
    r"""Return the error bound of k terms of the Neumann series at a point x.

    :math:`J^{(k)} = \sum_{i<k} F_x(x)^i F_\theta(x)` satisfies

    .. math::

        \|J^{(k)} - J^*\| \le \rho^k \|J^*\| + \frac{1 - \rho^k}{1 - \rho}\, \|C(x)\| .

    At the solution the drift is 0 and the error is :math:`-F_x^k J^*` exactly; k = 1 is
    one-step differentiation.

    Parameters
    ----------
    terms : int
        k, nonnegative.
    rho : float
        :math:`\|F_x(x)\|` in (0, 1): the norm, not only the spectral radius. With a non-normal
        :math:`F_x` the radius in its place gives no bound.
    jacobian_norm : float
        :math:`\|J^*\|`.
    drift : float
        :math:`\|C(x)\|`, absolute.

    Returns
    -------
    float array
        Absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*, 2023.
    """
    rate, count = _checks.rate("rho", rho), _checks.steps("terms", terms)
    norm = _checks.nonnegative("jacobian_norm", jacobian_norm)
    power = _checks.power(rate, count)
    return power * norm + (1 - power) / (1 - rate) * _checks.nonnegative("drift", drift)


def one_step_bound(rho: ArrayLike, update_derivative_norm: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`\frac{\rho}{1-\rho}\|F_\theta\|`, the error bound of one-step at x*.

    It needs nothing of the unknown :math:`J^*`, since :math:`\|J^*\| \le \|F_\theta\| /
    (1-\rho)`. Small for Newton-like maps (:math:`\rho \approx 0`), useless for slow ones.

    Parameters
    ----------
    rho : float
        :math:`\|F_x(x^*)\|` in (0, 1): the norm, not only the spectral radius.
    update_derivative_norm : float
        :math:`\|F_\theta(x^*)\|`.

    Returns
    -------
    float array
        Absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    J. Bolte, E. Pauwels, S. Vaiter, *One-step differentiation of iterative algorithms*, 2023.
    """
    rate = _checks.rate("rho", rho)
    return rate / (1 - rate) * _checks.nonnegative("update_derivative_norm", update_derivative_norm)


def implicit_bound(
    iterate_error: ArrayLike,
    smallest: ArrayLike,
    jacobian_norm: ArrayLike,
    lipschitz_x: ArrayLike,
    lipschitz_theta: ArrayLike,
) -> Float[Array, "..."]:
    r"""Return the error bound of implicit differentiation at a point that is not the solution.

    For :math:`G(x, \theta) = 0` and :math:`J(x) = -G_x(x)^{-1} G_\theta(x)`,

    .. math::

        \|J(x) - J^*\| \le \frac{\|x - x^*\|}{\ell}\,\big(M_x \|J^*\| + M_\theta\big),

    since :math:`J(x) - J^* = -G_x(x)^{-1}\big[(G_x(x) - G_x^*) J^* + G_\theta(x) -
    G_\theta^*\big]`. So it is as inaccurate as the iterate, to first order; one Newton
    correction of x first makes it second order.

    Parameters
    ----------
    iterate_error : float
        :math:`\|x - x^*\|`, absolute.
    smallest : float
        :math:`\ell`, the smallest singular value of :math:`G_x(x)`, positive.
    jacobian_norm : float
        :math:`\|J^*\|_F`.
    lipschitz_x : float
        A Lipschitz constant :math:`M_x` of :math:`G_x` (spectral norm) between x and x*.
    lipschitz_theta : float
        A Lipschitz constant :math:`M_\theta` of :math:`G_\theta` (Frobenius norm).

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
    M. Blondel et al., *Efficient and modular implicit differentiation*, 2022.
    """
    error = _checks.nonnegative("iterate_error", iterate_error)
    norm = _checks.nonnegative("jacobian_norm", jacobian_norm)
    drift = _checks.nonnegative("lipschitz_x", lipschitz_x) * norm + _checks.nonnegative(
        "lipschitz_theta", lipschitz_theta
    )
    return error * drift / _checks.positive("smallest", smallest)
