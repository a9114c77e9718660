r"""Burn-in: how long and how far the error of the unrolled Jacobian exceeds its initial value.

The bounds on quadratics grow like a power of t before they decrease like :math:`\rho^t`. For
gradient descent the peak and the end of the burn-in have exact formulas in Lambert's W function.
For the methods with momentum the functions return the limit of an ill-conditioned problem,
written in terms of :math:`\ln \rho` to be accurate for moderate conditioning too.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks
from iterdiff.theory._one_peak import (
    CHEBYSHEV,
    GRADIENT_DESCENT,
    HEAVY_BALL_FROM_REST,
    MOMENTUM,
    burn_in_of,
    log_of,
)
from iterdiff.theory.polynomials import polyak_parameters
from iterdiff.theory.rates import chebyshev_rate


class BurnIn(NamedTuple):
    """Where a curve of errors peaks, and when it returns to its initial value.

    Attributes
    ----------
    peak_iteration : float array
        The iteration with the largest error; 0 if no error exceeds the initial one.
    peak : float array
        The largest error, absolute.
    length : float array
        The iteration from which on the error stays at or below its initial value; 0 without
        burn-in.
    """

    peak_iteration: Float[Array, "..."]
    peak: Float[Array, "..."]
    length: Float[Array, "..."]


def burn_in(errors: ArrayLike) -> BurnIn:
    """Return the burn-in of a measured or predicted curve of errors.

    Parameters
    ----------
    errors : float array of shape (..., iterations)
        The errors at iterations 0, 1, 2, ..., absolute. NaN counts as infinite. If the last
        error still exceeds the first one, the burn-in is at least as long as the curve, and
        `length` is the number of iterations.

    Returns
    -------
    BurnIn
        Arrays of shape (...).

    Raises
    ------
    ValueError
        If `errors` has no iteration.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from iterdiff import theory
    >>> found = theory.burn_in(jnp.array([1.0, 3.0, 2.0, 0.5, 0.1]))
    >>> int(found.peak_iteration), float(found.peak), int(found.length)
    (1, 3.0, 3)
    """
    curve = _checks.as_real("errors", errors)
    if curve.ndim == 0 or curve.shape[-1] == 0:
        raise ValueError("`errors` must hold the error of at least one iteration.")
    curve = jnp.where(jnp.isnan(curve), jnp.inf, curve)
    above = curve > curve[..., :1]
    index = jnp.arange(curve.shape[-1], dtype=curve.dtype)
    length = jnp.max(jnp.where(above, index + 1, 0.0), axis=-1)
    # Not jnp.max, for the reason given in `iterdiff.theory.worst_cases._largest_magnitude`.
    where = jnp.argmax(curve, axis=-1, keepdims=True)
    peak = jnp.take_along_axis(curve, where, axis=-1)
    return BurnIn(where[..., 0].astype(curve.dtype), peak[..., 0], length)


def burn_in_peak(rho: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`-1 / \ln\rho`, the t at which :math:`t \rho^{t-1}` is largest.

    There the unrolled Jacobian of a stationary method (gradient descent, any fixed-point
    iteration) is farthest from the Jacobian of the solution, if its initial error is small
    compared with what the iterations add. For :math:`\rho` close to 1 it is
    :math:`1/(1 - \rho)`. A smaller step size delays the peak and does not change its height.

    Assumptions: one dominant mode, :math:`0 < \rho < 1`, error :math:`\propto t \rho^{t-1}`. An
    initial error moves the peak to earlier iterations, see `gradient_descent_burn_in`. For
    methods with momentum see `heavy_ball_burn_in`.

    Parameters
    ----------
    rho : float
        The contraction rate per step, in (0, 1), dimensionless.

    Returns
    -------
    float array
        In iterations, not rounded.

    Raises
    ------
    ValueError
        If `rho` is known and outside (0, 1).

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling*, NeurIPS 2022.

    Examples
    --------
    >>> from iterdiff import theory
    >>> round(float(theory.burn_in_peak(0.995)), 1)
    199.5
    """
    return -1 / jnp.log(_checks.as_rate("rho", rho))


