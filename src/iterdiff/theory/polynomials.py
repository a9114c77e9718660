r"""Residual polynomials: first-order methods on quadratics as functions of an eigenvalue.

On :math:`f(x) = \tfrac12 x^\top H x + b^\top x` each of these methods satisfies
:math:`x_t - x^* = P_t(H)(x_0 - x^*)` with a polynomial of degree t and :math:`P_t(0) = 1`. Its
values on the spectrum determine how the iterate converges. Its derivative determines what
differentiating the iterations adds (see `iterdiff.theory.error_formula`).

Assumptions throughout: quadratic objective with symmetric Hessian :math:`H`, and coefficients
that depend only on t.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from iterdiff.theory import _checks
from iterdiff.theory.rates import chebyshev_rate

_TRACED_DIGITS = 31
"""Binary digits of a number of iterations whose value is not known while JAX traces it."""


class ResidualPolynomial(NamedTuple):
    r"""Values and derivatives of a residual polynomial.

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
        Numbers of iterations, nonnegative. The arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate, in any units.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.

    Returns
    -------
    ResidualPolynomial
        Arrays of the broadcast shape.

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
    count, lam = _checks.as_counts("t", t), _checks.as_real("eigenvalue", eigenvalue)
    h = _checks.as_positive("step_size", step_size)
    factor = 1 - h * lam
    derivative = (
        -h * _checks.cast_like(count, factor) * _checks.power(factor, jnp.maximum(count - 1, 0))
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

    from rest, :math:`x_{-1} = x_0`. With a first step of :math:`h / (1 + \beta)`,

    .. math::

        P_t = \beta^{t/2} \Big(\tfrac{2\beta}{1+\beta} T_t
              + \tfrac{1-\beta}{1+\beta} U_t\Big)(\sigma).

    The evaluation is also valid for :math:`|\sigma| > 1` and :math:`\beta \le 0`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative. The arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate, in any units.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.
    momentum : float
        The factor :math:`\beta` in (-1, 1), dimensionless.
    damped_start : bool
        Whether the first step size is :math:`h / (1 + \beta)`. `iterdiff.HeavyBall` starts from
        rest, without damping.

    Returns
    -------
    ResidualPolynomial
        Arrays of the broadcast shape.

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

    With :math:`q = 1 - h\lambda`, :math:`\sigma = (1 + \beta)\sqrt q / (2\sqrt\beta)` and the
    Chebyshev polynomials T and U of the first and second kind,

    .. math::

        P_t = (\beta q)^{t/2} \Big(\tfrac{2\beta}{1+\beta} T_t
              + \tfrac{1-\beta}{1+\beta} U_t\Big)(\sigma).

    The evaluation is also valid for :math:`q \le 0`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative. The arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate, in any units.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.
    momentum : float
        The factor :math:`\beta` in (-1, 1), dimensionless.

    Returns
    -------
    ResidualPolynomial
        Arrays of the broadcast shape.

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

    Among polynomials of degree t with :math:`P_t(0) = 1` it has the smallest maximum norm on
    :math:`[\ell, L]`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative. The arguments broadcast against each other.
    eigenvalue : float array
        Where to evaluate, in any units.
    smallest, largest : float
        The bounds :math:`0 < \ell < L` of the spectrum that the method is given.

    Returns
    -------
    ResidualPolynomial
        Arrays of the broadcast shape.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    G. H. Golub, R. S. Varga, *Chebyshev semi-iterative methods*, 1961.
    """
    count = _checks.as_counts("t", t)
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    decay = chebyshev_rate(low, high)

    def evaluate(lam: Float[Array, "..."]) -> Float[Array, "..."]:
        scaled = decay * (high + low - 2 * lam) / (high - low)
        # Numerator and denominator are multiplied by decay**t, so that neither overflows.
        numerator = _second_order(count, 2 * scaled, decay**2, scaled)
        return 2 * numerator / (1 + _checks.power(decay, 2 * count))

    return _with_derivative(evaluate, eigenvalue)


def polyak_parameters(
    smallest: ArrayLike, largest: ArrayLike
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return Polyak's step size and momentum for heavy ball on a quadratic.

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
        :math:`h`, in units of one over the eigenvalue, and :math:`\beta`, dimensionless.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    B. T. Polyak, *Some methods of speeding up the convergence of iteration methods*, 1964.
    """
    low, high = _checks.as_spectrum(smallest, largest)
    return 4 / (jnp.sqrt(low) + jnp.sqrt(high)) ** 2, chebyshev_rate(low, high) ** 2


def nesterov_parameters(
    smallest: ArrayLike, largest: ArrayLike
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Return the step size :math:`1/L` and Nesterov's momentum for strongly convex functions.

    Parameters
    ----------
    smallest, largest : float
        Strong convexity constant and Lipschitz constant of the gradient,
        :math:`0 < \ell \le L`.

    Returns
    -------
    step_size, momentum : float array
        :math:`h = 1/L`, in units of one over the eigenvalue, and :math:`\beta = (\sqrt L -
        \sqrt\ell) / (\sqrt L + \sqrt\ell)`, dimensionless.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    Y. Nesterov, *Introductory Lectures on Convex Optimization*, 2004, section 2.2.
    """
    low, high = _checks.as_spectrum(smallest, largest)
    return 1 / high, chebyshev_rate(low, high)


def _momentum_arguments(
    t: ArrayLike, step_size: ArrayLike, momentum: ArrayLike
) -> tuple[Int[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Check and convert the arguments of a method with momentum."""
    count = _checks.as_counts("t", t)
    h = _checks.as_positive("step_size", step_size)
    return count, h, _checks.as_momentum(momentum)


def _with_derivative(evaluate, eigenvalue: ArrayLike) -> ResidualPolynomial:
    """Evaluate an elementwise function and its derivative."""
    lam = _checks.as_real("eigenvalue", eigenvalue)
    value, derivative = jax.jvp(evaluate, (lam,), (jnp.ones_like(lam),))
    return ResidualPolynomial(value, derivative)


def _second_order(
    t: Int[Array, "..."],
    trace: Float[Array, "..."],
    determinant: Float[Array, "..."],
    first: Float[Array, "..."],
) -> Float[Array, "..."]:
    r"""Return :math:`v_t` of the recurrence :math:`v_{t+1} = \tau v_t - \delta v_{t-1}`.

    It starts from :math:`v_0 = 1` and :math:`v_1` = `first`; `trace` is :math:`\tau` and
    `determinant` :math:`\delta`. With :math:`m = \tau/2` and :math:`D = m^2 - \delta` the roots
    are :math:`m \pm \sqrt D`. Writing :math:`(m + \sqrt D)^t = c + s \sqrt D` gives
    :math:`v_t = c + (v_1 - m) s`.

    Pairs (c, s) multiply as :math:`(c c' + D s s',\; c s' + s c')` for any sign of D. The
    product is smooth at D = 0, where the two roots meet and where the worst eigenvalues lie.
    Squaring the pair is stable there. Squaring the 2 x 2 matrix of the recurrence is not,
    because its powers lose the double root. The cost is one squaring per binary digit of t.
    """
    t, trace, determinant, first = jnp.broadcast_arrays(t, trace, determinant, first)
    mean = trace / 2
    discriminant = mean**2 - determinant
    known = _checks.known_value(t)
    digits = _TRACED_DIGITS if known is None else int(known.max(initial=1)).bit_length()

    def multiply(a, b):
        return a[0] * b[0] + discriminant * a[1] * b[1], a[0] * b[1] + a[1] * b[0]

    def take_digit(carry, k):
        product, power = carry
        has_digit, has_more = (t >> k) % 2 == 1, (t >> (k + 1)) > 0
        product = _select(has_digit, multiply(product, power), product)
        # Beyond the last digit the power is not needed, and squaring it may overflow.
        power = _select(has_more, multiply(power, power), power)
        return (product, power), None

    one = jnp.ones_like(mean)
    start = (one, jnp.zeros_like(mean)), (mean, one)
    ((c, s), _), _ = jax.lax.scan(take_digit, start, jnp.arange(digits, dtype=t.dtype))
    return c + (first - mean) * s


def _select(condition, new: tuple, old: tuple) -> tuple:
    return tuple(jnp.where(condition, u, v) for u, v in zip(new, old, strict=True))
