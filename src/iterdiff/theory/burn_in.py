r"""Burn-in: how long, and how high, the error of the unrolled Jacobian stands above its start.

The bounds on quadratics grow like a power of t before they fall like :math:`\rho^t`. For
gradient descent the peak and the end of that are exact formulas in Lambert's W; for the
methods with momentum the limits of an ill-conditioned problem are given, written with
:math:`\ln \rho` so that they are near the truth for moderate conditioning too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks
from iterdiff.theory._lambert import lambert_lower
from iterdiff.theory.polynomials import polyak_parameters
from iterdiff.theory.rates import chebyshev_rate

# The peaks of x**2 / cosh(x), in which Chebyshev's bound ends: x tanh x = 2.
_CHEBYSHEV_PLACE, _CHEBYSHEV_PEAK = 2.0653381389747043, 0.5322220783274092
# The peak of exp(-x) (x**2 + x**3 / 3) / 2, at x = sqrt 6, of the momentum methods.
_MOMENTUM_PLACE, _MOMENTUM_PEAK = 2.449489742783178, 0.4704960272503556
# The peak of exp(-x) x**3, of heavy ball from rest.
_REST_PLACE, _REST_PEAK = 3.0, 1.3442508459323266


class BurnIn(NamedTuple):
    """A burn-in.

    Attributes
    ----------
    peak_iteration : float array
        Where the error is largest, in iterations; 0 where it never exceeds its start.
    peak : float array
        The largest error, absolute.
    length : float array
        The iteration from which on the error stays at or below its start; 0 without burn-in.
    """

    peak_iteration: Float[Array, "..."]
    peak: Float[Array, "..."]
    length: Float[Array, "..."]


def burn_in(errors: ArrayLike) -> BurnIn:
    """Return the burn-in of a measured or predicted curve of errors.

    Parameters
    ----------
    errors : float array of shape (..., iterations)
        The error at iterations 0, 1, 2, ... A curve that still lies above its start at the
        end has a burn-in at least as long as the curve: `length` is then the number of
        iterations. NaN counts as infinite.

    Returns
    -------
    BurnIn
        Arrays of shape (...).

    Raises
    ------
    ValueError
        If there is no iteration.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from iterdiff import theory
    >>> found = theory.burn_in(jnp.array([1.0, 3.0, 2.0, 0.5, 0.1]))
    >>> int(found.peak_iteration), float(found.peak), int(found.length)
    (1, 3.0, 3)
    """
    curve = _checks.real(errors)
    if curve.ndim == 0 or curve.shape[-1] == 0:
        raise ValueError("`errors` must hold the error of one iteration or more.")
    curve = jnp.where(jnp.isnan(curve), jnp.inf, curve)
    above = curve > curve[..., :1]
    index = jnp.arange(curve.shape[-1], dtype=curve.dtype)
    length = jnp.max(jnp.where(above, index + 1, 0.0), axis=-1)
    # The peak is taken where it is: see `iterdiff.theory.factors._highest`.
    where = jnp.argmax(curve, axis=-1, keepdims=True)
    peak = jnp.take_along_axis(curve, where, axis=-1)
    return BurnIn(where[..., 0].astype(curve.dtype), peak[..., 0], length)


def burn_in_peak(rho: ArrayLike) -> Float[Array, "..."]:
    r"""Return where :math:`t \rho^{t-1}` is largest, :math:`-1 / \ln\rho`.

    It is where the unrolled Jacobian of a stationary method (gradient descent, any fixed-point
    iteration) is farthest from the solution's, when what the Jacobian starts with is small
    beside what the iterations add. Close to :math:`\rho = 1` it is :math:`1/(1 - \rho)`. A
    smaller step size only delays the peak: its height does not depend on the step.

    Assumptions: one dominant mode, :math:`0 < \rho < 1`, error :math:`\propto t \rho^{t-1}`.
    With an error at the start the peak comes earlier, see `gradient_descent_burn_in`; methods
    with momentum have their own, see `heavy_ball_burn_in`.

    Parameters
    ----------
    rho : float
        The contraction rate per step, in (0, 1).

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
    return -1 / jnp.log(_checks.rate("rho", rho))


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
    \mathsf G)`. It peaks at :math:`t = -1/\ln w - a/b` and comes back to :math:`\|E_0\|` where

    .. math::

        t = \frac{1}{\ln w} W_{-1}\Big(\frac{\|E_0\| \ln w}{b}\, w^{1 + a/b}\Big) - \frac ab .

    For :math:`h = 1/L`, ill-conditioned, and :math:`\gamma = \mathsf G / (\ell \|E_0\|)` the
    peak is near :math:`t = \frac{L}{\ell}\frac{\gamma}{1 + \gamma}`, of height
    :math:`(\|E_0\| + \mathsf G / \ell)\,e^{-\gamma/(1+\gamma)}`. The worse of both ends counts.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum.
    step_size : float
        The step :math:`h` in :math:`(0, 2/L)`.
    initial_error : float
        :math:`\|E_0\|_F`, absolute, positive.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`.

    Returns
    -------
    BurnIn
        Of the bound; a measured curve has it when its worst eigenvector dominates, and is
        below it otherwise. Assumptions are those of `gradient_descent_bound`.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    h = _checks.positive("step_size", step_size)
    error, gradient = _checks.positive("initial_error", initial_error), _checks.nonnegative("G", G)
    low, high = _checks.interval(smallest, largest)
    if (known := _checks.concrete(h * high)) is not None and not (known < 2).all():
        raise ValueError(f"`step_size` must be below 2 / `largest`, but it is {step_size}.")
    ends = [_one_end(h * lam, error, h * (lam * error + gradient)) for lam in (low, high)]
    at_low = ends[0].peak >= ends[1].peak
    return BurnIn(
        jnp.where(at_low, ends[0].peak_iteration, ends[1].peak_iteration),
        jnp.maximum(ends[0].peak, ends[1].peak),
        jnp.maximum(ends[0].length, ends[1].length),
    )