def gradient_descent_burn_in(
    smallest: ArrayLike,
    largest: ArrayLike,
    step_size: ArrayLike,
    initial_error: ArrayLike,
    G: ArrayLike,
) -> BurnIn:
    r"""Return the burn-in of `gradient_descent_bound`, for real t.

    At an end :math:`\lambda` of the spectrum the bound is :math:`w^{t-1}(a + bt)` with
    :math:`w = |1 - h\lambda|`, :math:`a = (1 - h\lambda)\|E_0\|`, :math:`b = h(\lambda\|E_0\| +
    \mathsf G)`. It peaks at :math:`t = -1/\ln w - a/b` and returns to :math:`\|E_0\|` at

    .. math::

        t = \frac{1}{\ln w} W_{-1}\Big(\frac{\|E_0\| \ln w}{b}\, w^{1 + a/b}\Big) - \frac ab .

    For :math:`h = 1/L`, an ill-conditioned problem and :math:`\gamma = \mathsf G / (\ell
    \|E_0\|)` the peak is near :math:`t = \frac{L}{\ell}\frac{\gamma}{1 + \gamma}`, with height
    :math:`(\|E_0\| + \mathsf G / \ell)\,e^{-\gamma/(1+\gamma)}`. The worse end of the spectrum
    counts.

    Assumptions are those of `gradient_descent_bound`. A measured curve has this burn-in if its
    worst eigenvector dominates, and is below the bound otherwise.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum.
    step_size : float
        The step size :math:`h` in :math:`(0, 2/L)`, in units of one over the eigenvalue.
    initial_error : float
        :math:`\|E_0\|_F`, absolute, positive.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`, absolute.

    Returns
    -------
    BurnIn

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    Examples
    --------
    >>> from iterdiff import theory
    >>> found = theory.gradient_descent_burn_in(0.01, 1.0, 1.0, 1.0, 1.0)
    >>> [round(float(value), 1) for value in found]
    [98.5, 37.7, 646.0]
    """
    h = _checks.as_positive("step_size", step_size)
    _checks.as_positive("initial_error", initial_error)
    error, gradient = _as_magnitudes(initial_error, G)
    low, high = _checks.as_spectrum(smallest, largest)
    known = _checks.known_value(h * high)
    if known is not None and not (known < 2).all():
        raise ValueError(f"`step_size` must be below 2 / `largest`, but it is {step_size}.")
    at_low, at_high = (_gradient_descent_end(h * lam, error, h * gradient) for lam in (low, high))
    low_is_worse = at_low.peak >= at_high.peak
    return BurnIn(
        jnp.where(low_is_worse, at_low.peak_iteration, at_high.peak_iteration),
        jnp.maximum(at_low.peak, at_high.peak),
        jnp.maximum(at_low.length, at_high.length),
    )


def _gradient_descent_end(
    s: Float[Array, "..."], error: Float[Array, "..."], gradient_step: Float[Array, "..."]
) -> BurnIn:
    """Return the burn-in of ``w**(t-1) (a + b t)`` with ``w = |1 - s|``, for t from 1 on.

    With ``x = (t + a/b) |ln w|`` the bound is ``b w**(-1 - a/b) / |ln w|`` times ``x exp(-x)``.
    """
    # A rate of zero ends in one step. So does the smallest positive one, whose logarithm is finite.
    w = jnp.maximum(jnp.abs(1 - s), jnp.finfo(jnp.result_type(s)).tiny)
    decay = -jnp.log(w)
    b = s * error + gradient_step
    shift = (1 - s) * error / b
    log_size = jnp.log(b / decay) + (1 + shift) * decay
    return BurnIn(*burn_in_of(GRADIENT_DESCENT, log_size, decay, error, shift=shift, first=1.0))


