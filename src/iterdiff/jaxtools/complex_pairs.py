"""Complex arrays as pairs of real ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

COMPLEX_FROM_REAL = frozenset({"complex", "fft", "eig"})
"""Primitives that make complex numbers of real ones."""


class Pair(NamedTuple):
    """The real and the imaginary part of a complex array."""

    real: Any
    imag: Any


def is_pair(leaf: Any) -> bool:
    """Return whether `leaf` is a `Pair`, which is then no inner node of a tree."""
    return isinstance(leaf, Pair)


def to_pairs(a: PyTree) -> PyTree:
    """Return a pytree with each complex array as a `Pair`."""
    return jax.tree.map(
        lambda leaf: Pair(jnp.real(leaf), jnp.imag(leaf)) if _is_complex(leaf) else leaf, a
    )


def from_pairs(a: PyTree) -> PyTree:
    """Return a pytree with each `Pair` as one complex array."""
    return jax.tree.map(
        lambda leaf: jax.lax.complex(*leaf) if is_pair(leaf) else leaf, a, is_leaf=is_pair
    )


def real_parts(leaves: list) -> list[tuple]:
    """Return for each leaf a tuple of real arrays: one, or two if it is complex."""
    return [(jnp.real(v), jnp.imag(v)) if _is_complex(v) else (v,) for v in leaves]


def joined_parts(parts: list[tuple]) -> list:
    """Return the leaves of which these are the `real_parts`."""
    return [jax.lax.complex(*part) if len(part) == 2 else part[0] for part in parts]


def is_real_primitive(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """Return whether a primitive has real inputs and outputs: a policy for `jax.checkpoint`.

    `jax.checkpoint` cannot save complex values before JAX 0.12: it reduces their precision, for
    which XLA has real numbers only.
    """
    made = [params.get(name) for name in ("new_dtype", "dtype")]
    dtypes = [value.dtype for value in inputs if hasattr(value, "dtype")]
    dtypes += [dtype for dtype in made if dtype is not None]
    known = not any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)
    return known and primitive.name not in COMPLEX_FROM_REAL


def _is_complex(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating)
