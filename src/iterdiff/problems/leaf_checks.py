"""Checks of points and parameters: leaf by leaf, with the leaf's name in every message."""

import numbers
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from iterdiff.jaxtools import placement, tree
from iterdiff.jaxtools.arguments import as_array, is_known, is_number
from iterdiff.problems.layout import is_unknown, paired


def check_x0(x0: PyTree, name: str = "x0") -> PyTree:
    """Return `x0` with its leaves converted to arrays.

    Parameters
    ----------
    x0 : pytree
        The point to check. Its floating leaves, real or complex, are the unknowns; booleans,
        integer arrays, PRNG keys and objects that are no numbers may stand beside them.
    name : str
        The argument's name in error messages.

    Returns
    -------
    pytree
        Its arrays are not weakly typed.

    Raises
    ------
    TypeError
        If a leaf is a Python number that is not floating, JAX has no arrays of its kind, or it only
        resembles an array.
    ValueError
        If there are no floating numbers, or a known leaf contains NaN or infinity.
    """
    checked = _each_leaf(f"`{name}`", _unknown, x0)
    if not any(np.size(leaf) for leaf in jax.tree.leaves(checked) if is_unknown(leaf)):
        raise ValueError(
            f"`{name}` contains no floating numbers, so there is nothing to solve for; pass a "
            "floating array or a pytree of some."
        )
    return checked


def _each_leaf(name: str, function: Callable[[str, Any], Any], given: PyTree) -> PyTree:
    """Return ``function(where, leaf)`` of every leaf; ``where`` is its name in messages."""
    try:
        leaves, structure = jax.tree_util.tree_flatten_with_path(given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is no pytree: {str(error).rstrip('.')}. In a dict, use keys of one type."
        ) from error
    made = [function(f"{name}{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]
    return jax.tree.unflatten(structure, made)


def _unknown(where: str, leaf: Any) -> Any:
    """Return a leaf of `x0`, as an array if it is a number; `where` is its name in messages."""
    if isinstance(leaf, numbers.Number) and not isinstance(
        leaf, bool | float | complex | np.generic
    ):
        raise TypeError(
            f"{where} is {leaf!r}, which is no floating number. Write it as a float if it is an "
            "unknown, and as an integer array, such as jnp.asarray(3), if it is a constant."
        )
    if not is_number(leaf):
        return _no_array(where, leaf)
    array = as_array(where, leaf)
    if is_unknown(array) and is_known(array) and not placement.all_finite(array):
        raise ValueError(f"{where} contains NaN or infinity; pass finite numbers.")
    return array


def _no_array(where: str, leaf: Any) -> Any:
    """Return a leaf that is no number.

    Raises
    ------
    TypeError
        If it resembles an array, as a pandas Series does.
    """
    if hasattr(leaf, "dtype"):
        raise TypeError(
            f"{where} is a {type(leaf).__name__}, which has a dtype but is no array; convert it "
            "with numpy.asarray."
        )
    return leaf


def check_theta(theta: PyTree, x0: PyTree = None) -> PyTree:
    """Return `theta` with its numbers converted to arrays.

    Parameters
    ----------
    theta : pytree
        The parameters to check.
    x0 : pytree, optional
        The unknowns. A Python number in `theta`, or what JAX traces in place of one, takes their
        dtype, as it does in arithmetic.

    Returns
    -------
    pytree
        Its arrays are not weakly typed.

    Raises
    ------
    TypeError
        If JAX has no arrays of a leaf's kind, or it only resembles an array.
    ValueError
        If no leaf is floating, a known leaf contains NaN, or a number does not fit its dtype.
    """
    weak = None if x0 is None else tree.result_dtype(paired(eqx.filter(x0, is_unknown)))
    checked = _each_leaf("`theta`", lambda where, leaf: _parameter(where, leaf, weak), theta)
    if not any(map(is_unknown, jax.tree.leaves(checked))):
        raise ValueError(
            "`theta` has no floating leaf, so there is nothing to differentiate with respect to. "
            "Pass parameters as floating arrays; integer leaves are data."
        )
    return checked


def _parameter(where: str, leaf: Any, weak: np.dtype | None) -> Any:
    """Return a leaf of `theta`, as an array if it is a number; `where` is its name in messages."""
    if not is_number(leaf):
        return _no_array(where, leaf)
    array = as_array(where, leaf, weak)
    if is_unknown(array) and is_known(array) and placement.has_nan(array):
        raise ValueError(f"{where} contains NaN; pass numbers.")
    return array
