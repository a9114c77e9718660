"""Runs that keep some of their states, so that a reverse sweep can return to them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.algorithms.status import RUNNING
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.lax import any_in_batch
from iterdiff.loop.run import Loop, Run, advance, begin, detached, finish

MIN_RECOVERED_ROWS = 16
"""At least this many states are recovered at a time."""


class Checkpoints(eqx.Module):
    """States of a run, `stride` steps apart: all of them, or as many as there are slots.

    With S slots, a run of at most S steps keeps every state. Once the slots are full, each new
    state overwrites an odd-numbered one, oldest first. When only even-numbered states remain, the
    stride doubles and the process repeats. So at least S / 2 slots are always in use, and gaps
    differ by at most a factor of two.

    Attributes
    ----------
    states : pytree
        The arrays of the states, stacked over the slots.
    slot_of : integer array of shape (2 S,), optional
        The slot of the state at time ``i * stride``; None if every state has its own slot.
    stride : integer scalar
        A power of two, in steps.
    newest : integer scalar
        The largest index i of a kept state.
    longest_gap : int
        The most steps from one kept state to the next.
    """

    states: PyTree
    slot_of: Int[Array, " k"] | None
    stride: Int[Array, ""]
    newest: Int[Array, ""]
    longest_gap: int = eqx.field(static=True)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return jax.tree.leaves(self.states)[0].shape[0]

    @property
    def has_all(self) -> bool:
        """Whether every state is certain to be kept; slot t then holds the state at time t."""
        return self.slot_of is None

    def overwritten(self, index: Int[Array, " *k"]) -> Bool[Array, " *k"]:
        """Return whether the states at times ``index * stride`` have lost their slots."""
        return (index % 2 == 1) & (index <= 2 * (self.newest - self.slots) + 1)

    def get(self, index: Int[Array, " *k"]) -> PyTree:
        """Return the arrays of the states kept at times ``index * stride``."""
        slot = index if self.slot_of is None else self.slot_of[index]
        return jax.tree.map(lambda v: v[slot], self.states)

    def before(self, time: Int[Array, ""]) -> Int[Array, ""]:
        """Return the index of the last kept state that is not later than `time`."""
        index = jnp.minimum(time // self.stride, self.newest)
        return index - self.overwritten(index).astype(index.dtype)

    def at(self, step: Callable, time: Int[Array, ""]) -> PyTree:
        """Return the arrays of the state at `time`, by steps from the last kept state before it."""
        index = self.before(time)
        return manual_axes.fori_loop(
            0, time - index * self.stride, lambda _, v: step(v), self.get(index)
        )

    def recover(self, step: Callable, end: Int[Array, ""]) -> tuple[PyTree, Int[Array, ""]]:
        """Return the states before time `end` as rows, and the time of the first row.

        The rows are all states before `end`, or at least as many as the longest gap has steps and
        no fewer than `MIN_RECOVERED_ROWS`. Kept states are gathered, the others recomputed. Rows
        of times from `end` on are meaningless.
        """
        wanted = max(self.longest_gap, MIN_RECOVERED_ROWS)
        index = self.before(jnp.maximum(end - wanted - 1, 0))
        first = index * self.stride
        times = first + jnp.arange(self.longest_gap + wanted, dtype=jnp.int32)
        indices = jnp.minimum(times // self.stride, self.newest)
        kept = (times == indices * self.stride) & ~self.overwritten(indices)
        missing = ~kept & (times < end)
        places = jnp.nonzero(missing, size=times.size, fill_value=0)[0].astype(jnp.int32)

        def fill(i, rows):
            place = places[i]
            new = step(jax.tree.map(lambda r: r[place - 1], rows))
            return jax.tree.map(lambda r, v: _put(r, v, place), rows, new)

        return manual_axes.fori_loop(
            0, missing.sum(dtype=jnp.int32), fill, self.get(indices)
        ), first

    @classmethod
    def empty(cls, arrays: PyTree, slots: int, max_steps: int) -> "Checkpoints":
        """Return `slots` empty slots for states like `arrays`, of a run of up to `max_steps`."""
        everything = max_steps <= slots
        slots = max_steps if everything else slots
        gap = 1
        while max_steps > slots * gap:
            gap *= 2
        return cls(
            tree.zero_rows(arrays, slots),
            None if everything else jnp.arange(2 * slots, dtype=jnp.int32),
            jnp.ones((), jnp.int32),
            jnp.zeros((), jnp.int32),
            gap,
        )

    def keep(self, state: PyTree, time: Int[Array, ""]) -> "Checkpoints":
        """Return the checkpoints with the state at `time`, if it is due to be kept."""
        slot_of = self.slot_of
        if slot_of is None:
            states = jax.tree.map(lambda k, v: _put(k, v, time), self.states, state)
            return Checkpoints(states, None, self.stride, time, self.longest_gap)
        index = time // self.stride
        # The last state before the stride doubles would overwrite itself: it is not kept.
        due = (time % self.stride == 0) & (index < 2 * self.slots - 1)
        replaced = slot_of[jnp.maximum(2 * (index - self.slots) + 1, 0)]
        slot = jnp.where(due & (index >= self.slots), replaced, slot_of[index])
        states = jax.tree.map(
            lambda k, v: _put(k, jnp.where(due, v, k[slot]), slot), self.states, state
        )
        slot_of = _put(slot_of, slot, index)
        return Checkpoints(states, slot_of, self.stride, index, self.longest_gap)

    def full(self, time: Int[Array, ""]) -> Bool[Array, ""]:
        """Return whether the stride has to double before the state at `time` can be kept."""
        return jnp.array(False) if self.has_all else time >= 2 * self.slots * self.stride

    def with_doubled_stride(self) -> "Checkpoints":
        """Return the same states, all of even number, under indices half as large."""
        assert self.slot_of is not None
        even = self.slot_of[::2]
        slot_of = jnp.concatenate([even, even])
        return Checkpoints(self.states, slot_of, 2 * self.stride, self.newest, self.longest_gap)


def run_with_checkpoints(loop: Loop, state: Any, slots: int) -> tuple[Run, Checkpoints]:
    """Run as `run_loop` does, and keep up to `slots` (at least 2) of the states on the way.

    Times, and so slots, are the same for all members of a batch, so that writing to a slot need
    not consider which members are still running. States kept beyond the end of a member's run are
    never read.
    """
    start, loop = detached(loop, begin(state))
    dynamic, static = eqx.partition(start, eqx.is_array)
    kept = Checkpoints.empty(dynamic.state, slots, loop.max_steps)

    def running(carry):
        here = carry[0]
        return any_in_batch((here.status == RUNNING) & (here.steps < loop.max_steps))

    def body(carry):
        old, kept, time = carry
        new = eqx.filter(advance(loop, eqx.combine(old, static)), eqx.is_array)
        return new, kept.keep(old.state, time), time + 1

    def until_full(carry):
        return manual_axes.while_loop(lambda c: running(c) & ~c[1].full(c[2]), body, carry)

    def next_stride(carry):
        here, kept, time = carry
        return until_full((here, kept.with_doubled_stride(), time))

    carry = until_full((dynamic, kept, jnp.zeros((), jnp.int32)))
    if not kept.has_all:
        carry = manual_axes.while_loop(running, next_stride, carry)
    dynamic, kept, _ = carry
    return finish(loop, eqx.combine(dynamic, static)), kept


def _put(stack: Array, row: Array, index: Int[Array, ""]) -> Array:
    """Return ``stack.at[index].set(row)`` without its check that `index` is in range."""
    return jax.lax.dynamic_update_index_in_dim(stack, row, index, 0)