def _one_end(u: Float[Array, "..."], error: Float[Array, "..."], b: Float[Array, "..."]) -> BurnIn:
    """Return the burn-in of |1 - u|**(t-1) ((1 - u) error + b t), for t at least 1."""
    # |1 - u| = 0 finishes in one step; a tiny rate does so too, and has a logarithm.
    w = jnp.maximum(jnp.abs(1 - u), jnp.finfo(jnp.result_type(u)).tiny)
    a, log = (1 - u) * error, jnp.log(w)
    place = jnp.maximum(-1 / log - a / b, 1.0)
    height = w ** (place - 1) * (a + b * place)
    exists = height > error * (1 + 4 * jnp.finfo(jnp.result_type(height)).eps)
    argument = error * log / b * jnp.exp((1 + a / b) * log)
    argument = jnp.clip(argument, -jnp.exp(-1.0), -jnp.finfo(jnp.result_type(argument)).tiny)
    end = lambert_lower(argument) / log - a / b
    zero = jnp.zeros_like(height)
    return BurnIn(
        jnp.where(exists, place, zero),
        jnp.where(exists, height, error),
        jnp.where(exists, end, zero),
    )


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

    largest at :math:`x = 3`: peak at :math:`t \approx 1.5\sqrt{L/\ell}`, of height
    :math:`0.224\, (L/\ell)^{3/2} (\|E_0\| + \mathsf G/L)`. The first step is to blame. Damped to
    :math:`h/(1+\beta)` the bound tends to :math:`\frac{L\|E_0\| + \mathsf G}{\ell} \cdot
    \tfrac12 e^{-x}(x^2 + x^3/3)` with :math:`x = t|\ln\rho|`: peak at :math:`t =
    \sqrt 6 / |\ln\rho| \approx 1.225\sqrt{L/\ell}`, of height only :math:`0.4705\,
    (L\|E_0\| + \mathsf G)/\ell`. Either way there is a burn-in even when :math:`\mathsf G = 0`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`.
    damped_start : bool
        As in `heavy_ball_polynomial`.

    Returns
    -------
    BurnIn
        `length` is found on the bound's limit by Newton's method.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.interval(smallest, largest, strict=True)
    rate = chebyshev_rate(low, high)
    log = -jnp.log(rate)
    error, gradient = _nonnegative_pair(initial_error, G)
    if damped_start:
        size = (high * error + gradient) / low
        return _limit(_MOMENTUM_PLACE, _MOMENTUM_PEAK, log, size, error, _momentum_shape)
    step, _ = polyak_parameters(low, high)
    # The exact factor in front of (t + 1/2)**3 rho**(t + 1/2), near to 4 / (3 L).
    front = step * (1 + rate) / (6 * rate**1.5)
    size = (high * error + gradient) * front / log**3

    def shape(x):
        return 3 * jnp.log(x) - x, 3 / x - 1

    return _limit(_REST_PLACE, _REST_PEAK, log, size, error, shape, shift=0.5)


def nesterov_burn_in(
    smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> BurnIn:
    r"""Return the peak of the gradient part of `nesterov_bound`, ill-conditioned problem.

    With :math:`x = t |\ln(1 - \sqrt{\ell/L})|` the gradient part tends to
    :math:`\frac{\mathsf G}{\ell} \cdot \tfrac12 e^{-x}(x^2 + x^3/3)`: peak at :math:`t =
    \sqrt 6/|\ln\rho| \approx 2.449\sqrt{L/\ell}`, of height :math:`0.4705\,\mathsf G/\ell`. The
    part of :math:`\|E_0\|` has a peak of :math:`\max(1, (L/\ell)^{1/4} / (2\sqrt2 e))` near
    :math:`t = \tfrac12\sqrt{L/\ell}`, that is none for :math:`\ell/L \gtrsim 3\cdot10^{-4}`.
    It is left out here, so that this holds when :math:`\mathsf G \gg \ell\|E_0\|`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`.

    Returns
    -------
    BurnIn
        `length` is found on the gradient part's limit by Newton's method.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.interval(smallest, largest, strict=True)
    log = -jnp.log1p(-jnp.sqrt(low / high))
    error, gradient = _nonnegative_pair(initial_error, G)
    return _limit(_MOMENTUM_PLACE, _MOMENTUM_PEAK, log, gradient / low, error, _momentum_shape)


