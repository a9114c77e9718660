"""Compile functions whose closures hold data, without a copy of the data in every program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import numpy as np

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import hoist

F = TypeVar("F", bound=Callable[..., Any])

MAX_CACHED_PROGRAMS = 64
"""Number of programs that are kept; the least recently used one is dropped first."""


class Program(NamedTuple):
    """A compiled function with the values that it closes over.

    Attributes
    ----------
    run : callable
        ``run(closed_over, arrays)`` returns the arrays of the result; compiled by `jax.jit`.
    closed_over : pytree of arrays
        What the function closes over, an input of the program.
    static : pytree
        The parts of the result that are no arrays.
    """

    run: Callable
    closed_over: Any
    static: Any


def compiled(function: F) -> F:
    """Return `function` compiled; the values that it closes over become inputs of the program.

    As :func:`equinox.filter_jit`: arrays are traced, and everything else is static and has to be
    hashable. But `filter_jit` turns the arrays that a user's function closes over into constants.
    A dataset is then copied several times while each program is compiled, and once more into the
    program.

    Parameters
    ----------
    function : callable
        Takes positional arguments.

    Returns
    -------
    callable
        The compiled function. While JAX traces, it is `function` itself.
    """

    @functools.wraps(function)
    def call(*args):
        dynamic, _ = eqx.partition(args, _is_array)
        if any(tree.is_traced(v) for v in jax.tree.leaves(dynamic)):
            return function(*args)
        program = program_of(function, *args)
        return eqx.combine(program.run(program.closed_over, dynamic), program.static)

    return call  # pyright: ignore[reportReturnType]


def program_of(function: Callable, *args: Any) -> Program:
    """Return the program that `compiled` runs for these arguments."""
    dynamic, static = eqx.partition(args, _is_array)
    arrays, places = jax.tree.flatten(dynamic)
    leaves, structure = jax.tree.flatten(static)
    return _program(
        function,
        (structure, tuple((type(leaf), leaf) for leaf in leaves)),
        (places, tuple(jax.typeof(v) for v in arrays)),
        jax.dtypes.canonicalize_dtype(float),
    )


@functools.lru_cache(maxsize=MAX_CACHED_PROGRAMS)
def _program(function: Callable, static: tuple, dynamic: tuple, floats: Any) -> Program:
    """Return the program; `floats`, the default dtype, is only part of the key."""
    del floats
    structure, leaves = static
    rest = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])
    places, kinds = dynamic
    examples = jax.tree.unflatten(
        places, [jax.ShapeDtypeStruct(k.shape, k.dtype, weak_type=k.weak_type) for k in kinds]
    )
    static_result = None

    def arrays(given):
        nonlocal static_result
        found, static_result = eqx.partition(function(*eqx.combine(given, rest)), eqx.is_array)
        return found

    explicit, closed_over = hoist(arrays, examples)
    return Program(jax.jit(explicit), closed_over, static_result)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
