"""Conditions without burn-in: the largest step size, and a test of a single eigenvector."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from iterdiff.theory import _checks

_LARGEST_RATIO = 3.591121476668622  # 1 / W(1/e): where the error returns to -E_0


def largest_step_without_burn_in(largest: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`\sqrt 2 / L`, the largest gradient step whose E-factor never grows.

    :math:`\max_\lambda |P_t - \lambda P_t'|` decreases monotonically in t if and only if
    :math:`h \le \sqrt2/L`. The second iteration at :math:`\lambda = L` decides: it takes the value
    from 1 to :math:`|1 - s|(1 + s) = |s^2 - 1|` with :math:`s = hL`.

    Assumptions: quadratic objective; :math:`H` and :math:`dH` commute; :math:`\mathsf G = 0`, as
    for ridge regression in its regularisation from :math:`x_0 = 0`. If :math:`\mathsf G > 0`,
    any step size can have a burn-in, and its height does not depend on the step size.

    Parameters
    ----------
    largest : float
        The largest eigenvalue :math:`L` of the Hessian, positive.

    Returns
    -------
    float array
        A step size, in units of one over the eigenvalue.

    Raises
    ------
    ValueError
        If `largest` is known and not positive.

    Examples
    --------
    >>> from iterdiff import theory
    >>> round(float(theory.largest_step_without_burn_in(2.0)), 4)
    0.7071
    """
    return jnp.sqrt(2.0) / _checks.as_positive("largest", largest)


def mode_error(t: ArrayLike, relative_step: ArrayLike, ratio: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`E_t / E_0 = (1-s)^{t-1}(1 - s - tsr)` for a single eigenvector.

    Assumptions: gradient descent on a quadratic objective; :math:`H` and :math:`dH` commute; the
    step size does not depend on :math:`\theta`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative. The arguments broadcast against each other.
    relative_step : float
        :math:`s = h\lambda`, in (0, 1), dimensionless.
    ratio : float
        :math:`r = dH\,(x_0 - x^*) / (\lambda E_0)` for that eigenvector, dimensionless.

    Returns
    -------
    float array
        Dimensionless, signed.

    Raises
    ------
    ValueError
        If `t` or `relative_step` is known and out of range.

    Examples
    --------
    The errors after 0, 1 and 2 steps, relative to the first one:

    >>> from iterdiff import theory
    >>> import jax.numpy as jnp
    >>> theory.mode_error(jnp.arange(3), 0.5, 1.0).tolist()
    [1.0, 0.0, -0.25]
    """
    count, s = _checks.as_counts("t", t), _checks.as_rate("relative_step", relative_step)
    n = _checks.cast_like(count, s)
    return (1 - s) ** (n - 1) * (1 - s - n * s * _checks.as_real("ratio", ratio))


def mode_has_burn_in(ratio: ArrayLike) -> Bool[Array, "..."]:
    r"""Return whether a single eigenvector has a burn-in under small gradient steps.

    For :math:`s = h\lambda \ll 1` the error of `mode_error` never exceeds its initial size if
    and only if :math:`-1 \le r \le 1/W(1/e) = 3.5911`. At the lower end the derivative of the
    gradient, :math:`\lambda E_0 + dH\,e_0`, vanishes. At the upper end the error changes sign and
    then returns exactly to its initial size.

    Assumptions are those of `mode_error`.

    Parameters
    ----------
    ratio : float
        :math:`r = dH\,(x_0 - x^*) / (\lambda E_0)` for that eigenvector, dimensionless.

    Returns
    -------
    bool array
        Of the shape of `ratio`.

    Examples
    --------
    >>> from iterdiff import theory
    >>> import jax.numpy as jnp
    >>> theory.mode_has_burn_in(jnp.array([-2.0, 0.0, 4.0])).tolist()
    [True, False, True]
    """
    r = _checks.as_real("ratio", ratio)
    return (r < -1) | (r > _LARGEST_RATIO)