def heavy_ball_burn_in(
    smallest: ArrayLike,
    largest: ArrayLike,
    initial_error: ArrayLike,
    G: ArrayLike,
    *,
    damped_start: bool = False,
) -> BurnIn:
    r"""Return the burn-in of `heavy_ball_bound` on an ill-conditioned problem.

    From rest, with :math:`x = (t + \tfrac12) |\ln\rho|`, the bound tends to

    .. math::

        \frac{L\|E_0\| + \mathsf G}{L} \cdot \frac{4}{3 |\ln\rho|^3}\, x^3 e^{-x},

    which is largest at :math:`x = 3`: the peak is at :math:`t \approx 1.5\sqrt{L/\ell}`, with
    height :math:`0.224\, (L/\ell)^{3/2} (\|E_0\| + \mathsf G/L)`. The undamped first step causes
    this height. With a first step of :math:`h/(1+\beta)` the bound tends to
    :math:`\frac{L\|E_0\| + \mathsf G}{\ell} \cdot \tfrac12 e^{-x}(x^2 + x^3/3)` with
    :math:`x = t|\ln\rho|`: the peak is at :math:`t = \sqrt 6 / |\ln\rho| \approx
    1.225\sqrt{L/\ell}`, with height only :math:`0.4705\, (L\|E_0\| + \mathsf G)/\ell`. In both
    cases there is a burn-in even if :math:`\mathsf G = 0`.

    Assumptions: those of `heavy_ball_bound`, and :math:`\ell \ll L`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`, absolute.
    damped_start : bool
        Whether the first step is :math:`h / (1 + \beta)`, see `heavy_ball_polynomial`.

    Returns
    -------
    BurnIn
        `length` solves the limit of the bound by Newton's method; it is infinite if
        `initial_error` is zero.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    rate = chebyshev_rate(low, high)
    decay = -jnp.log(rate)
    error, gradient = _as_magnitudes(initial_error, G)
    if damped_start:
        log_size = log_of((high * error + gradient) / low)
        return BurnIn(*burn_in_of(MOMENTUM, log_size, decay, error))
    step, _ = polyak_parameters(low, high)
    # The exact factor of (t + 1/2)**3 rho**(t + 1/2), close to 4 / (3 L).
    factor = step * (1 + rate) / (6 * rate**1.5)
    log_size = log_of((high * error + gradient) * factor / decay**3)
    return BurnIn(*burn_in_of(HEAVY_BALL_FROM_REST, log_size, decay, error, shift=0.5))


def nesterov_burn_in(
    smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> BurnIn:
    r"""Return the burn-in of the gradient term of `nesterov_bound`, ill-conditioned problem.

    With :math:`x = t |\ln(1 - \sqrt{\ell/L})|` the gradient term tends to
    :math:`\frac{\mathsf G}{\ell} \cdot \tfrac12 e^{-x}(x^2 + x^3/3)`: the peak is at :math:`t =
    \sqrt 6/|\ln\rho| \approx 2.449\sqrt{L/\ell}`, with height :math:`0.4705\,\mathsf G/\ell`.

    The term of :math:`\|E_0\|` is left out. It has a peak of :math:`\max(1, (L/\ell)^{1/4} /
    (2\sqrt2 e))` near :math:`t = \tfrac12\sqrt{L/\ell}`, hence none for :math:`\ell/L \gtrsim
    3\cdot10^{-4}`.

    Assumptions: those of `nesterov_bound`, :math:`\ell \ll L` and :math:`\mathsf G \gg
    \ell\|E_0\|`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`, absolute.

    Returns
    -------
    BurnIn
        `length` solves the limit of the gradient term by Newton's method; it is infinite if
        `initial_error` is zero.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    decay = -jnp.log1p(-jnp.sqrt(low / high))
    error, gradient = _as_magnitudes(initial_error, G)
    return BurnIn(*burn_in_of(MOMENTUM, log_of(gradient / low), decay, error))


def chebyshev_burn_in(
    smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> BurnIn:
    r"""Return the burn-in of `chebyshev_bound` on an ill-conditioned problem.

    With :math:`x = t |\ln\rho|` the bound tends to :math:`\frac{L\|E_0\| + \mathsf G}{\ell}
    \cdot \frac{x^2}{2 \cosh x}`, which is largest at :math:`x \tanh x = 2`: the peak is at
    :math:`t = 2.0653/|\ln\rho| \approx 1.033\sqrt{L/\ell}`, with height :math:`0.5322 (L\|E_0\| +
    \mathsf G) /\ell`. Before the peak the bound grows like :math:`t^2`.

    Assumptions: those of `chebyshev_bound`, and :math:`\ell \ll L`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`, absolute.

    Returns
    -------
    BurnIn
        `length` solves the limit of the bound by Newton's method; it is infinite if
        `initial_error` is zero.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    decay = -jnp.log(chebyshev_rate(low, high))
    error, gradient = _as_magnitudes(initial_error, G)
    return BurnIn(*burn_in_of(CHEBYSHEV, log_of((high * error + gradient) / low), decay, error))


def _as_magnitudes(
    initial_error: ArrayLike, G: ArrayLike
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    error = _checks.as_nonnegative("initial_error", initial_error)
    return error, _checks.as_nonnegative("G", G)
