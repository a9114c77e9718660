r"""Residual polynomials: a first-order method on a quadratic, as a function of an eigenvalue.

On :math:`f(x) = \tfrac12 x^\top H x + b^\top x` each of these methods gives
:math:`x_t - x^* = P_t(H)(x_0 - x^*)` with a polynomial of degree t and :math:`P_t(0) = 1`. Its
values on the spectrum say how the iterate converges, and its derivative what is added when the
iterations are differentiated (see `iterdiff.theory.identity`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from iterdiff.theory import _checks
from iterdiff.theory.rates import chebyshev_rate


class ResidualPolynomial(NamedTuple):
    r"""A residual polynomial at some eigenvalues.

    Attributes
    ----------
    value : float array
        :math:`P_t(\lambda)`, dimensionless.
    derivative : float array
        :math:`P_t'(\lambda)`, in units of one over the eigenvalue.
    """

    value: Float[Array, "..."]
    derivative: Float[Array, "..."]


def gradient_descent_polynomial(
    t: ArrayLike, eigenvalue: ArrayLike, step_size: ArrayLike
) -> ResidualPolynomial:
    r"""Return :math:`P_t = (1 - h\lambda)^t` and :math:`P_t' = -ht(1 - h\lambda)^{t-1}`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative. All arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate.
    step_size : float
        The step :math:`h`, positive.

    Returns
    -------
    ResidualPolynomial

    Raises
    ------
    ValueError
        If `t` or `step_size` is known and out of range.

    Examples
    --------
    >>> from iterdiff import theory
    >>> value, derivative = theory.gradient_descent_polynomial(2, 0.5, 1.0)
    >>> float(value), float(derivative)
    (0.25, -1.0)
    """
    count, lam = _checks.steps("t", t), _checks.real(eigenvalue)
    h = _checks.positive("step_size", step_size)
    factor = 1 - h * lam
    derivative = (
        -h * _checks.counted(count, factor) * _checks.power(factor, jnp.maximum(count - 1, 0))
    )
    value, derivative = jnp.broadcast_arrays(_checks.power(factor, count), derivative)
    return ResidualPolynomial(value, derivative)


def heavy_ball_polynomial(
    t: ArrayLike,
    eigenvalue: ArrayLike,
    step_size: ArrayLike,
    momentum: ArrayLike,
    *,
    damped_start: bool = False,
) -> ResidualPolynomial:
    r"""Return the residual polynomial of heavy ball and its derivative.

    With :math:`\sigma = (1 + \beta - h\lambda) / (2\sqrt\beta)` and the Chebyshev polynomials
    T and U of the first and second kind,

    .. math::

        P_t = \beta^{t/2} \big(U_t - \sqrt\beta\, U_{t-1}\big)(\sigma)

    from rest, :math:`x_{-1} = x_0`, and, when the first step is damped to
    :math:`h / (1 + \beta)`,

    .. math::

        P_t = \beta^{t/2} \Big(\tfrac{2\beta}{1+\beta} T_t
              + \tfrac{1-\beta}{1+\beta} U_t\Big)(\sigma).

    It is evaluated by a scheme that also holds for :math:`|\sigma| > 1` and :math:`\beta \le 0`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative. All arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate.
    step_size : float
        The step :math:`h`, positive.
    momentum : float
        The factor :math:`\beta` in (-1, 1).
    damped_start : bool
        Whether the first step has length :math:`h / (1 + \beta)`; `iterdiff.HeavyBall` starts
        from rest.

    Returns
    -------
    ResidualPolynomial

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    F. Pedregosa, D. Scieur, *Acceleration through spectral density estimation*, 2020.
    """
    count, h, beta = _momentum_arguments(t, step_size, momentum)
    first = h / (1 + beta) if damped_start else h

    def evaluate(lam: Float[Array, "..."]) -> Float[Array, "..."]:
        return _second_order(count, 1 + beta - h * lam, beta, 1 - first * lam)

    return _with_derivative(evaluate, eigenvalue)


def nesterov_polynomial(
    t: ArrayLike, eigenvalue: ArrayLike, step_size: ArrayLike, momentum: ArrayLike
) -> ResidualPolynomial:
    r"""Return the residual polynomial of Nesterov's method with constant momentum.

    With :math:`q = 1 - h\lambda`, :math:`\sigma = (1 + \beta)\sqrt q / (2\sqrt\beta)` and
    Chebyshev polynomials T and U,

    .. math::

        P_t = (\beta q)^{t/2} \Big(\tfrac{2\beta}{1+\beta} T_t
              + \tfrac{1-\beta}{1+\beta} U_t\Big)(\sigma).

    It is evaluated by a scheme that also holds for :math:`q \le 0`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative. All arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate.
    step_size : float
        The step :math:`h`, positive.
    momentum : float
        The factor :math:`\beta` in (-1, 1).

    Returns
    -------
    ResidualPolynomial

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    count, h, beta = _momentum_arguments(t, step_size, momentum)

    def evaluate(lam: Float[Array, "..."]) -> Float[Array, "..."]:
        q = 1 - h * lam
        return _second_order(count, (1 + beta) * q, beta * q, q)

    return _with_derivative(evaluate, eigenvalue)


