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
from iterdiff.linalg.factor import Vector

Matvec = Callable[[Vector], Vector]

COLOURS = 31
"""Products that find a diagonal. A prime, so that few grids couple unknowns of one colour."""

LENGTH_PROBES = 4
"""Products that find the lengths of rows, to a factor of about two: scales need no more."""

BLOCK_MAX_SIZE = 16
"""Larger blocks are not probed: there would be more than `COLOURS` times as many products."""


def diagonal_by_probing(matvec: Matvec, like: Vector) -> Vector:
    """Return the diagonal of a matrix: exact up to `COLOURS` unknowns, see the module's docstring.

    Parameters
    ----------
    matvec : callable
        The product with the matrix.
    like : array, shape (n,)
        Gives size and dtype.
    """
    return blocks_by_probing(matvec, like, 1)[:, 0, 0]


def blocks_by_probing(matvec: Matvec, like: Vector, size: int) -> Float[Array, "m k k"]:
    """Return the diagonal blocks of `size` consecutive unknowns each; `size` divides n."""
    count = like.size // size
    colours = min(COLOURS, count)
    blocks = jnp.arange(count, dtype=jnp.int32)
    signs = _signs(jax.random.key(0), count, like)
    zeros = jnp.zeros_like(like).reshape(count, size)  # spread over devices as `like` is

    def add(found: Array, probe: Array) -> tuple[Array, None]:
        colour, place = probe // size, probe % size
        chosen = jnp.where(blocks % colours == colour, signs, 0)
        columns = (jnp.arange(size, dtype=jnp.int32) == place).astype(like.dtype)
        vector = (zeros + chosen[:, None] * columns[None]).reshape(-1)
        image = chosen[:, None] * matvec(vector).reshape(count, size)
        return found + image[:, :, None] * columns[None, None], None

    start = jnp.broadcast_to(zeros[:, :, None], (count, size, size))
    return jax.lax.scan(add, start, jnp.arange(colours * size, dtype=jnp.int32))[0]


def row_lengths(matvec: Matvec, like: Vector) -> Vector:
    """Return the Euclidean lengths of a matrix's rows, estimated from random vectors of signs."""
    keys = jax.random.split(jax.random.key(1), LENGTH_PROBES)

    def add(squares: Array, key: Array) -> tuple[Array, None]:
        image = matvec(_signs(key, like.size, like))
        return squares + image * image / LENGTH_PROBES, None

    return jnp.sqrt(jax.lax.scan(add, jnp.zeros_like(like), keys)[0])


def _signs(key: Array, count: int, like: Vector) -> Float[Array, " m"]:
    """Return random signs, spread over devices as `like` is if there are as many."""
    axes = tree.axes_of(like) if count == like.size else None
    # `jax.random.rademacher` cannot spread them in JAX 0.10.0.
    drawn = jax.random.uniform(key, (count,), like.dtype, out_sharding=axes)
    return jnp.where(drawn < 0.5, 1.0, -1.0).astype(like.dtype)


def block_size(leaf: Array) -> int:
    """Return the length of an array's last axis; 1 if it has no other axis, or is too long."""
    if leaf.ndim < 2 and leaf.size > BLOCK_MAX_SIZE:
        return 1
    size = leaf.shape[-1] if leaf.ndim else 1
    return size if 0 < size <= BLOCK_MAX_SIZE else 1


def inverted(blocks: Float[Array, "m k k"]) -> Float[Array, "m k k"]:
    """Return the inverses of small matrices, by elimination without pivoting.

    The identity where an inverse is not finite.
    """
    size = blocks.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=blocks.dtype), blocks.shape)
    both = jnp.concatenate([blocks, identity], axis=2)
    for k in range(size):
        row = both[:, k] / both[:, k, k, None]
        both = (both - both[:, :, k, None] * row[:, None]).at[:, k].set(row)
    found = both[:, :, size:]
    return jnp.where(jnp.all(jnp.isfinite(found), axis=(1, 2), keepdims=True), found, identity)


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

    def part(place: int) -> Float[Array, "m k k"]:
        leaf = leaves[place]

        def matvec(v: Vector) -> Vector:
            others = [jnp.zeros_like(other) for other in leaves]
            others[place] = v.reshape(leaf.shape).astype(leaf.dtype)
            image = jax.tree.leaves(operator(jax.tree.unflatten(structure, others)))
            return image[place].reshape(-1)

        return inverted(
            blocks_by_probing(matvec, leaf.reshape(-1), block_size(leaf) if by_blocks else 1)
        )

    inverses = [part(place) if leaf.size else None for place, leaf in enumerate(leaves)]

    def apply(v: PyTree) -> PyTree:
        images = [
            leaf
            if inverse is None
            else jnp.einsum("mij,mj->mi", inverse, leaf.reshape(len(inverse), -1)).reshape(
                leaf.shape
            )
            for inverse, leaf in zip(inverses, jax.tree.leaves(v), strict=True)
        ]
        return jax.tree.unflatten(structure, images)

    return apply
