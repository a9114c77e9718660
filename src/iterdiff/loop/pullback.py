"""Pull cotangents back through several known states at once.

A reverse sweep is sequential only in its cotangent. Where the states are known, the linearisations
of the steps do not depend on each other, so that several of them are computed together: as matrix
products instead of matrix-vector products. The residuals of a linearised step are split into those
that depend on the state, one set per step, and the rest (the data of a regression, say), one set
for all steps.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.jaxpr import depends, has_branches

MAX_STEPS_AT_ONCE = 16
"""No more steps than this are linearised together."""

MAX_MEMORY_SHARE = 1 / 16
"""The residuals of these steps take at most this share of the memory of all states and inputs."""


class LinearisedSteps:
    """A step along known states, ready to pull cotangents back.

    Parameters
    ----------
    step : callable
        ``step(primals, floating, arrays)`` returns the floating arrays of the next state. It is
        linearised in `primals` and `floating`; `arrays` are all arrays of the state.
    primals : pytree of arrays
        The inputs that are differentiated in.
    example : pytree of arrays
        A state; only its shapes and dtypes matter.
    count : int
        Number of known states.

    Attributes
    ----------
    bytes_per_step : int
        Memory of the linearisation of one step, without what all steps share.
    at_once : int
        Number of steps that are linearised together.
    """

    def __init__(self, step: Callable, primals: PyTree, example: PyTree, count: int):
        self.step, self.primals = step, primals
        # An example that shares no array with `primals`, because the states do not.
        self.example = manual_axes.aligned(tree.zeros_like(example), example)
        found = jax.make_jaxpr(self._residuals)(self.example)
        row_size = len(jax.tree.leaves(example))
        self.varying = depends(found.jaxpr, [True] * row_size)
        sizes = [v.aval.size * v.aval.dtype.itemsize for v in found.jaxpr.outvars]
        own = sum(s for s, varies in zip(sizes, self.varying, strict=True) if varies)
        self.bytes_per_step = own
        inputs = count * tree.nbytes(example) + tree.nbytes(found.consts)
        fitting = int(MAX_MEMORY_SHARE * inputs) // max(1, own)
        self.at_once = min(MAX_STEPS_AT_ONCE, count, max(1, fitting))
        if has_branches(found.jaxpr):  # batched, both branches would run
            self.at_once = 1

    def pull(self, rows: PyTree, count: Int[Array, ""], carry: tuple) -> tuple:
        """Pull (cotangent, total) back through the first `count` rows, last row first.

        Returns
        -------
        tuple
            The cotangent of the first row's floating arrays, and `total` plus the cotangents of
            `primals`.
        """
        count = count.astype(jnp.int32)
        if self.at_once == 1:

            def pull_one(i, carry):
                row = jax.tree.map(lambda v: v[count - 1 - i], rows)
                return _accumulate(self._vjp(row), carry)

            return manual_axes.fori_loop(jnp.int32(0), count, pull_one, carry)

        leaves, structure = jax.tree.flatten(self._vjp(self.example))
        shared = self._split(leaves)[1]

        def pull_block(i, carry):
            end = count - i * self.at_once
            start = jnp.maximum(end - self.at_once, 0)
            block = jax.tree.map(
                lambda v: jax.lax.dynamic_slice_in_dim(v, start, self.at_once), rows
            )
            own = jax.vmap(lambda row: self._split(self._residuals(row))[0])(block)

            def pull_one(j, carry):
                of_row = jax.tree.map(lambda v: v[end - start - 1 - j], own)
                return _accumulate(self._join(of_row, shared, structure), carry)

            return manual_axes.fori_loop(jnp.int32(0), end - start, pull_one, carry)

        return manual_axes.fori_loop(jnp.int32(0), -(-count // self.at_once), pull_block, carry)

    def _vjp(self, row: PyTree) -> Callable:
        floating = eqx.filter(row, tree.is_floating)
        return jax.vjp(lambda p, f: self.step(p, f, row), self.primals, floating)[1]

    def _residuals(self, row: PyTree) -> list[Array]:
        return jax.tree.leaves(self._vjp(row))

    def _split(self, residuals: list[Array]) -> tuple[list, list]:
        pairs = list(zip(residuals, self.varying, strict=True))
        return [r for r, varies in pairs if varies], [r for r, varies in pairs if not varies]

    def _join(self, own: list[Array], shared: list[Array], structure: Any) -> Callable:
        own_, shared_ = iter(own), iter(shared)
        residuals = [next(own_ if varies else shared_) for varies in self.varying]
        return jax.tree.unflatten(structure, residuals)


def _accumulate(pull: Callable, carry: tuple) -> tuple:
    cotangent, total = carry
    of_primals, cotangent = pull(cotangent)
    return cotangent, tree.add(total, of_primals)
