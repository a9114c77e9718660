"""Checks and conversions of arguments: arrays, hyper-parameters, counts, tolerances, callables."""

import inspect
from collections.abc import Callable, Sequence
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

    A value that is no real scalar is returned unchanged: `check_range`, which knows the name of the
    field, raises the error.
    """
    if not is_real(value) or np.ndim(value):
        return value  # pyright: ignore[reportReturnType]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = as_array("a hyper-parameter", value)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.result_type(float))
        return array
    try:
        return jnp.asarray(float(value), jnp.result_type(float))
    except OverflowError:
        return value  # pyright: ignore[reportReturnType]


def check_range(name: str, value: Array, low: float, high: float = float("inf")) -> None:
    """Raise unless a hyper-parameter is a real scalar in the open interval ``(low, high)``.

    A traced value passes: if it is out of range, the status of the run shows it.

    Raises
    ------
    TypeError
        If `value` is not a real number.
    ValueError
        If `value` has dimensions, or is known and outside the interval, or NaN.
    """
    if not is_real(value):
        raise TypeError(f"`{name}` must be a real number, not {value!r}.")
    if np.ndim(value):
        raise ValueError(f"`{name}` must be a scalar, not of shape {np.shape(value)}.")
    if tree.is_traced(value):
        return
    if not low < float(value) < high:
        upper = "finite" if high == float("inf") else f"below {high:g}"
        least = "" if low == -float("inf") else f"greater than {low:g} and "
        raise ValueError(f"`{name}` must be {least}{upper}, but it is {value}.")


def check_word(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise unless `value` is one of the `allowed` words.

    Raises
    ------
    ValueError
        The message lists the words.
    """
    if not isinstance(value, str) or value not in allowed:
        names = ", ".join(repr(word) for word in allowed)
        raise ValueError(f"`{name}` must be one of {names}, not {value!r}.")


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
    if not is_real(value) or isinstance(value, bool) or np.ndim(value):
        raise TypeError(f"`{name}` must be a real number, not {value!r}.")
    if not is_known(value):
        return
    if not (value >= 0 if zero else value > 0):
        raise ValueError(
            f"`{name}` must {'not be negative' if zero else 'be positive'}, but it is {value}."
        )
    if isinstance(value, int) and value > MAX_COUNT:
        raise ValueError(f"`{name}` = {value} is too large; pass a float.")


def check_bool(**flags: Any) -> None:
    """Raise TypeError unless every keyword argument is True or False.

    Raises
    ------
    TypeError
        If one is not; the message names it. A traced value is none of the two.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"`{name}` must be True or False, not {flag!r}.")


def check_callable(**functions: Any) -> None:
    """Raise TypeError unless every keyword argument is callable.

    Raises
    ------
    TypeError
        If one is not; the message names it.
    """
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"`{name}` must be a function, not {function!r}; pass a callable.")


def check_call(form: str, function: Callable, *inputs: Any) -> None:
    """Raise TypeError unless `function` can be called with `inputs`.

    Parameters
    ----------
    form : str
        How it is called, such as ``loss(theta, report)``.
    function : callable
        The function; one without a signature passes.
    *inputs
        Its arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*inputs)
    except TypeError as error:
        name = form.partition("(")[0]
        raise TypeError(
            f"`{name}` is called as {form}, but its parameters are {signature}: {error}."
        ) from error


def as_array(name: str, leaf: Any, weak: np.dtype | None = None) -> Array:
    """Return a number or an array as a JAX array that is not weakly typed.

    A weakly typed value (a Python number, also one that JAX traces) takes the dtype of whatever
    it meets, so that the dtypes of derivatives would depend on the order of operations.

    Parameters
    ----------
    name : str
        The argument's name in messages, with backticks.
    leaf : number or array
        The value.
    weak : dtype, optional
        The real dtype of a weakly typed floating value; by default its own.

    Raises
    ------
    TypeError
        If the value is no number, or JAX has no arrays of its kind: a masked array, objects, text,
        dates, extended precision.
    ValueError
        If a number does not fit the dtype that JAX gives it, or an array was deleted.
    """
    if isinstance(leaf, jax.Array):
        if is_known(leaf) and leaf.is_deleted():
            raise ValueError(f"{name} was deleted or donated to another program; pass a copy.")
        if not getattr(leaf, "weak_type", False):
            return leaf
        return jnp.asarray(leaf, _of_weak(leaf, weak))
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array; fill the missing entries, for example `.filled(0.0)`."
        )
    if isinstance(leaf, np.ndarray | np.generic):
        return _from_numpy(name, leaf)
    if not is_number(leaf):
        raise TypeError(f"{name} must be a number or an array, not {leaf!r}.")
    try:
        dtype = _of_weak(leaf, weak)
        with np.errstate(over="ignore"):  # `_check_fits` reports it
            array = jnp.asarray(leaf, dtype)
    except OverflowError as error:
        limit = jnp.result_type(int)
        raise ValueError(f"{name} = {leaf} does not fit {limit}; pass a float.") from error
    _check_fits(name, leaf, array)
    return array


def _of_weak(leaf: Any, weak: np.dtype | None) -> np.dtype:
    """Return the dtype of a weakly typed value."""
    dtype = jnp.result_type(leaf)
    if weak is None or not jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    return jnp.promote_types(weak, jnp.complex64) if jnp.iscomplexobj(leaf) else weak


def _from_numpy(name: str, leaf: Any) -> Array:
    if not leaf.dtype.isnative:
        leaf = leaf.astype(leaf.dtype.newbyteorder("="))
    try:
        with np.errstate(over="ignore"):  # `_check_fits` reports it
            array = jnp.asarray(leaf)
    except TypeError as error:
        raise TypeError(
            f"{name} has dtype {leaf.dtype}, which JAX does not have; convert it, for example with "
            "np.asarray(..., float)."
        ) from error
    if array.dtype != leaf.dtype:
        _check_fits(name, leaf, array)
    return array


def _check_fits(name: str, given: Any, array: Array) -> None:
    """Raise ValueError if a known value changed by more than rounding when JAX converted it."""
    if tree.is_traced(array):
        return
    found, given = np.asarray(array), np.asarray(given)
    if jnp.issubdtype(found.dtype, jnp.inexact):
        fits = np.isfinite(found) | ~np.isfinite(given)
    else:
        fits = found == given
    if not np.all(fits):
        raise ValueError(
            f"{name} does not fit {array.dtype}; scale it, or enable JAX's jax_enable_x64."
        )


def is_number(leaf: Any) -> bool:
    """Return whether `leaf` is a number or an array, traced or not."""
    return eqx.is_array_like(leaf)


def is_real(value: Any) -> bool:
    """Return whether `value` is a real number, or an array of some, traced or not."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        kinds = (jnp.floating, jnp.integer, jnp.bool_)
        return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return isinstance(value, bool | int | float)


def is_known(leaf: Any) -> bool:
    """Return whether JAX knows the value of `leaf`, rather than tracing it."""
    return not tree.is_traced(leaf)
