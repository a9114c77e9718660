"""The lower branch of Lambert's W, in which the end of a burn-in is written."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks


def lambert_lower(y: ArrayLike) -> Float[Array, "..."]:
    r"""Return the lower branch of Lambert's W: :math:`w \le -1` with :math:`w e^w = y`.

    Parameters
    ----------
    y : float array
        In [-1/e, 0).

    Returns
    -------
    float array
        By Newton's method on :math:`w + \ln(-w) = \ln(-y)`.
    """
    target = jnp.log(-_checks.real(y))
    # An upper bound of -w: Newton's method on this convex equation then comes from one side.
    excess = jnp.maximum(-1 - target, 0.0)
    start = 1 + jnp.sqrt(2 * excess) + excess

    def newton(v, _):
        moving = v > 1
        slope = jnp.where(moving, 1 - 1 / v, 1.0)
        step = jnp.where(moving, (v - jnp.log(v) + target) / slope, 0.0)
        return jnp.maximum(v - step, 1.0), None

    found, _ = jax.lax.scan(newton, start, None, length=30)
    return -found
