"""Loops that JAX differentiates, built from scans, at a memory that a checkpoint policy sets."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.loop.run import Run, Step, any_member, arrays_of, begin, check_same, select
from iterdiff.loop.status import Status

Checkpoint = Literal["iterates", "sqrt", "log", "none"]
"""What the reverse sweep keeps of T steps: see `modes.Unrolled`."""


def forward_only(a: PyTree, message: str) -> PyTree:
    """Return the tangents `a`; reverse mode raises a RuntimeError with this message."""
    return eqxi.nondifferentiable_backward(a, msg=message, symbolic=True)


def unroll(
    step: Step,
    state: Any,
    steps: int,
    checkpoint: Checkpoint = "iterates",
    limit: Int[Array, ""] | None = None,
) -> Run:
    """Take steps differentiably: JAX differentiates those that were taken.

    Parameters
    ----------
    step : callable
        Maps a state to the next one.
    state : pytree with an attribute ``x``
        Where to start; it is differentiated in, too.
    steps : int
        How many steps.
    checkpoint : {"iterates", "sqrt", "log", "none"}
        What the reverse sweep keeps, see `Unrolled`.
    limit : integer scalar, optional
        Take no more than this many steps, a number not known beforehand.

    Returns
    -------
    Run
        The last finite state, how many steps led to it, and whether that is all of them. The
        derivative of a run that diverged is NaN.
    """
    start = begin(state)
    dynamic, static = eqx.partition(start.state, eqx.is_array)
    most = steps if limit is None else jnp.minimum(limit, steps).astype(jnp.int32)
    blocks = blocks_of(steps, checkpoint, limit is None)
    exact = limit is None and math.prod(blocks.lengths) == steps

    def running(carry):
        return carry[1] < most

    def body(carry):
        """Take a step where the run goes on; elsewhere one from the start, which is discarded.

        The start is a point where the step and its derivative are finite, whatever became of
        the iterate: else 0 * inf = NaN would enter the derivative through the discarded branch.
        """
        old, taken = carry
        active = jnp.array(True) if exact else running(carry)
        whole = eqx.combine(old if exact else select(active, old, dynamic), static)
        new = step(whole)
        check_same(whole, new)
        finite = tree.all_finite(new.x)
        moved = finite if exact else active & finite
        new = frozen(moved, None if exact else active, arrays_of(new, whole), old)
        return new, taken + moved.astype(jnp.int32)

    if blocks.recompute_steps:
        body = jax.checkpoint(body, prevent_cse=False)
    end, taken = nest(body, None if exact else running, blocks.lengths)((dynamic, start.steps))
    diverged = taken < most
    end = jax.tree.map(lambda v: poisoned(v, diverged) if tree.is_floating(v) else v, end)
    status = jnp.where(diverged, Status.DIVERGED, Status.STEPS_DONE)
    return Run(eqx.combine(end, static), taken, status.astype(jnp.int32))


def frozen(moved: Bool[Array, ""], active: Bool[Array, ""] | None, new: Any, old: Any) -> Any:
    """Return the arrays `new` where `moved` holds, else `old`.

    The tangents are those of `new` wherever the run is `active` (None: everywhere), also where
    a step that was not finite is not taken: so no reverse sweep has to compute a step's value
    only to learn that it was. `poisoned` sees to the derivative of such a run.
    """

    def leaf(u, v):
        if tree.is_floating(v):
            return _frozen(moved, moved if active is None else active, active is None, u, v)
        return jnp.where(moved, u, v)

    return jax.tree.map(leaf, new, old)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _frozen(moved: Array, active: Array, everywhere: bool, new: Array, old: Array) -> Array:
    del active, everywhere
    return jnp.where(moved, new, old)


@_frozen.defjvp
def _frozen_jvp(everywhere: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    moved, active, new, old = primals
    _, _, to_new, to_old = tangents
    value = _frozen(moved, active, everywhere, new, old)
    return value, to_new if everywhere else jnp.where(active, to_new, to_old)


@jax.custom_jvp
def poisoned(value: Array, failed: Bool[Array, ""]) -> Array:
    """Return `value`, with NaN as its derivative where `failed` holds."""
    del failed
    return value


@poisoned.defjvp
def _poisoned_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    value, failed = primals
    return poisoned(value, failed), jnp.where(failed, jnp.nan, 1.0).astype(value.dtype) * tangents[
        0
    ]


class Blocks(NamedTuple):
    """How steps are grouped: nested scans, of which the reverse sweep keeps the starts.

    Attributes
    ----------
    lengths : tuple of int
        Lengths of the scans, outermost first; their product is at least the number of steps.
    recompute_steps : bool
        Whether of an innermost step, too, its start alone is kept.
    """

    lengths: tuple[int, ...]
    recompute_steps: bool


INNERMOST = 32
"""About how many steps form a block, all of which is kept while the sweep goes through it."""


MOST_BLOCKS = 1024
"""More blocks than these are grouped once more."""


BRANCHING = 100
"""Greatest length of each scan under the policy "log"."""


def blocks_of(steps: int, checkpoint: Checkpoint, counted: bool) -> Blocks:
    """Return how `steps` steps are grouped; a run that is not counted may end before them.

    A length that divides the number of steps is preferred: no step is then taken in vain.
    """
    if counted and checkpoint in ("iterates", "none"):
        return Blocks((steps,), checkpoint == "iterates")
    if checkpoint == "log":
        levels = max(1, math.ceil(math.log(steps) / math.log(BRANCHING) - 1e-9))
        length = math.ceil(steps ** (1 / levels) - 1e-9)
        return Blocks((length,) * levels, True)
    inner = near_divisor(steps, min(INNERMOST, steps))
    outer = math.ceil(steps / inner)
    if outer <= MOST_BLOCKS:
        return Blocks((outer, inner), False)
    middle = near_divisor(outer, math.ceil(math.sqrt(outer)))
    return Blocks((math.ceil(outer / middle), middle, inner), False)


def near_divisor(number: int, wanted: int) -> int:
    """Return the divisor of `number` nearest to `wanted` within a factor 3/2, else `wanted`."""
    divisors = [k for k in range(-(-2 * wanted // 3), 3 * wanted // 2 + 1) if number % k == 0]
    return min(divisors, key=lambda k: abs(k - wanted), default=wanted)


def nest(body: Callable, running: Callable | None, lengths: tuple[int, ...]) -> Callable:
    """Return nested scans of `body`; a block is skipped where none of a batch is `running`."""

    def scan(function, length):
        return lambda carry: jax.lax.scan(lambda c, _: (function(c), None), carry, None, length)[0]

    block = scan(body, lengths[-1])
    for length in reversed(lengths[:-1]):
        block = scan(_skippable(block, running), length)
    return block


def _skippable(block: Callable, running: Callable | None) -> Callable:
    if running is None:  # no branch, for which the reverse sweep would copy the step's data
        return jax.checkpoint(block, prevent_cse=False)

    def maybe(carry):
        any_left = any_member(running(carry))
        return jax.lax.cond(any_left, block, lambda same: same, carry)

    return jax.checkpoint(maybe, prevent_cse=False)
