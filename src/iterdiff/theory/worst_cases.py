r"""Worst cases of the residual polynomials over a spectrum in [l, L].

The functions ``*_factors`` return the three maxima that the bounds of
`iterdiff.theory.bounds` are made of, exactly where a closed form is known.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks
from iterdiff.theory.error_formula import jacobian_part
from iterdiff.theory.polynomials import nesterov_parameters, nesterov_polynomial, polyak_parameters
from iterdiff.theory.rates import chebyshev_rate
from iterdiff.theory.sobolev import sobolev_polynomials


class Factors(NamedTuple):
    r"""Worst cases of a residual polynomial over :math:`[\ell, L]`.

    Attributes
    ----------
    iterate : float array
        :math:`\max |P_t|`, what multiplies the iterate's initial error. Dimensionless.
    jacobian : float array
        :math:`\max |P_t - \lambda P_t'|`, the E-factor. Dimensionless.
    gradient : float array
        :math:`\max |P_t'|`, the G-factor, in units of one over the eigenvalue.
    """

    iterate: Float[Array, "..."]
    jacobian: Float[Array, "..."]
    gradient: Float[Array, "..."]


def gradient_descent_factors(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike
) -> Factors:
    r"""Return the exact factors of gradient descent, for any step.

    With :math:`q = 1 - h\lambda` they are the maxima of :math:`|q|^t`,
    :math:`|q|^{t-1} |1 + (t-1) h\lambda|` and :math:`h t |q|^{t-1}`. Each falls while
    :math:`h\lambda < 1` and grows beyond, so that it is largest at :math:`\ell` or :math:`L`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum.
    step_size : float
        The step :math:`h`, positive.

    Returns
    -------
    Factors

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    ends = gradient_descent_ends(t, smallest, largest, step_size)
    return Factors(*(jnp.maximum(*pair) for pair in zip(*ends, strict=True)))


def gradient_descent_ends(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike
) -> list[Factors]:
    """Return the factors of gradient descent at either end of the spectrum, smallest first."""
    count = _checks.steps("t", t)
    h = _checks.positive("step_size", step_size)
    out = []
    for lam in _checks.interval(smallest, largest):
        factor = jnp.abs(1 - h * lam)
        n = _checks.counted(count, factor)
        before = _checks.power(factor, jnp.maximum(count - 1, 0))
        error = jnp.where(count == 0, 1.0, before * (1 + (n - 1) * h * lam))
        out.append(Factors(_checks.power(factor, count), error, h * n * before))
    return out


def heavy_ball_factors(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, *, damped_start: bool = False
) -> Factors:
    r"""Return the exact factors of heavy ball with Polyak's parameters.

    With :math:`r = \sqrt\beta`, :math:`u_t = t + 1` and :math:`v_t = t(t+1)(t+2)/3`, the values
    of :math:`U_t` and :math:`U_t'` in 1: from rest all maxima are at :math:`\lambda = L`,

    .. math::

        p = r^t (u_t + r u_{t-1}), \quad
        d = \frac{h}{2r} r^t (v_t + r v_{t-1}), \quad
        \max|P_t - \lambda P_t'| = L d - p .

    Damped, :math:`p = r^t(1 + ct)` and :math:`d = \frac{h}{2r} r^t(a t^2 + c\,v_t)` with
    :math:`a = 2\beta/(1+\beta)`, :math:`c = (1-\beta)/(1+\beta)`, the same at both ends, and the
    E-factor is :math:`\max(Ld - p, p + \ell d)`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    damped_start : bool
        As in `heavy_ball_polynomial`.

    Returns
    -------
    Factors

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    count = _checks.steps("t", t)
    low, high = _checks.interval(smallest, largest, strict=True)
    h, beta = polyak_parameters(low, high)
    root = chebyshev_rate(low, high)
    n = _checks.counted(count, root)
    power, slope = _checks.power(root, count), n * (n + 1) * (n + 2) / 3
    if damped_start:
        a, c = 2 * beta / (1 + beta), (1 - beta) / (1 + beta)
        value = power * (1 + c * n)
        derivative = h / (2 * root) * power * (a * n**2 + c * slope)
        worst = jnp.maximum(high * derivative - value, value + low * derivative)
    else:
        value = power * (n + 1 + root * n)
        derivative = h / (2 * root) * power * (slope + root * (n - 1) * n * (n + 1) / 3)
        worst = high * derivative - value
        worst = jnp.where(count == 0, 1.0, worst)
    return Factors(value, worst, derivative)


def nesterov_factors(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, *, points: int = 2048
) -> Factors:
    r"""Return the factors of Nesterov's method with its usual parameters.

    :math:`|P_t|` and :math:`|P_t'|` are largest at :math:`\ell`; with :math:`s =
    \sqrt{\ell/L}`,

    .. math::

        P_t(\ell) = (1-s)^t (1 + st), \qquad |P_t'(\ell)| = \frac{(1-s)^t\,t}{2L(1-s^2)}
        \Big[1 + t + \frac s3 (t+1)(t+2)\Big].

    (That the maxima are there was checked numerically.) :math:`P_t - \lambda P_t'` may be
    largest inside. Its maximum over `points` + 1 Chebyshev points, divided by
    :math:`\cos(\pi t / (2\,\mathtt{points}))`, is a bound by Riesz' inequality, at most 0.3 %
    above the maximum for t up to a twentieth of `points`. (For t beyond `points` the
    cruder :math:`\max|P_t| + L \max|P_t'|` is returned.)

    Parameters
    ----------
    t : int array
        Iterations, nonnegative.
    smallest, largest : float
        Scalar bounds :math:`0 < \ell < L` of the spectrum.
    points : int
        Resolution, static.

    Returns
    -------
    Factors

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    count = _checks.steps("t", t)
    low, high = _checks.interval(smallest, largest, strict=True)
    step, momentum = nesterov_parameters(low, high)
    s = jnp.sqrt(low / high)
    n = _checks.counted(count, s)
    power = _checks.power(1 - s, count)
    value = power * (1 + s * n)
    bracket = 1 + n + s / 3 * (n + 1) * (n + 2)
    derivative = power * n / (2 * (high - low)) * bracket
    grid = _chebyshev_points(low, high, points)

    def largest_part(k):
        polynomial = nesterov_polynomial(k, grid, step, momentum)
        return _highest(jacobian_part(polynomial, grid))

    found = jax.lax.map(largest_part, count.reshape(-1)).reshape(count.shape)
    return Factors(value, _between(found, n, points, value + high * derivative), derivative)


