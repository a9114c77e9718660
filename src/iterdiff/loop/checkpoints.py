"""Runs without a derivative that keep some of their states, to go back to."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.loop.run import RUNNING, Loop, Run, advance, any_member, begin, detached, finish

FEW_ROWS = 16
"""At least so many rows are recovered at a time."""


class Checkpoints(eqx.Module):
    """States of a run, given times apart: all of them, or as many as there are slots.

    With S slots and a run of T steps, all states are kept while T is at most S. Then each new
    one takes the slot of an old one, so that of the oldest every other is left; when that is so
    of all of them, the new ones come at twice the stride, and so on. At least S / 2 of the slots
    are in use, and gaps differ by a factor of two.

    Attributes
    ----------
    states : pytree
        The arrays of the states, stacked over the slots.
    slot_of : integer array of shape (2 S,), optional
        The slot of the state at time ``i * stride``; None where every state has its own.
    stride : integer scalar
        A power of two.
    newest : integer scalar
        The greatest i.
    longest_gap : int
        Steps from one kept state to the next, at most.
    """

    states: PyTree
    slot_of: Int[Array, " k"] | None
    stride: Int[Array, ""]
    newest: Int[Array, ""]
    longest_gap: int = eqx.field(static=True)

    @property
    def all_of_them(self) -> bool:
        """Whether it is known beforehand that every state is kept; row t is then the t-th."""
        return self.slot_of is None

    def dropped(self, index: Int[Array, " *k"]) -> Bool[Array, " *k"]:
        """Return whether the states at times ``index * stride`` have lost their slots."""
        slots = jax.tree.leaves(self.states)[0].shape[0]
        return (index % 2 == 1) & (index <= 2 * (self.newest - slots) + 1)

    def get(self, index: Int[Array, " *k"]) -> PyTree:
        """Return the arrays of the states kept at times ``index * stride``."""
        slot = index if self.slot_of is None else self.slot_of[index]
        return jax.tree.map(lambda v: v[slot], self.states)

    def before(self, time: Int[Array, ""]) -> Int[Array, ""]:
        """Return the index of the last kept state that is not after `time`."""
        index = jnp.minimum(time // self.stride, self.newest)
        return index - self.dropped(index).astype(index.dtype)

    def at(self, step: Callable, time: Int[Array, ""]) -> PyTree:
        """Return the arrays of the state at `time`, stepping to it from the last kept one."""
        index = self.before(time)
        return jax.lax.fori_loop(
            0, time - index * self.stride, lambda _, v: step(v), self.get(index)
        )

    def recover(self, step: Callable, end: Int[Array, ""]) -> tuple[PyTree, Int[Array, ""]]:
        """Return the states before time `end` as rows, and the time of the first row.

        There are at least as many as the longest gap has steps (or `FEW_ROWS`), or all.
        Kept ones are gathered, the others are stepped to. Rows of times from `end` on are junk.
        """
        wanted = max(self.longest_gap, FEW_ROWS)
        index = self.before(jnp.maximum(end - wanted - 1, 0))
        first = index * self.stride
        times = first + jnp.arange(self.longest_gap + wanted, dtype=jnp.int32)
        indices = jnp.minimum(times // self.stride, self.newest)
        there = (times == indices * self.stride) & ~self.dropped(indices)
        missing = ~there & (times < end)
        places = jnp.nonzero(missing, size=times.size, fill_value=0)[0].astype(jnp.int32)

        def fill(i, rows):
            place = places[i]
            new = step(jax.tree.map(lambda r: r[place - 1], rows))
            return jax.tree.map(lambda r, v: _put(r, v, place), rows, new)

        return jax.lax.fori_loop(0, missing.sum(dtype=jnp.int32), fill, self.get(indices)), first


def run_with_checkpoints(loop: Loop, state: Any, slots: int) -> tuple[Run, Checkpoints]:
    """Run as `loop.run` does, and keep at most `slots` (2 or more) of the states it left.

    Times, and so slots, are the same for all members of a batch: no update of the slots has to
    look at who is still running. What is kept of a run beyond its end is never asked for.
    """
    start, loop = detached(loop, begin(state))
    dynamic, static = eqx.partition(start, eqx.is_array)
    everything = loop.max_steps <= slots
    slots = loop.max_steps if everything else slots
    gap = 1
    while loop.max_steps > slots * gap:
        gap *= 2
    kept = Checkpoints(
        jax.tree.map(lambda v: jnp.zeros((slots, *v.shape), v.dtype), dynamic.state),
        None if everything else jnp.arange(2 * slots, dtype=jnp.int32),
        jnp.ones((), jnp.int32),
        jnp.zeros((), jnp.int32),
        gap,
    )

    def going_on(carry):
        here = carry[0]
        return any_member((here.status == RUNNING) & (here.steps < loop.max_steps))

    def full(carry):
        _, kept, time = carry
        return jnp.array(False) if everything else time >= 2 * slots * kept.stride

    def body(carry):
        old, kept, time = carry
        new = eqx.filter(advance(loop, eqx.combine(old, static)), eqx.is_array)
        return new, _keep(kept, old.state, time), time + 1

    def until_full(carry):
        return jax.lax.while_loop(lambda c: going_on(c) & ~full(c), body, carry)

    def halved(carry):
        here, kept, time = carry
        half = kept.slot_of[::2]
        kept = Checkpoints(
            kept.states, jnp.concatenate([half, half]), 2 * kept.stride, kept.newest, gap
        )
        return until_full((here, kept, time))

    carry = until_full((dynamic, kept, jnp.zeros((), jnp.int32)))
    if not everything:
        carry = jax.lax.while_loop(going_on, halved, carry)
    dynamic, kept, _ = carry
    return finish(loop, eqx.combine(dynamic, static)), kept


def _keep(kept: Checkpoints, state: PyTree, time: Int[Array, ""]) -> Checkpoints:
    """Keep the state that is left at `time`, if its turn has come."""
    slot_of = kept.slot_of
    if slot_of is None:
        states = jax.tree.map(lambda k, v: _put(k, v, time), kept.states, state)
        return Checkpoints(states, None, kept.stride, time, kept.longest_gap)
    index = time // kept.stride
    slots = jax.tree.leaves(kept.states)[0].shape[0]
    # The last one before all are halved would take its own slot: it is not kept.
    due = (time % kept.stride == 0) & (index < 2 * slots - 1)
    replaced = slot_of[jnp.maximum(2 * (index - slots) + 1, 0)]
    slot = jnp.where(due & (index >= slots), replaced, slot_of[index])
    states = jax.tree.map(
        lambda k, v: _put(k, jnp.where(due, v, k[slot]), slot), kept.states, state
    )
    return Checkpoints(states, _put(slot_of, slot, index), kept.stride, index, kept.longest_gap)


def _put(stack: Array, row: Array, index: Int[Array, ""]) -> Array:
    """Return ``stack.at[index].set(row)``, without its test whether `index` is in range."""
    return jax.lax.dynamic_update_index_in_dim(stack, row, index, 0)
