r"""Asymptotic rates: by which factor the errors fall per iteration, in the end.

The unrolled Jacobian converges at the same rate as the iterate, up to a factor that is a
polynomial in t. That polynomial is the burn-in.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks


def gradient_descent_rate(
    smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike
) -> Float[Array, "..."]:
    r"""Return :math:`\max(|1 - h\ell|, |1 - hL|)`; at or above 1 it does not converge.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum of the Hessian.
    step_size : float
        The step :math:`h`, positive.

    Returns
    -------
    float array
        The rate per step, dimensionless.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    Examples
    --------
    >>> from iterdiff import theory
    >>> float(theory.gradient_descent_rate(0.5, 1.0, 1.0))
    0.5
    """
    low, high = _checks.interval(smallest, largest)
    h = _checks.positive("step_size", step_size)
    return jnp.maximum(jnp.abs(1 - h * low), jnp.abs(1 - h * high))


def heavy_ball_rate(
    smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike, momentum: ArrayLike
) -> Float[Array, "..."]:
    r"""Return the largest modulus of a root of :math:`z^2 - (1 + \beta - h\lambda) z + \beta`.

    Over :math:`[\ell, L]` it is attained at an end, as it is :math:`\sqrt\beta` where the roots
    are complex and grows outwards from there. With Polyak's parameters it is :math:`\sqrt\beta
    = (\sqrt L - \sqrt\ell) / (\sqrt L + \sqrt\ell)`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum of the Hessian.
    step_size : float
        The step :math:`h`, positive.
    momentum : float
        The factor :math:`\beta` in (-1, 1).

    Returns
    -------
    float array
        The rate per step, dimensionless. At a double root (Polyak's parameters) it is not
        differentiable, and rounding moves it by the square root of the precision.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.interval(smallest, largest)
    h, beta = _checks.positive("step_size", step_size), _momentum(momentum)
    return jnp.maximum(*(_largest_root((1 + beta - h * lam) / 2, beta) for lam in (low, high)))


def nesterov_rate(
    smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike, momentum: ArrayLike
) -> Float[Array, "..."]:
    r"""Return the largest modulus of a root of :math:`z^2 - (1 + \beta) q z + \beta q`.

    Here :math:`q = 1 - h\lambda`; the maximum over :math:`[\ell, L]` is attained at an end.
    With :math:`h = 1/L` and Nesterov's momentum it is :math:`1 - \sqrt{\ell / L}`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum of the Hessian.
    step_size : float
        The step :math:`h`, positive.
    momentum : float
        The factor :math:`\beta` in (-1, 1).

    Returns
    -------
    float array
        The rate per step, dimensionless; see `heavy_ball_rate` on double roots.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.interval(smallest, largest)
    h, beta = _checks.positive("step_size", step_size), _momentum(momentum)
    ends = [1 - h * lam for lam in (low, high)]
    return jnp.maximum(*(_largest_root((1 + beta) * q / 2, beta * q) for q in ends))


def chebyshev_rate(smallest: ArrayLike, largest: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`(\sqrt L - \sqrt\ell) / (\sqrt L + \sqrt\ell)`, the best first-order rate.

    It is the rate of the Chebyshev method, of heavy ball with Polyak's parameters and of the
    Sobolev method; no method that knows only the bounds of the spectrum has a better one.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum of the Hessian.

    Returns
    -------
    float array
        The rate per step, dimensionless.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    Examples
    --------
    >>> from iterdiff import theory
    >>> round(float(theory.chebyshev_rate(0.25, 1.0)), 4)
    0.3333
    """
    low, high = _checks.interval(smallest, largest)
    # Written so that nothing cancels when the bounds are close to each other.
    return (high - low) / (jnp.sqrt(high) + jnp.sqrt(low)) ** 2


def _momentum(momentum: ArrayLike) -> Float[Array, "..."]:
    _checks.require("momentum", momentum, lambda v: (v > -1) & (v < 1), "between -1 and 1")
    return _checks.real(momentum)


def _largest_root(mean: Float[Array, "..."], product: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the largest modulus of a root of z**2 - 2 mean z + product."""
    discriminant = mean**2 - product
    positive = discriminant > 0
    spread = jnp.sqrt(jnp.where(positive, discriminant, 1.0))
    complex_pair = jnp.sqrt(jnp.where(positive, 1.0, product))
    return jnp.where(positive, jnp.abs(mean) + spread, complex_pair)
