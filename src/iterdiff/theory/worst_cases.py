r"""Maxima of the residual polynomials over a spectrum in [l, L].

The functions ``*_factors`` return the three maxima from which `iterdiff.theory.bounds` makes its
bounds. They are exact if a closed form is known, and upper bounds otherwise.

Assumptions are those of `iterdiff.theory.polynomials`.
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
    r"""Maxima of a residual polynomial over :math:`[\ell, L]`.

    Attributes
    ----------
    iterate : float array
        :math:`\max |P_t|`, the factor of the initial error of the iterate. Dimensionless.
    jacobian : float array
        :math:`\max |P_t - \lambda P_t'|`, the E-factor: the factor of the initial error of the
        Jacobian. Dimensionless.
    gradient : float array
        :math:`\max |P_t'|`, the G-factor: the factor of :math:`\mathsf G`. In units of one over
        the eigenvalue.
    """

    iterate: Float[Array, "..."]
    jacobian: Float[Array, "..."]
    gradient: Float[Array, "..."]


def gradient_descent_factors(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, step_size: ArrayLike
) -> Factors:
    r"""Return the exact factors of gradient descent, for any step size.

    With :math:`q = 1 - h\lambda` they are the maxima of :math:`|q|^t`,
    :math:`|q|^{t-1} |1 + (t-1) h\lambda|` and :math:`h t |q|^{t-1}`. Each decreases for
    :math:`h\lambda < 1` and increases for :math:`h\lambda > 1`, so the maximum is at
    :math:`\ell` or :math:`L`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.

    Returns
    -------
    Factors
        Arrays of the broadcast shape.

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
    """Return the factors of gradient descent at both ends of the spectrum, smallest first."""
    count = _checks.as_counts("t", t)
    h = _checks.as_positive("step_size", step_size)
    ends = []
    for lam in _checks.as_spectrum(smallest, largest):
        contraction = jnp.abs(1 - h * lam)
        n = _checks.cast_like(count, contraction)
        previous = _checks.power(contraction, jnp.maximum(count - 1, 0))
        jacobian = jnp.where(count == 0, 1.0, previous * (1 + (n - 1) * h * lam))
        ends.append(Factors(_checks.power(contraction, count), jacobian, h * n * previous))
    return ends


def heavy_ball_factors(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, *, damped_start: bool = False
) -> Factors:
    r"""Return the exact factors of heavy ball with Polyak's parameters.

    Let :math:`r = \sqrt\beta`, and let :math:`u_t = t + 1` and :math:`v_t = t(t+1)(t+2)/3` be the
    values of :math:`U_t` and :math:`U_t'` at 1. From rest all maxima are at :math:`\lambda = L`:

    .. math::

        p = r^t (u_t + r u_{t-1}), \quad
        d = \frac{h}{2r} r^t (v_t + r v_{t-1}), \quad
        \max|P_t - \lambda P_t'| = L d - p .

    With a damped start :math:`p = r^t(1 + ct)` and :math:`d = \frac{h}{2r} r^t(a t^2 + c\,v_t)`
    with :math:`a = 2\beta/(1+\beta)`, :math:`c = (1-\beta)/(1+\beta)`, at both ends, and the
    E-factor is :math:`\max(Ld - p, p + \ell d)`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    damped_start : bool
        Whether the first step size is :math:`h / (1 + \beta)`, see `heavy_ball_polynomial`.

    Returns
    -------
    Factors
        Arrays of the broadcast shape.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    count = _checks.as_counts("t", t)
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    h, beta = polyak_parameters(low, high)
    root = chebyshev_rate(low, high)
    n = _checks.cast_like(count, root)
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
    r"""Return the factors of Nesterov's method with the parameters of `nesterov_parameters`.

    :math:`|P_t|` and :math:`|P_t'|` are largest at :math:`\ell` (checked numerically, not
    proved). With :math:`s = \sqrt{\ell/L}`,

    .. math::

        P_t(\ell) = (1-s)^t (1 + st), \qquad |P_t'(\ell)| = \frac{(1-s)^t\,t}{2L(1-s^2)}
        \Big[1 + t + \frac s3 (t+1)(t+2)\Big].

    :math:`P_t - \lambda P_t'` may be largest inside the interval. The returned E-factor is its
    maximum over `points` + 1 Chebyshev points, divided by :math:`\cos(\pi t /
    (2\,\mathtt{points}))`. By Riesz' inequality this is an upper bound, and it exceeds the
    maximum by at most 0.3 % for t up to a twentieth of `points`. From t = `points` on the
    function returns the looser :math:`\max|P_t| + L \max|P_t'|`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum, scalars.
    points : int
        Resolution of the grid, a Python int.

    Returns
    -------
    Factors
        Arrays of the broadcast shape.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    _checks.require_scalars(smallest=smallest, largest=largest)
    count = _checks.as_counts("t", t)
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    step, momentum = nesterov_parameters(low, high)
    s = jnp.sqrt(low / high)
    n = _checks.cast_like(count, s)
    power = _checks.power(1 - s, count)
    value = power * (1 + s * n)
    bracket = 1 + n + s / 3 * (n + 1) * (n + 2)
    derivative = power * n / (2 * (high - low)) * bracket
    grid = _chebyshev_points(low, high, points)

    def grid_maximum(k):
        polynomial = nesterov_polynomial(k, grid, step, momentum)
        return _largest_magnitude(jacobian_part(polynomial, grid))

    on_grid = jax.lax.map(grid_maximum, count.reshape(-1)).reshape(count.shape)
    bound = _bound_from_grid(on_grid, n, points, otherwise=value + high * derivative)
    return Factors(value, bound, derivative)


