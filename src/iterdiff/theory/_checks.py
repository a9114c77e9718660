"""Conversion and checks of the numbers that go into the formulas."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


def concrete(value: ArrayLike) -> np.ndarray | None:
    """Return `value` as a NumPy array, or None where JAX is tracing it."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def require(
    name: str, value: ArrayLike, holds: Callable[[np.ndarray], np.ndarray | np.bool_], rule: str
) -> None:
    """Raise an error that names `name` where `value` is known and breaks the rule."""
    known = concrete(value)
    if known is not None and known.dtype.kind not in "biuf" and known.dtype != jnp.bfloat16:
        raise TypeError(f"`{name}` must be a real number or an array of them, not {value!r}.")
    if known is not None and not np.all(holds(known)):
        raise ValueError(f"`{name}` must be {rule}, but it is {value}.")


def real(value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array; a Python number adapts to what it is combined with."""
    array = jnp.asarray(float(value) if isinstance(value, int) else value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(jnp.result_type(float))


def positive(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array, refusing what is not above zero."""
    require(name, value, lambda v: v > 0, "positive")
    return real(value)


def nonnegative(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array, refusing what is below zero."""
    require(name, value, lambda v: v >= 0, "nonnegative")
    return real(value)


def rate(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array, refusing what is not inside (0, 1)."""
    require(name, value, lambda v: (v > 0) & (v < 1), "between 0 and 1, both excluded")
    return real(value)


def steps(name: str, value: ArrayLike) -> Int[Array, "..."]:
    """Return iteration numbers as an integer array, refusing negative and fractional ones."""
    require(name, value, lambda v: (v >= 0) & (v == np.floor(v)), "a nonnegative whole number")
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.integer) else array.astype(int)


def counted(t: Int[Array, "..."], like: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return iteration numbers as floating numbers that combine with `like`."""
    return t.astype(jnp.result_type(like))


def power(base: Float[Array, "..."], t: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return ``base**t``, for a base of any sign."""
    return base ** counted(t, base)


def interval(
    smallest: ArrayLike, largest: ArrayLike, *, strict: bool = False
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the bounds of a spectrum, refusing an empty or nonpositive interval.

    With `strict` it must have an interior.
    """
    low, high = concrete(smallest), concrete(largest)
    positive("smallest", smallest)
    positive("largest", largest)
    if low is not None and high is not None:
        if np.any(low > high):
            raise ValueError(f"`smallest` must not exceed `largest`, but {smallest} > {largest}.")
        if strict and np.any(low == high):
            raise ValueError(f"`smallest` must be below `largest`, but both are {largest}.")
    return real(smallest), real(largest)
