r"""The diagonal, or diagonal blocks, of a matrix that is known by its products alone.

A matrix of n unknowns has n columns, and a product with each is too many where n is large. Unknowns
that share a *colour* are probed together, with random signs :math:`s`: the entry
:math:`s_i (A s)_i` is :math:`a_{ii}` plus the entries that couple i to others of its colour, with
random signs. It is exact where these vanish: with as many colours as unknowns, and for many sparse
matrices. Elsewhere the error of each entry has mean zero, and the size of what was neglected.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import tree
from iterdiff.linalg.krylov import Matvec, Operand

COLOURS = 31
"""Products that find a diagonal. A prime, so that few grids couple unknowns of one colour."""

LENGTH_PROBES = 4
"""Products that find the lengths of rows, to a factor of about two: scales need no more."""

BLOCK_MAX_SIZE = 16
"""Larger blocks are not probed: there would be more than `COLOURS` times as many products."""


def diagonal_by_probing(matvec: Matvec, like: Operand) -> Operand:
    """Return the diagonal of a matrix, leaf by leaf, as an element of its space.

    It is exact up to `COLOURS` unknowns of a leaf, see the module's docstring.

    Parameters
    ----------
    matvec : callable
        The product with the matrix.
    like : array, or pytree of arrays
        Gives structure, shapes and dtypes.
    """
    leaves, structure = jax.tree.flatten(like)
    found = [
        blocks_by_probing(_within_leaf(matvec, like, place), leaf, 1)[..., 0, 0]
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, found)


def _within_leaf(operator: Matvec, like: PyTree, place: int) -> Matvec:
    """Return the part of an operator that maps one leaf to itself."""
    leaves, structure = jax.tree.flatten(like)

    def matvec(v: Array) -> Array:
        parts = [jnp.zeros_like(leaf) for leaf in leaves]
        parts[place] = v.astype(parts[place].dtype)
        return jax.tree.leaves(operator(jax.tree.unflatten(structure, parts)))[place]

    return matvec


def blocks_by_probing(matvec: Matvec, like: Array, size: int) -> Float[Array, "*m k k"]:
    """Return the diagonal blocks of `size` unknowns each along the last axis; it is 1 or all of it.

    An array keeps its shape, because it may be spread over devices along any axis.
    """
    shape = like.shape if size == 1 else like.shape[:-1]
    count = like.size // size
    colours = min(COLOURS, count)
    blocks = jnp.arange(count, dtype=jnp.int32).reshape(shape)
    signs = _signs(jax.random.key(0), shape, like)
    zeros = jnp.zeros_like(like).reshape(*shape, size)

    def add(found: Array, probe: Array) -> tuple[Array, None]:
        colour, place = probe // size, probe % size
        chosen = jnp.where(blocks % colours == colour, signs, 0)[..., None]
        column = (jnp.arange(size, dtype=jnp.int32) == place).astype(like.dtype)
        column = column.reshape((1,) * len(shape) + (size,))
        image = chosen * matvec((zeros + chosen * column).reshape(like.shape)).reshape(zeros.shape)
        return found + image[..., None] * column[..., None, :], None

    start = jnp.broadcast_to(zeros[..., None], (*shape, size, size))
    return jax.lax.scan(add, start, jnp.arange(colours * size, dtype=jnp.int32))[0]


def row_lengths(matvec: Matvec, like: Operand) -> Operand:
    """Return the Euclidean lengths of a matrix's rows, estimated from random vectors of signs."""
    keys = jax.random.split(jax.random.key(1), LENGTH_PROBES)
    leaves, structure = jax.tree.flatten(like)

    def signs(key: Array) -> Operand:
        own = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
        drawn = [_signs(k, leaf.shape, leaf) for k, leaf in zip(own, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    def add(squares: Operand, key: Array) -> tuple[Operand, None]:
        image = matvec(signs(key))
        return jax.tree.map(lambda s, v: s + v * v / LENGTH_PROBES, squares, image), None

    squares = jax.lax.scan(add, tree.zeros_like(like), keys)[0]
    return jax.tree.map(jnp.sqrt, squares)


def _signs(key: Array, shape: tuple[int, ...], like: Array) -> Array:
    """Return random signs, spread over devices as `like` is if they have its shape."""
    axes = tree.axes_of(like) if shape == like.shape else None
    # `jax.random.rademacher` cannot spread them in JAX 0.10.0.
    drawn = jax.random.uniform(key, shape, like.dtype, out_sharding=axes)
    return jnp.where(drawn < 0.5, 1.0, -1.0).astype(like.dtype)


def block_size(leaf: Array) -> int:
    """Return the length of an array's last axis; 1 if it has no other axis, or is too long."""
    if leaf.ndim < 2 and leaf.size > BLOCK_MAX_SIZE:
        return 1
    size = leaf.shape[-1] if leaf.ndim else 1
    return size if 0 < size <= BLOCK_MAX_SIZE else 1


def inverted(blocks: Float[Array, "*m k k"]) -> Float[Array, "*m k k"]:
    """Return the inverses of small matrices, by elimination without pivoting.

    The identity where an inverse is not finite.
    """
    size = blocks.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=blocks.dtype), blocks.shape)
    both = jnp.concatenate([blocks, identity], axis=-1)
    for k in range(size):
        row = both[..., k, :] / both[..., k, k, None]
        both = (both - both[..., k, None] * row[..., None, :]).at[..., k, :].set(row)
    found = both[..., size:]
    finite = jnp.all(jnp.isfinite(found), axis=(-2, -1), keepdims=True)
    return jnp.where(finite, found, identity)


def inverse_by_probing(
    operator: Callable[[PyTree], PyTree], like: PyTree, *, by_blocks: bool
) -> Callable[[PyTree], PyTree]:
    """Return the product with the inverse of the diagonal (blocks) of an operator on pytrees.

    Parameters
    ----------
    operator : callable
        The product with the operator.
    like : pytree of real floating arrays
        Gives structure, shapes and dtypes.
    by_blocks : bool
        Whether to use blocks: the entries along the last axis of each leaf belong to one, see
        `block_size`.
    """
    leaves, structure = jax.tree.flatten(like)

    def part(place: int) -> Float[Array, "*m k k"]:
        leaf = leaves[place]
        matvec, size = _within_leaf(operator, like, place), block_size(leaf) if by_blocks else 1
        return inverted(blocks_by_probing(matvec, leaf, size))

    inverses = [part(place) if leaf.size else None for place, leaf in enumerate(leaves)]

    def apply(v: PyTree) -> PyTree:
        images = [
            leaf
            if inverse is None
            else jnp.einsum("...ij,...j->...i", inverse, leaf.reshape(inverse.shape[:-1])).reshape(
                leaf.shape
            )
            for inverse, leaf in zip(inverses, jax.tree.leaves(v), strict=True)
        ]
        return jax.tree.unflatten(structure, images)

    return apply
