"""When there is no burn-in: the largest step, and the condition on a single eigenvector."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from iterdiff.theory import _checks


def largest_step_without_burn_in(largest: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`\sqrt 2 / L`, the largest gradient step whose E-factor never grows.

    :math:`\max_\lambda |P_t - \lambda P_t'|` falls monotonically in t if and only if
    :math:`h \le \sqrt2/L`: at :math:`\lambda = L` its first step, from 1 to
    :math:`|1 - s|(1 + s) = |s^2 - 1|` at t = 2 with :math:`s = hL`, decides.

    Assumptions: quadratic objective, :math:`H` and :math:`dH` commute, and :math:`\mathsf G =
    0`, as for ridge regression in its regularisation from :math:`x_0 = 0`. With
    :math:`\mathsf G > 0` there can be a burn-in at any step size, of a height that the step
    does not change.

    Parameters
    ----------
    largest : float
        The largest eigenvalue :math:`L` of the Hessian.

    Returns
    -------
    float array
        A step size.

    Raises
    ------
    ValueError
        If `largest` is known and not positive.
    """
    return jnp.sqrt(2.0) / _checks.positive("largest", largest)


def mode_error(t: ArrayLike, relative_step: ArrayLike, ratio: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`E_t / E_0 = (1-s)^{t-1}(1 - s - tsr)` of a single eigenvector.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative.
    relative_step : float
        :math:`s = h\lambda`, in (0, 1).
    ratio : float
        :math:`r = dH\,(x_0 - x^*) / (\lambda E_0)` in that eigenvector.

    Returns
    -------
    float array
        Dimensionless, signed.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    count, s = _checks.steps("t", t), _checks.rate("relative_step", relative_step)
    n = _checks.counted(count, s)
    return (1 - s) ** (n - 1) * (1 - s - n * s * _checks.real(ratio))


def mode_has_burn_in(ratio: ArrayLike) -> Bool[Array, "..."]:
    r"""Return whether a single eigenvector shows a burn-in under small gradient steps.

    For :math:`s = h\lambda \ll 1` the error of `mode_error` never exceeds its start if and only
    if :math:`-1 \le r \le 1/W(1/e) = 3.5911`. At the lower end the gradient's derivative
    :math:`\lambda E_0 + dH\,e_0` vanishes; at the upper end the error passes through zero and
    comes back, with the other sign, exactly to its starting size.

    Parameters
    ----------
    ratio : float
        :math:`r = dH\,(x_0 - x^*) / (\lambda E_0)` in that eigenvector.

    Returns
    -------
    bool array
    """
    r = _checks.real(ratio)
    return (r < -1) | (r > 3.591121476668622)
