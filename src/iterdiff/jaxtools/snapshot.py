"""What a Python function computes at one moment, as a value that can be compared.

A compiled program is reused while the function that it came from is the same object. But a function
also reads globals, attributes, lists and NumPy arrays, and these may change between two calls. Its
trace shows what it read: numbers are literals of the jaxpr, and arrays are its constants.
"""

import enum
import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import PyTree

from iterdiff.jaxtools import tree

COMPARED_BY_VALUE = (
    *(str, bytes, int, float, complex, type(None), np.dtype, type, enum.Enum),
    *(jax.sharding.Sharding, jax.sharding.Mesh, jax.sharding.AbstractMesh),
)
"""Parameters of an equation that are compared. Others, such as the functions behind a custom
derivative rule, are new objects in every trace and cannot be."""


MAX_KEPT_BYTES = 64
"""Arrays of more bytes are represented by a digest of this length."""


class Snapshot:
    """What functions computed when they were traced; hashable, and compared by content.

    Two snapshots are equal if the traces have the same equations, the same literals, NumPy
    constants with the same bytes, and the same JAX arrays as constants (by identity, since they
    cannot change). The functions behind a callback or a custom derivative rule are not compared.

    Attributes
    ----------
    content : tuple
        The equations, hashable.
    arrays : tuple of jax.Array
        The JAX arrays that the functions close over.
    """

    __slots__ = ("_hash", "arrays", "content")

    def __init__(self, content: tuple, arrays: tuple):
        self.content, self.arrays = content, arrays
        self._hash = hash(content)

    @property
    def traced(self) -> bool:
        """Whether the functions close over a value that JAX is tracing."""
        return any(tree.is_traced(v) for v in self.arrays)

    def __or__(self, other: "Snapshot") -> "Snapshot":
        """Return the snapshot of the functions of both."""
        return Snapshot(self.content + other.content, self.arrays + other.arrays)

    def __hash__(self) -> int:
        """Return the hash of the equations."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Return whether the other trace computes the same."""
        if not isinstance(other, Snapshot) or self._hash != other._hash:
            return False
        same = len(self.arrays) == len(other.arrays) and self.content == other.content
        return same and all(a is b for a, b in zip(self.arrays, other.arrays, strict=True))

    def __repr__(self) -> str:
        """Return the number of equations."""
        return f"Snapshot({len(self.content)} functions)"


def traced(function: Callable, *args: PyTree) -> tuple[ClosedJaxpr, PyTree]:
    """Return the jaxpr of ``function(*args)``, and its result with shapes in place of arrays.

    The function is traced anew in every call.
    """
    # A new function object, since JAX caches traces by the function's identity.
    jaxpr, shapes, static = eqx.filter_make_jaxpr(lambda *args: function(*args))(*args)
    return jaxpr, eqx.combine(shapes, static)


def snapshot(*jaxprs: ClosedJaxpr) -> Snapshot:
    """Return what these traces compute."""
    arrays: list = []
    content = tuple(_content(jaxpr, arrays) for jaxpr in jaxprs)
    return Snapshot(content, tuple(arrays))


def _content(closed: ClosedJaxpr, arrays: list) -> tuple:
    constants = tuple(_constant(c, arrays) for c in closed.consts)
    return constants, _equations(closed.jaxpr, arrays)


def _equations(jaxpr: Jaxpr, arrays: list) -> tuple:
    """Return the equations with their variables numbered in the order of appearance."""
    numbers: dict = {}

    def place(v: Any) -> Hashable:
        if isinstance(v, Literal):
            return _constant(v.val, arrays), str(v.aval)
        return numbers.setdefault(v, len(numbers))

    inputs = [(place(v), str(v.aval)) for v in (*jaxpr.constvars, *jaxpr.invars)]
    equations = [
        (
            equation.primitive.name,
            tuple(place(v) for v in equation.invars),
            tuple(_parameter(value, arrays) for value in equation.params.values()),
            tuple(place(v) for v in equation.outvars),
        )
        for equation in jaxpr.eqns
    ]
    return tuple(inputs), tuple(equations), tuple(place(v) for v in jaxpr.outvars)


def _parameter(value: Any, arrays: list) -> Hashable:
    """Return an equation's parameter as far as it can be compared."""
    if isinstance(value, ClosedJaxpr):
        return _content(value, arrays)
    if isinstance(value, Jaxpr):
        return _equations(value, arrays)
    if isinstance(value, tuple | list):
        return tuple(_parameter(v, arrays) for v in value)
    if isinstance(value, dict):
        return tuple((str(key), _parameter(v, arrays)) for key, v in value.items())
    if isinstance(value, COMPARED_BY_VALUE):
        return value
    return _constant(value, arrays) if hasattr(value, "__array__") else type(value)


def _constant(value: Any, arrays: list) -> Hashable:
    """Return a constant's bytes, or their digest; a JAX array goes into `arrays`."""
    if isinstance(value, jax.Array):
        arrays.append(value)
        return len(arrays)
    if isinstance(value, int | float | complex):
        return type(value), repr(value)  # NaN differs from itself
    known = np.asarray(value)
    content = known.tobytes()
    if len(content) > MAX_KEPT_BYTES:
        content = hashlib.blake2b(content).digest()
    return str(known.dtype), known.shape, content
