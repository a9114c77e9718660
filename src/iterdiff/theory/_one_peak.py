"""Curves with one maximum: where they peak, and where they fall back to a given value."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NEWTON_ITERATIONS = 40
"""Enough to halve the distance to a nearly double root down to the rounding of float64."""


class Shape(NamedTuple):
    """A curve of x > 0 with one maximum, whose logarithm is concave.

    Attributes
    ----------
    log : callable
        The logarithm of the curve, which does not overflow.
    peak_at : float
        Where the maximum is.
    """

    log: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    peak_at: float


# x exp(-x)
GRADIENT_DESCENT = Shape(lambda x: jnp.log(x) - x, 1.0)
# x**3 exp(-x)
HEAVY_BALL_FROM_REST = Shape(lambda x: 3 * jnp.log(x) - x, 3.0)
# exp(-x) (x**2 + x**3 / 3) / 2, largest at sqrt(6)
MOMENTUM = Shape(lambda x: 2 * jnp.log(x) + jnp.log1p(x / 3) - x - jnp.log(2.0), 2.449489742783178)
# x**2 / (2 cosh(x)), largest at x tanh(x) = 2
CHEBYSHEV = Shape(lambda x: 2 * jnp.log(x) - x - jnp.log1p(jnp.exp(-2 * x)), 2.0653381389747043)


def burn_in_of(
    shape: Shape,
    log_size: Float[Array, "..."],
    decay: Float[Array, "..."],
    error: Float[Array, "..."],
    *,
    shift: Float[Array, "..."] | float = 0.0,
    first: float = 0.0,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Return peak iteration, peak and length of a burn-in from `error`, see `BurnIn`.

    The curve of errors is ``exp(log_size) shape((t + shift) decay)``, for t from `first` on.
    """
    at = jnp.maximum(shape.peak_at, (first + shift) * decay)
    log_peak, log_error = log_size + shape.log(at), log_of(error)
    rounding = 4 * jnp.finfo(jnp.result_type(log_peak)).eps * (1 + jnp.abs(log_size))
    exceeds = log_peak > log_error + rounding
    returns = exceeds & (error > 0)  # the curve does not return to zero
    end = _descend_to(shape, jnp.where(returns, log_error - log_size, shape.log(at) - 1))
    no_end = jnp.where(exceeds, jnp.inf, 0.0)
    return (
        jnp.where(exceeds, at / decay - shift, 0.0),
        jnp.where(exceeds, jnp.exp(log_peak), error),
        jnp.where(returns, end / decay - shift, no_end),
    )


def _descend_to(shape: Shape, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the x above the peak at which the shape has this logarithm, by Newton's method.

    For the shape ``x exp(-x)`` it is the lower branch of Lambert's W, with the sign changed.
    (``scipy.special.lambertw`` does not run under ``jit``.)
    """

    def newton(x, _):
        value, slope = jax.jvp(shape.log, (x,), (jnp.ones_like(x),))
        slope = jnp.where(slope < 0, slope, -1.0)
        return jnp.maximum(x - (value - log_value) / slope, shape.peak_at), None

    # From the right of the solution Newton's method is monotone, as the logarithm is concave.
    start = jnp.maximum(2 * shape.peak_at - 2 * log_value, 4 * shape.peak_at)
    return jax.lax.scan(newton, start, None, length=NEWTON_ITERATIONS)[0]


def log_of(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the logarithm, minus infinity with derivative zero at zero."""
    positive = value > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, value, 1.0)), -jnp.inf)
