"""Checks of the arguments of the formulas, and their conversion to floating arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


def known_value(value: Any) -> np.ndarray | None:
    """Return `value` as a NumPy array, or None if JAX is tracing it."""
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None
    except TypeError:  # a PRNG key
        return np.array(None)


def require(
    name: str, value: ArrayLike, holds: Callable[[np.ndarray], np.ndarray | np.bool_], rule: str
) -> None:
    """Raise an error that names the argument if its known value breaks the rule.

    Raises
    ------
    TypeError
        If `value` is not real.
    ValueError
        If `holds` is false for any entry.
    """
    known = require_real(name, value)
    if known is None:
        return
    if not np.all(holds(known)):
        raise ValueError(f"`{name}` must be {rule}, but it is {value}.")


def require_real(name: str, value: Any) -> np.ndarray | None:
    """Return `value` if it is known; raise an error that names it unless it is real.

    Raises
    ------
    TypeError
        If `value` is not real.
    """
    known = known_value(value)
    if known is not None and known.dtype.kind not in "biuf" and known.dtype != jnp.bfloat16:
        raise TypeError(f"`{name}` must be a real number or an array of them, not {value!r}.")
    return known


def as_floating(value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array; a Python number stays weakly typed."""
    array = jnp.asarray(float(value) if isinstance(value, int) else value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(jnp.result_type(float))


def require_scalars(**values: Any) -> None:
    """Raise an error that names the argument unless every value is one real number.

    Raises
    ------
    TypeError
        If one is not real.
    ValueError
        If one has dimensions.
    """
    for name, value in values.items():
        require(name, value, lambda v: np.bool_(v.ndim == 0), "a scalar")


def as_real(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array; raise TypeError unless it is real."""
    require_real(name, value)
    return as_floating(value)


def as_positive(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array; raise ValueError unless it is positive."""
    require(name, value, lambda v: v > 0, "positive")
    return as_floating(value)


def as_nonnegative(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array; raise ValueError if it is negative."""
    require(name, value, lambda v: v >= 0, "nonnegative")
    return as_floating(value)


def as_rate(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """Return `value` as a floating array; raise ValueError unless it is inside (0, 1)."""
    require(name, value, lambda v: (v > 0) & (v < 1), "between 0 and 1, both excluded")
    return as_floating(value)


def as_momentum(value: ArrayLike) -> Float[Array, "..."]:
    """Return `momentum` as a floating array; raise ValueError unless it is inside (-1, 1)."""
    require("momentum", value, lambda v: (v > -1) & (v < 1), "between -1 and 1, both excluded")
    return as_floating(value)


def require_count(name: str, value: ArrayLike) -> None:
    """Raise ValueError unless `value` consists of nonnegative whole numbers."""
    require(name, value, lambda v: (v >= 0) & (v == np.floor(v)), "a nonnegative whole number")


def as_counts(name: str, value: ArrayLike) -> Int[Array, "..."]:
    """Return numbers of iterations as an integer array; raise ValueError for any other number."""
    require_count(name, value)
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.integer) else array.astype(int)


def cast_like(t: Int[Array, "..."], like: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return numbers of iterations in the floating dtype of `like`."""
    return t.astype(jnp.result_type(like))


def power(base: Float[Array, "..."], t: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return ``base**t`` for a base of any sign."""
    return base ** cast_like(t, base)


def as_spectrum(
    smallest: ArrayLike, largest: ArrayLike, *, strict: bool = False
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the bounds of a spectrum as floating arrays.

    Raises
    ------
    ValueError
        Unless ``0 < smallest <= largest``; with `strict`, unless ``0 < smallest < largest``.
    """
    bounds = as_positive("smallest", smallest), as_positive("largest", largest)
    low, high = known_value(smallest), known_value(largest)
    if low is not None and high is not None:
        if np.any(low > high):
            raise ValueError(f"`smallest` must not exceed `largest`, but {smallest} > {largest}.")
        if strict and np.any(low == high):
            raise ValueError(f"`smallest` must be below `largest`, but both are {largest}.")
    return bounds
