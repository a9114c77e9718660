"""Checks and conversions of scalar arguments: hyper-parameters, counts, tolerances."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from iterdiff.jaxtools import tree

Scalar = Float[Array, ""] | float
"""A hyper-parameter such as a step size: a real scalar, possibly traced."""

Tolerance = Real[ArrayLike, ""]
"""A real scalar, possibly traced: what `check_tolerance` accepts."""


def scalar(value: Scalar) -> Float[Array, ""]:
    """Convert a hyper-parameter to a floating scalar array (a field converter).

    Raises
    ------
    TypeError
        If `value` is not a real number.
    ValueError
        If `value` is an array with dimensions.
    """
    if not eqx.is_array_like(value) or jnp.iscomplexobj(value):
        raise TypeError(
            "a hyper-parameter (a step size, a momentum, a bound of the spectrum) must be a real "
            f"number, not {value!r}."
        )
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = jnp.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.result_type(float))
    else:
        array = jnp.asarray(value, jnp.result_type(float))
    if array.ndim:
        raise ValueError(f"a hyper-parameter must be a scalar, not of shape {array.shape}.")
    return array


def check_range(name: str, value: Array, low: float, high: float = float("inf")) -> None:
    """Raise unless a hyper-parameter lies in the open interval ``(low, high)``.

    A traced value passes: if it is out of range, the status of the run shows it.

    Raises
    ------
    ValueError
        If `value` is known and outside the interval, or NaN.
    """
    if tree.is_traced(value) or not eqx.is_array(value):
        return
    if not (np.all(np.asarray(value) > low) and np.all(np.asarray(value) < high)):
        upper = "finite" if high == float("inf") else f"below {high:g}"
        raise ValueError(f"`{name}` must be greater than {low:g} and {upper}, but it is {value}.")


MAX_COUNT = 2**31 - 1
"""The largest count: loops count in 32 bits."""


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return `value` if it is a Python int from `least` to `MAX_COUNT`.

    Raises
    ------
    TypeError
        If `value` is not an int (a bool does not count as one).
    ValueError
        If `value` is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a Python int, not {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, but it is {value}.")
    if value > MAX_COUNT:
        raise ValueError(f"`{name}` must be at most {MAX_COUNT}, but it is {value}.")
    return value


def check_tolerance(name: str, value: Any, *, zero: bool = False) -> None:
    """Raise unless `value` is a real scalar in range.

    Parameters
    ----------
    name : str
        The argument's name in messages.
    value : real scalar
        The tolerance. A traced value is not checked for its range.
    zero : bool
        Whether zero is allowed.

    Raises
    ------
    TypeError
        If `value` is not a real number.
    ValueError
        If `value` is known and negative, or zero where that is not allowed, or NaN.
    """
    if not is_number(value) or np.ndim(value) or jnp.result_type(value).kind not in "fiu":
        raise TypeError(f"`{name}` must be a real number, not {value!r}.")
    if is_known(value) and not (value >= 0 if zero else value > 0):
        raise ValueError(
            f"`{name}` must {'not be negative' if zero else 'be positive'}, but it is {value}."
        )


def is_number(leaf: Any) -> bool:
    """Return whether `leaf` is a number or an array, traced or not."""
    return eqx.is_array_like(leaf)


def is_known(leaf: Any) -> bool:
    """Return whether JAX knows the value of `leaf`, rather than tracing it."""
    return not tree.is_traced(leaf)
