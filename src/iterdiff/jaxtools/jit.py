"""Compile functions whose closures hold data, without a copy of the data in every program."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist

F = TypeVar("F", bound=Callable[..., Any])

KEPT = 64
"""So many programs are kept, those that were used last."""


def compiled(function: F) -> F:
    """Return `function` compiled; what it closes over becomes an input of the program.

    As :func:`equinox.filter_jit` (arrays are traced, all else is static and must be hashable),
    which makes constants of the arrays that a user's function closes over: a dataset is then
    copied several times while each program is compiled, and once more into the program.

    Parameters
    ----------
    function : callable
        Of positional arguments.

    Returns
    -------
    callable
        Called while JAX traces, it is `function` itself.
    """

    @functools.wraps(function)
    def call(*args):
        dynamic, static = eqx.partition(args, _is_array)
        arrays, places = jax.tree.flatten(dynamic)
        if any(tree.is_traced(v) for v in arrays):
            return function(*args)
        leaves, structure = jax.tree.flatten(static)
        program, closed_over, fixed = _program(
            function,
            (structure, tuple((type(leaf), leaf) for leaf in leaves)),
            (places, tuple(jax.typeof(v) for v in arrays)),
            jax.dtypes.canonicalize_dtype(float),
        )
        return eqx.combine(program(closed_over, dynamic), fixed)

    return call  # pyright: ignore[reportReturnType]


@functools.lru_cache(maxsize=KEPT)
def _program(
    function: Callable, static: tuple, dynamic: tuple, floats: Any
) -> tuple[Callable, Any, Any]:
    """Return the program, the closed-over arrays (its first input), and what it need not compute.

    The last are the parts of the result that are no arrays.
    """
    del floats
    structure, leaves = static
    rest = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])
    places, kinds = dynamic
    examples = jax.tree.unflatten(
        places, [jax.ShapeDtypeStruct(k.shape, k.dtype, weak_type=k.weak_type) for k in kinds]
    )
    fixed = None

    def arrays(given):
        nonlocal fixed
        found, fixed = eqx.partition(function(*eqx.combine(given, rest)), eqx.is_array)
        return found

    explicit, closed_over = hoist(arrays, examples)
    return jax.jit(explicit), closed_over, fixed


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
