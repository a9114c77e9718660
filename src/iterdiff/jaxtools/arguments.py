"""Checks and conversions of scalar arguments: counts, ranges, tolerances."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from iterdiff.jaxtools import tree

Scalar = Float[Array, ""] | float
"""A hyper-parameter such as a step size: a real scalar, maybe traced."""


def scalar(value: Scalar) -> Float[Array, ""]:
    """Convert a hyper-parameter to a floating scalar array (a field converter)."""
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
    """Refuse a concrete hyper-parameter outside the open interval (low, high).

    A traced value is let through: its run shows a divergence by its status.

    Raises
    ------
    ValueError
        If `value` is known and outside, or NaN.
    """
    if tree.is_traced(value) or not eqx.is_array(value):
        return
    if not (np.all(np.asarray(value) > low) and np.all(np.asarray(value) < high)):
        upper = "finite" if high == float("inf") else f"below {high:g}"
        raise ValueError(f"`{name}` must be greater than {low:g} and {upper}, but it is {value}.")


def check_count(name: str, value: int) -> None:
    """Refuse what is no positive Python int.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a Python int, not {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, not {value}.")


Tolerance = Real[ArrayLike, ""]
"""A real scalar: what `check_tolerance` lets pass."""


def check_tolerance(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse a tolerance that is known and out of range.

    Parameters
    ----------
    name : str
        What the argument is called.
    value : real scalar
        The tolerance; it may be traced.
    zero : bool
        Whether it may be zero.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
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
    """Return whether the value of `leaf` is known, that is, not being traced."""
    return not tree.is_traced(leaf)


def positive_int(name: str, value: int) -> int:
    """Return `value` if it is a positive Python int; else say so.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a Python int, not {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, not {value}.")
    return value
