"""Pull cotangents back along states that are known: several steps linearised at once.

A reverse sweep is a chain only in its cotangent. Where the states are known, the steps'
linearisations do not depend on each other, and those of a few steps are computed together: matrix
products in place of matrix-vector products. What each of them is made of is split into what
depends on the state, of which there is one a step, and the rest (the data of a regression, say),
of which there is one for all.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jaxpr import depends, does

MOST_AT_ONCE = 16
"""At most so many steps are linearised at once."""

SHARE = 16
"""What that takes is at most this fraction of the memory of the states and of other inputs."""

BRANCHING = ("cond", "while", "pure_callback", "io_callback", "debug_callback")
"""A step that does one of these is linearised by itself: batched, both branches would run."""


class Linearised:
    """A step along known states, ready to pull cotangents back.

    Parameters
    ----------
    step : callable
        ``step(moving, floating, arrays)`` returns the floating arrays of the state one step
        later; `moving` and `floating` are what it is linearised in, `arrays` all of the state's.
    moving : pytree of arrays
        The inputs that have a tangent.
    example : pytree of arrays
        A state: of it, shapes and dtypes are looked at.
    count : int
        How many states are known.

    Attributes
    ----------
    bytes_of_a_step : int
        What the linearisation of one step takes, without what all of them share.
    at_once : int
        How many steps are linearised at once.
    """

    def __init__(self, step: Callable, moving: PyTree, example: PyTree, count: int):
        self.step, self.moving = step, moving
        # One that shares no array with what moves, as the rows do not.
        self.example = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), example)
        found = jax.make_jaxpr(self._pieces)(self.example)
        row_size = len(jax.tree.leaves(example))
        self.varying = depends(found.jaxpr, [True] * row_size)
        sizes = [v.aval.size * v.aval.dtype.itemsize for v in found.jaxpr.outvars]
        own = sum(s for s, varies in zip(sizes, self.varying, strict=True) if varies)
        self.bytes_of_a_step = own
        states = count * sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(example))
        inputs = states + sum(v.size * v.dtype.itemsize for v in found.consts)
        self.at_once = min(MOST_AT_ONCE, count, max(1, inputs // SHARE // max(1, own)))
        if does(found.jaxpr, BRANCHING):
            self.at_once = 1

    def pull(self, rows: PyTree, count: Int[Array, ""], carry: tuple) -> tuple:
        """Pull (cotangent, total) back over the first `count` rows, the last one first.

        Returns
        -------
        tuple
            The cotangent of the first row's floating arrays, and `total` with the cotangents of
            the moving inputs added.
        """
        count = count.astype(jnp.int32)
        if self.at_once == 1:

            def one(i, carry):
                row = jax.tree.map(lambda v: v[count - 1 - i], rows)
                return _accumulated(self._vjp(row), carry)

            return jax.lax.fori_loop(jnp.int32(0), count, one, carry)

        leaves, structure = jax.tree.flatten(self._vjp(self.example))
        shared = self._split(leaves)[1]

        def several(i, carry):
            end = count - i * self.at_once
            start = jnp.maximum(end - self.at_once, 0)
            block = jax.tree.map(
                lambda v: jax.lax.dynamic_slice_in_dim(v, start, self.at_once), rows
            )
            own = jax.vmap(lambda row: self._split(self._pieces(row))[0])(block)

            def one(j, carry):
                of_row = jax.tree.map(lambda v: v[end - start - 1 - j], own)
                return _accumulated(self._join(of_row, shared, structure), carry)

            return jax.lax.fori_loop(jnp.int32(0), end - start, one, carry)

        return jax.lax.fori_loop(jnp.int32(0), -(-count // self.at_once), several, carry)

    def _vjp(self, row: PyTree) -> Callable:
        floating = eqx.filter(row, tree.is_floating)
        return jax.vjp(lambda m, f: self.step(m, f, row), self.moving, floating)[1]

    def _pieces(self, row: PyTree) -> list[Array]:
        return jax.tree.leaves(self._vjp(row))

    def _split(self, pieces: list[Array]) -> tuple[list, list]:
        pairs = list(zip(pieces, self.varying, strict=True))
        return [p for p, varies in pairs if varies], [p for p, varies in pairs if not varies]

    def _join(self, own: list[Array], shared: list[Array], structure: Any) -> Callable:
        own_, shared_ = iter(own), iter(shared)
        pieces = [next(own_ if varies else shared_) for varies in self.varying]
        return jax.tree.unflatten(structure, pieces)


def _accumulated(pull: Callable, carry: tuple) -> tuple:
    cotangent, total = carry
    moving, cotangent = pull(cotangent)
    return cotangent, tree.add(total, moving)