def chebyshev_factors(t: ArrayLike, smallest: ArrayLike, largest: ArrayLike) -> Factors:
    r"""Return the exact factors of the Chebyshev method.

    With :math:`\xi = (\sqrt L + \sqrt\ell) / (\sqrt L - \sqrt\ell)` and :math:`\tau = 2 /
    (\xi^t + \xi^{-t})` they are, for :math:`t \ge 1`,

    .. math::

        \tau, \qquad \tau \Big(\frac{2 t^2}{1 - \kappa} - 1\Big), \qquad
        \tau\, \frac{2 t^2}{L - \ell} .

    All are attained at :math:`\lambda = L`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.

    Returns
    -------
    Factors
        Arrays of the broadcast shape.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    count = _checks.as_counts("t", t)
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    rate = chebyshev_rate(low, high)
    n = _checks.cast_like(count, rate)
    value = 2 * _checks.power(rate, count) / (1 + _checks.power(rate, 2 * count))
    derivative = value * 2 * n**2 / (high - low)
    return Factors(value, jnp.where(count == 0, 1.0, high * derivative - value), derivative)


def sobolev_factors(
    steps: int, smallest: ArrayLike, largest: ArrayLike, *, points: int = 2048, **options
) -> Factors:
    r"""Return upper bounds of the factors of the Sobolev method for t = 0, ..., `steps`.

    No closed form is known. The bounds are the maxima over `points` + 1 Chebyshev points,
    divided by :math:`\cos(\pi t / (2\,\mathtt{points}))` (Riesz' inequality).

    Parameters
    ----------
    steps : int
        The largest t, a Python int below `points`.
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum, scalars.
    points : int
        Resolution of the grid, a Python int.
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
    _checks.require_scalars(steps=steps, smallest=smallest, largest=largest)
    _checks.require_count("steps", steps)
    if not steps < points:
        raise ValueError(f"`steps` must be below `points`, but {steps} is not below {points}.")
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    grid = _chebyshev_points(low, high, points)
    polynomials = sobolev_polynomials(steps, grid, low, high, **options)
    n = jnp.arange(steps + 1, dtype=grid.dtype)
    curves = polynomials.value, jacobian_part(polynomials, grid[None]), polynomials.derivative
    maxima = (_largest_magnitude(curve) for curve in curves)
    return Factors(*(_bound_from_grid(m, n, points, otherwise=m) for m in maxima))


def _largest_magnitude(values: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Return the largest magnitude along the last axis.

    Equal to ``jnp.max(jnp.abs(values), -1)``, but with a safe derivative. That of ``jnp.max``
    compares the maximum with the values. If the compiler computes them twice with different
    rounding, none is equal, and the derivative is 1 / 0.
    """
    magnitude = jnp.abs(values)
    where = jnp.argmax(magnitude, axis=-1, keepdims=True)
    return jnp.take_along_axis(magnitude, where, axis=-1)[..., 0]


def _chebyshev_points(
    low: Float[Array, ""], high: Float[Array, ""], points: int
) -> Float[Array, " n"]:
    """Return the `points` + 1 extrema of a Chebyshev polynomial on [low, high], with both ends."""
    position = np.sin(np.pi / 2 * np.arange(points + 1) / points) ** 2
    return low + (high - low) * jnp.asarray(position, low.dtype)


def _bound_from_grid(
    on_grid: Float[Array, "..."], t: Float[Array, "..."], points: int, *, otherwise: ArrayLike
) -> Float[Array, "..."]:
    """Return a bound over the interval, given the maximum over Chebyshev points.

    A polynomial of degree t is a cosine polynomial of the angle. At distance d from its maximum M
    it is at least M cos(t d) (Riesz), and no angle is farther than pi / (2 points) from a point.
    The argument needs t < `points`; for larger t the function returns `otherwise`.
    """
    fine_enough = t < points
    margin = jnp.cos(jnp.pi / 2 * jnp.where(fine_enough, t / points, 0.0))
    return jnp.where(fine_enough, on_grid / margin, otherwise)
