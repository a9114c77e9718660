r"""Asymptotic convergence rates per iteration.

The unrolled Jacobian converges at the same rate as the iterate, up to a factor that is a
polynomial in t. That polynomial causes the burn-in.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks


def gradient_descent_rate(
    smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike
) -> Float[Array, "..."]:
    r"""Return the rate :math:`\max(|1 - h\ell|, |1 - hL|)` of gradient descent.

    At or above 1 the iteration does not converge. Assumption: quadratic objective, or the
    Hessian at the solution.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum of the Hessian.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.

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
    low, high = _checks.as_spectrum(smallest, largest)
    h = _checks.as_positive("step_size", step_size)
    return jnp.maximum(jnp.abs(1 - h * low), jnp.abs(1 - h * high))


def heavy_ball_rate(
    smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike, momentum: ArrayLike
) -> Float[Array, "..."]:
    r"""Return the rate of heavy ball.

    It is the largest modulus of a root of :math:`z^2 - (1 + \beta - h\lambda) z + \beta` over
    :math:`\lambda \in [\ell, L]`. The maximum is at :math:`\ell` or :math:`L`, because the
    modulus is :math:`\sqrt\beta` where the roots are complex and grows from there towards both
    ends. With Polyak's parameters the rate is :math:`\sqrt\beta = (\sqrt L - \sqrt\ell) / (\sqrt
    L + \sqrt\ell)`. Assumption: quadratic objective, or the Hessian at the solution.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum of the Hessian.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.
    momentum : float
        The factor :math:`\beta` in (-1, 1), dimensionless.

    Returns
    -------
    float array
        The rate per step, dimensionless. At a double root (Polyak's parameters) it is not
        differentiable, and rounding changes it by the square root of the precision.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.as_spectrum(smallest, largest)
    h, beta = _checks.as_positive("step_size", step_size), _checks.as_momentum(momentum)
    return jnp.maximum(*(_largest_root((1 + beta - h * lam) / 2, beta) for lam in (low, high)))


def nesterov_rate(
    smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike, momentum: ArrayLike
) -> Float[Array, "..."]:
    r"""Return the rate of Nesterov's method with constant momentum.

    It is the largest modulus of a root of :math:`z^2 - (1 + \beta) q z + \beta q` with
    :math:`q = 1 - h\lambda`. The maximum over :math:`\lambda \in [\ell, L]` is at an end. With
    :math:`h = 1/L` and Nesterov's momentum the rate is :math:`1 - \sqrt{\ell / L}`. Assumption:
    quadratic objective, or the Hessian at the solution.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum of the Hessian.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.
    momentum : float
        The factor :math:`\beta` in (-1, 1), dimensionless.

    Returns
    -------
    float array
        The rate per step, dimensionless; see `heavy_ball_rate` on double roots.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.as_spectrum(smallest, largest)
    h, beta = _checks.as_positive("step_size", step_size), _checks.as_momentum(momentum)
    ends = [1 - h * lam for lam in (low, high)]
    return jnp.maximum(*(_largest_root((1 + beta) * q / 2, beta * q) for q in ends))


def chebyshev_rate(smallest: ArrayLike, largest: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`(\sqrt L - \sqrt\ell) / (\sqrt L + \sqrt\ell)`, the best first-order rate.

    It is the rate of the Chebyshev method, of heavy ball with Polyak's parameters and of the
    Sobolev method. No method that knows only the bounds of the spectrum has a better rate.

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
    low, high = _checks.as_spectrum(smallest, largest)
    # This form does not cancel when the bounds are close to each other.
    return (high - low) / (jnp.sqrt(high) + jnp.sqrt(low)) ** 2


def _largest_root(mean: Float[Array, "..."], product: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the largest modulus of a root of ``z**2 - 2 mean z + product``."""
    discriminant = mean**2 - product
    is_real = discriminant > 0
    half_gap = jnp.sqrt(jnp.where(is_real, discriminant, 1.0))
    complex_modulus = jnp.sqrt(jnp.where(is_real, 1.0, product))
    return jnp.where(is_real, jnp.abs(mean) + half_gap, complex_modulus)
