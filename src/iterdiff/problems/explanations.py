"""Words for what a user's function returned, and for why it could not be evaluated."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools.complex_pairs import is_pair

PACKAGE = Path(__file__).parents[1]
"""The folder of this package's code."""

MAX_SHAPES_LENGTH = 300
"""Characters of a message in which the shapes of a pytree are printed; the rest is left out."""


def described(value: Any) -> str:
    """Return the dtype and the shape of an array, and what else the value is if it is none."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if jax.tree.leaves(value) and not isinstance(value, int | float | complex | str):
        return f"a {type(value).__name__}"
    return repr(value)


def shapes(given: PyTree) -> str:
    """Return a pytree with the shapes of its arrays in place of them, shortened."""

    def shape(leaf):
        leaf = leaf.real if is_pair(leaf) else leaf
        return tuple(leaf.shape) if hasattr(leaf, "shape") else leaf

    text = str(jax.tree.map(shape, given, is_leaf=is_pair))
    return text if len(text) <= MAX_SHAPES_LENGTH else f"{text[:MAX_SHAPES_LENGTH]}..."


def is_complex(leaf: Any) -> bool:
    """Return whether a leaf is complex: a pair of real arrays, or an array."""
    return is_pair(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)


def dtype_of(leaf: Any) -> np.dtype:
    """Return the dtype of a leaf as the user sees it."""
    if is_pair(leaf):
        return jnp.promote_types(jnp.result_type(leaf.real), jnp.complex64)
    return jnp.result_type(leaf)


def list_advice(x0: PyTree) -> str:
    """Return what to do if `x0` is a list of numbers and an array is meant; "" if it is none."""
    if isinstance(x0, list | tuple) and x0 and all(getattr(v, "shape", None) == () for v in x0):
        return f"A {type(x0).__name__} is a pytree of scalars: pass jnp.asarray(x0)"
    return ""


def failure(name: str, error: Exception, inputs: str, x0: PyTree, theta: PyTree) -> str:
    """Return why a function of the problem could not be evaluated, and what to do.

    Parameters
    ----------
    name : str
        The function's name.
    error : Exception
        What it raised.
    inputs : str
        The names of its inputs without data.
    x0, theta : pytree
        What it was called with.
    """
    reason = str(error).rstrip(".")
    if _is_wrong_call(error):
        return (
            f"`problem`: {name} cannot be called: {reason}. Write it as a function of ({inputs}), "
            f"with data of ({inputs}, args): `args` arrives as one argument."
        )
    if isinstance(error, LookupError):
        reason = f"{type(error).__name__}: {reason}"
    said = f"`problem`: {name} cannot be evaluated: {reason}"
    advice = list_advice(x0)
    if advice:
        return f"{said}. {advice}."
    what = "entries" if isinstance(error, LookupError) else "shapes"
    return f"{said}. Check the {what} of `x0` and `theta`: {shapes(x0)} and {shapes(theta)}."


def _is_wrong_call(error: Exception) -> bool:
    """Return whether an error is Python's about a call of ours with a wrong number of arguments.

    A function that has begun leaves its own frame in the traceback.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents
    return ours and isinstance(error, TypeError) and "positional argument" in str(error)