def chebyshev_burn_in(
    smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> BurnIn:
    r"""Return the peak of `chebyshev_bound` on an ill-conditioned problem.

    With :math:`x = t |\ln\rho|` the bound tends to :math:`\frac{L\|E_0\| + \mathsf G}{\ell}
    \cdot \frac{x^2}{2 \cosh x}`, largest where :math:`x \tanh x = 2`: peak at :math:`t =
    2.0653/|\ln\rho| \approx 1.033\sqrt{L/\ell}`, of height :math:`0.5322 (L\|E_0\| + \mathsf G)
    /\ell`. Before the peak it grows like :math:`t^2`.

    Parameters
    ----------
    smallest, largest : float
        Bounds :math:`0 < \ell < L` of the spectrum.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`.

    Returns
    -------
    BurnIn
        `length` is found on the bound's limit by Newton's method.

    Raises
    ------
    ValueError
        If an argument is known and out of range.
    """
    low, high = _checks.interval(smallest, largest, strict=True)
    log = -jnp.log(chebyshev_rate(low, high))
    error, gradient = _nonnegative_pair(initial_error, G)
    size = (high * error + gradient) / low

    def shape(x):
        # The logarithm of x**2 / (2 cosh x), which overflows nowhere, and its derivative.
        return 2 * jnp.log(x) - x - jnp.log1p(jnp.exp(-2 * x)), 2 / x - jnp.tanh(x)

    return _limit(_CHEBYSHEV_PLACE, _CHEBYSHEV_PEAK, log, size, error, shape)


def _momentum_shape(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the logarithm of exp(-x) (x**2 + x**3 / 3) / 2 and its derivative."""
    return 2 * jnp.log(x) + jnp.log1p(x / 3) - x - jnp.log(2.0), 2 / x + 1 / (3 + x) - 1


def _limit(place, peak, log, size, error, shape, shift=0.0) -> BurnIn:
    """Return the burn-in of size * shape((t + shift) * log), whose shape peaks at `place`."""
    height = peak * size
    exists = (height > error) & (error > 0)
    target = jnp.log(jnp.where(exists, error / jnp.where(size > 0, size, 1.0), 1.0))

    def newton(x, _):
        value, slope = shape(x)
        return x - (value - target) / slope, None

    # The logarithm of the shape is concave: from the right, Newton's method is monotone.
    start = jnp.maximum(2 * place - 2 * target, 4.0 * place)
    end, _ = jax.lax.scan(newton, start, None, length=30)
    never = jnp.where(height > error, jnp.inf, 0.0)  # from an error of zero it has no end
    return BurnIn(
        jnp.where(height > error, place / log - shift, 0.0),
        jnp.maximum(height, error),
        jnp.where(exists, end / log - shift, never),
    )


def _nonnegative_pair(initial_error: ArrayLike, G: ArrayLike):
    return _checks.nonnegative("initial_error", initial_error), _checks.nonnegative("G", G)
