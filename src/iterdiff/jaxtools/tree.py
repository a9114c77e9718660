"""Arithmetic and norms of pytrees: the vector space of the iterates.

Every function takes pytrees of real floating arrays of one structure. Scalars are cast to
each leaf's dtype, so that a float64 step size never turns a float32 iterate into float64.
"""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree, Shaped

T = TypeVar("T", bound=PyTree)


def add(a: T, b: T) -> T:
    """Return ``a + b``, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: T, b: T) -> T:
    """Return ``a - b``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(s: Shaped[Array, ""] | float, a: T) -> T:
    """Return ``s * a`` for a scalar `s`, in the dtypes of `a`."""
    return jax.tree.map(lambda leaf: jnp.asarray(s, leaf.dtype) * leaf, a)


def axpy(s: Shaped[Array, ""] | float, a: T, b: T) -> T:
    """Return ``s * a + b`` for a scalar `s`, in the dtypes of `b`."""
    return jax.tree.map(lambda u, v: jnp.asarray(s, v.dtype) * u + v, a, b)


def where(condition: Bool[Array, ""], a: T, b: T) -> T:
    """Return `a` where the scalar `condition` holds, else `b`."""
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), a, b)


def zeros_like(a: T) -> T:
    """Return zeros of the shapes and dtypes of `a`."""
    return jax.tree.map(jnp.zeros_like, a)


def full_like(a: T, value: float) -> T:
    """Return `value` in the shapes and dtypes of `a`."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), a)


def dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Return the Euclidean inner product ``<a, b>`` over all leaves."""
    products = jax.tree.map(lambda u, v: jnp.sum(u * v), a, b)
    return jax.tree.reduce(jnp.add, products)


def norm(a: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm over all leaves, with derivative zero at zero."""
    square = dot(a, a)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def all_finite(a: PyTree) -> Bool[Array, ""]:
    """Return whether every entry of every floating leaf is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(a) if is_floating(leaf)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def is_floating(leaf: object) -> bool:
    """Return whether `leaf` is an array (or NumPy scalar) of real floating dtype."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def is_traced(leaf: object) -> bool:
    """Return whether JAX is tracing `leaf`, so that it has no value yet."""
    return isinstance(leaf, Tracer)


def size(a: PyTree) -> int:
    """Return the number of scalars in `a` (static)."""
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(a))


def nbytes(a: PyTree) -> int:
    """Return the memory of the array leaves of `a` in bytes (static)."""
    leaves = [leaf for leaf in jax.tree.leaves(a) if eqx.is_array(leaf)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def result_dtype(a: PyTree) -> np.dtype:
    """Return the dtype of a single vector that holds all leaves of `a`.

    JAX's weak types count as what they are: the float64 that a Python number becomes is no
    narrower than any other.
    """
    dtypes = [getattr(leaf, "dtype", None) or jnp.result_type(leaf) for leaf in jax.tree.leaves(a)]
    return np.dtype(jnp.result_type(*dtypes))


def basis(a: T) -> T:
    """Return the standard basis of the space of `a`, stacked along a new first axis.

    Each leaf of shape ``s`` becomes shape ``(size(a), *s)``; slice ``i`` is the unit vector
    of the i-th scalar, counted leaf by leaf in row-major order.
    """
    leaves, structure = jax.tree.flatten(a)
    total, start, out = size(a), 0, []
    for leaf in leaves:
        count = int(np.prod(jnp.shape(leaf)))
        unit = jnp.eye(total, count, k=-start, dtype=leaf.dtype)
        out.append(unit.reshape(total, *jnp.shape(leaf)))
        start += count
    return jax.tree.unflatten(structure, out)


def random_directions(key: Array, a: T, count: int) -> T:
    """Return `count` Gaussian vectors in the space of `a`, stacked along a new first axis."""
    leaves, structure = jax.tree.flatten(a)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, (count, *leaf.shape), leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def stack_to_matrix(stacked: PyTree) -> Float[Array, "k n"]:
    """Return k stacked vectors, in the layout of `basis`, as the rows of one matrix."""
    leaves = jax.tree.leaves(stacked)
    dtype = result_dtype(stacked)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], 1)


def to_vector(a: PyTree) -> Float[Array, " n"]:
    """Return all scalars of `a` as one vector of dtype ``result_dtype(a)``."""
    dtype = result_dtype(a)
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(a)])


def from_vector(vector: Float[Array, " n"], like: T) -> T:
    """Return `vector` in the structure, shapes and dtypes of `like`: the inverse of `to_vector`."""
    leaves, structure = jax.tree.flatten(like)
    out, start = [], 0
    for leaf in leaves:
        count = int(np.prod(jnp.shape(leaf)))
        part = jax.lax.slice_in_dim(vector, start, start + count)
        out.append(part.reshape(jnp.shape(leaf)).astype(leaf.dtype))
        start += count
    return jax.tree.unflatten(structure, out)


def floating_part(a: PyTree) -> tuple[PyTree, PyTree]:
    """Split a pytree into its floating array leaves and the rest (None in their place)."""
    return eqx.partition(a, is_floating)