def chebyshev_polynomial(
    t: ArrayLike, eigenvalue: ArrayLike, smallest: ArrayLike, largest: ArrayLike
) -> ResidualPolynomial:
    r"""Return the residual polynomial of the Chebyshev method and its derivative.

    .. math::

        P_t(\lambda) = \frac{T_t(\sigma(\lambda))}{T_t(\sigma(0))}, \qquad
        \sigma(\lambda) = \frac{L + \ell - 2\lambda}{L - \ell},

    the polynomial with :math:`P_t(0) = 1` that is smallest in the maximum norm on
    :math:`[\ell, L]`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative. All arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate.
    smallest, largest : float
        The bounds :math:`0 < \ell < L` that the method was given.

    Returns
    -------
    ResidualPolynomial

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    G. H. Golub, R. S. Varga, *Chebyshev semi-iterative methods*, 1961.
    """
    count = _checks.steps("t", t)
    low, high = _checks.interval(smallest, largest, strict=True)
    decay = chebyshev_rate(low, high)

    def evaluate(lam: Float[Array, "..."]) -> Float[Array, "..."]:
        scaled = decay * (high + low - 2 * lam) / (high - low)
        # Scaled by decay**t, so that neither numerator nor denominator overflows.
        numerator = _second_order(count, 2 * scaled, decay**2, scaled)
        return 2 * numerator / (1 + _checks.power(decay, 2 * count))

    return _with_derivative(evaluate, eigenvalue)


def polyak_parameters(
    smallest: ArrayLike, largest: ArrayLike
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return Polyak's step and momentum for heavy ball on a quadratic.

    .. math::

        h = \frac{4}{(\sqrt L + \sqrt\ell)^2}, \qquad
        \sqrt\beta = \frac{\sqrt L - \sqrt\ell}{\sqrt L + \sqrt\ell}.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum.

    Returns
    -------
    step_size, momentum : float array
    """
    low, high = _checks.interval(smallest, largest)
    return 4 / (jnp.sqrt(low) + jnp.sqrt(high)) ** 2, chebyshev_rate(low, high) ** 2


def nesterov_parameters(
    smallest: ArrayLike, largest: ArrayLike
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return :math:`h = 1/L` and Nesterov's momentum for strongly convex functions.

    Parameters
    ----------
    smallest, largest : float
        The constants :math:`0 < \ell \le L` of strong convexity and of the gradient.

    Returns
    -------
    step_size, momentum : float array
        :math:`\beta = (\sqrt L - \sqrt\ell) / (\sqrt L + \sqrt\ell)`.
    """
    low, high = _checks.interval(smallest, largest)
    return 1 / high, chebyshev_rate(low, high)


def _momentum_arguments(
    t: ArrayLike, step_size: ArrayLike, momentum: ArrayLike
) -> tuple[Int[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Check and convert the arguments that the momentum methods share."""
    count = _checks.steps("t", t)
    h = _checks.positive("step_size", step_size)
    _checks.require("momentum", momentum, lambda v: (v > -1) & (v < 1), "between -1 and 1")
    return count, h, _checks.real(momentum)


def _with_derivative(evaluate, eigenvalue: ArrayLike) -> ResidualPolynomial:
    """Evaluate a scalar function elementwise, with its derivative in the eigenvalue."""
    lam = _checks.real(eigenvalue)
    value, derivative = jax.jvp(evaluate, (lam,), (jnp.ones_like(lam),))
    return ResidualPolynomial(value, derivative)


def _second_order(
    t: Int[Array, "..."],
    trace: Float[Array, "..."],
    determinant: Float[Array, "..."],
    first: Float[Array, "..."],
) -> Float[Array, "..."]:
    r"""Return :math:`v_t` of :math:`v_{t+1} = \tau v_t - \delta v_{t-1}` from 1 and `first`.

    With :math:`m = \tau/2` and :math:`D = m^2 - \delta`, the roots are
    :math:`m \pm \sqrt D`. Writing :math:`(m + \sqrt D)^t = c + s \sqrt D` gives
    :math:`v_t = c + (v_1 - m) s`. The pair (c, s) multiplies as
    :math:`(c c' + D s s',\; c s' + s c')`, which holds whatever the sign of D and is smooth
    through D = 0, where the two roots meet and where the worst eigenvalues lie. Squaring this
    pair is stable there; squaring the 2 x 2 matrix of the recurrence is not, as its powers
    lose the double root. The cost is one squaring per binary digit of t.
    """
    t, trace, determinant, first = jnp.broadcast_arrays(t, trace, determinant, first)
    mean = trace / 2
    discriminant = mean**2 - determinant
    known = _checks.concrete(t)
    digits = 31 if known is None else int(known.max(initial=1)).bit_length()

    def digit(carry, k):
        (c, s), (cp, sp) = carry
        taken = (t >> k) % 2 == 1
        multiplied = c * cp + discriminant * s * sp, c * sp + s * cp
        c, s = jnp.where(taken, multiplied[0], c), jnp.where(taken, multiplied[1], s)
        # Squared only while digits are left: a power that nobody needs may overflow.
        needed = (t >> (k + 1)) > 0
        squared = cp * cp + discriminant * sp * sp, 2 * cp * sp
        cp, sp = jnp.where(needed, squared[0], cp), jnp.where(needed, squared[1], sp)
        return ((c, s), (cp, sp)), None

    one = jnp.ones_like(mean)
    start = (one, jnp.zeros_like(mean)), (mean, one)
    ((c, s), _), _ = jax.lax.scan(digit, start, jnp.arange(digits, dtype=t.dtype))
    return c + (first - mean) * s