def chebyshev_factors(t: ArrayLike, smallest: ArrayLike, largest: ArrayLike) -> Factors:
    r"""Return the exact factors of the Chebyshev method.

    With :math:`\xi = (\sqrt L + \sqrt\ell) / (\sqrt L - \sqrt\ell)` and :math:`\tau = 2 /
    (\xi^t + \xi^{-t})` they are, for :math:`t \ge 1`,

    .. math::

        \tau, \qquad \tau \Big(\frac{2 t^2}{1 - \kappa} - 1\Big), \qquad
        \tau\, \frac{2 t^2}{L - \ell},

    all attained at :math:`\lambda = L`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.

    Returns
    -------
    Factors

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    count = _checks.steps("t", t)
    low, high = _checks.interval(smallest, largest, strict=True)
    rate = chebyshev_rate(low, high)
    n = _checks.counted(count, rate)
    value = 2 * _checks.power(rate, count) / (1 + _checks.power(rate, 2 * count))
    derivative = value * 2 * n**2 / (high - low)
    return Factors(value, jnp.where(count == 0, 1.0, high * derivative - value), derivative)


def sobolev_factors(
    steps: int, smallest: ArrayLike, largest: ArrayLike, *, points: int = 2048, **options
) -> Factors:
    r"""Return the factors of the Sobolev method for every t from 0 to `steps`.

    No closed form is known. The maxima over `points` + 1 Chebyshev points, divided by
    :math:`\cos(\pi t / (2\,\mathtt{points}))`, are bounds by Riesz' inequality.

    Parameters
    ----------
    steps : int
        The largest t, static and below `points`.
    smallest, largest : float
        Scalar bounds :math:`0 < \ell < L` of the spectrum.
    points : int
        Resolution, static.
    **options
        `alpha`, `eta` and `norm` of `sobolev_polynomials`.

    Returns
    -------
    Factors
        Arrays of shape (steps + 1,).

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    _checks.require("steps", steps, lambda v: (v >= 0) & (v == np.floor(v)), "a whole number")
    if not steps < points:
        raise ValueError(f"`steps` must be below `points`, but {steps} is not below {points}.")
    low, high = _checks.interval(smallest, largest, strict=True)
    grid = _chebyshev_points(low, high, points)
    polynomials = sobolev_polynomials(steps, grid, low, high, **options)
    rows = polynomials.value, jacobian_part(polynomials, grid[None]), polynomials.derivative
    n = jnp.arange(steps + 1, dtype=grid.dtype)
    found = [_highest(row) for row in rows]
    return Factors(*(_between(row, n, points, row) for row in found))


def _highest(values: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Return the largest magnitude along the last axis, taken where it is.

    Equal to ``jnp.max(jnp.abs(values), -1)``, whose derivative looks for the maximum among the
    values: a compiler that computes these twice, differently rounded, finds it nowhere (1 / 0).
    """
    height = jnp.abs(values)
    where = jnp.argmax(height, axis=-1, keepdims=True)
    return jnp.take_along_axis(height, where, axis=-1)[..., 0]


def _chebyshev_points(
    low: Float[Array, ""], high: Float[Array, ""], points: int
) -> Float[Array, " n"]:
    """Return points + 1 extrema of a Chebyshev polynomial on [low, high], ends included."""
    position = np.sin(np.pi / 2 * np.arange(points + 1) / points) ** 2
    return low + (high - low) * jnp.asarray(position, low.dtype)


def _between(
    found: Float[Array, "..."], t: Float[Array, "..."], points: int, otherwise: ArrayLike
) -> Float[Array, "..."]:
    """Turn a maximum over Chebyshev points into a bound over the whole interval.

    A polynomial of degree t, as a cosine polynomial, stays above M cos(t * distance) around a
    maximum M (Riesz), and no angle is farther than pi / (2 points) from a point.
    """
    fine = t < points
    margin = jnp.cos(jnp.pi / 2 * jnp.where(fine, t / points, 0.0))
    return jnp.where(fine, found / margin, otherwise)
