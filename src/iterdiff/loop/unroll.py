"""Loops that JAX differentiates: nested scans, at a memory that a checkpoint policy sets."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from iterdiff.algorithms.status import Status
from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.closures import nan_derivative_where
from iterdiff.jaxtools.lax import any_in_batch
from iterdiff.loop.run import Run, Step, arrays_of, begin, check_same, select

Checkpoint = Literal["iterates", "sqrt", "log", "none"]
"""What the reverse sweep keeps of T steps: see `modes.Unrolled`."""

BLOCK_STEPS = 32
"""About this many steps form an innermost block; the sweep keeps everything one block computes."""

MAX_BLOCKS = 1024
"""More blocks than this are grouped once more."""

LOG_MAX_SCAN_LENGTH = 100
"""Longest scan of each level under the policy "log"."""


def unroll(
    step: Step,
    state: Any,
    steps: int,
    checkpoint: Checkpoint = "iterates",
    limit: Int[Array, ""] | None = None,
) -> Run:
    """Take steps; JAX differentiates the steps that were taken.

    Parameters
    ----------
    step : callable
        Maps a state to the next one.
    state : pytree with an attribute ``x``
        The start; the result carries a derivative in it, too.
    steps : int
        Number of steps.
    checkpoint : {"iterates", "sqrt", "log", "none"}
        What the reverse sweep keeps, see `Unrolled`.
    limit : integer scalar, optional
        Take no more than this many steps; the number may be traced.

    Returns
    -------
    Run
        The last finite state, the number of steps that led to it, and the status. The derivative
        of a run that diverged is NaN.
    """
    start = begin(state)
    dynamic, static = eqx.partition(start.state, eqx.is_array)
    most = steps if limit is None else jnp.minimum(limit, steps).astype(jnp.int32)
    blocks = blocks_of(steps, checkpoint, limit is None)
    exact = limit is None and math.prod(blocks.lengths) == steps

    def running(carry):
        return carry[1] < most

    def body(carry):
        """Take a step while the run is active; afterwards, discard steps from the start.

        At the start the step and its derivative are finite, whatever happened to the iterate.
        From any other point, 0 * inf = NaN could enter the derivative through the discarded
        branch.
        """
        old, taken = carry
        active = jnp.array(True) if exact else running(carry)
        whole = eqx.combine(old if exact else select(active, old, dynamic), static)
        new = step(whole)
        check_same(whole, new)
        finite = tree.all_finite(new.x)
        moved = finite if exact else active & finite
        new = _moved(moved, None if exact else active, arrays_of(new, whole), old)
        return new, taken + moved.astype(jnp.int32)

    if blocks.recompute_steps:
        body = jax.checkpoint(body, prevent_cse=False)
    end, taken = nest(body, None if exact else running, blocks.lengths)((dynamic, start.steps))
    diverged = taken < most
    status = jnp.where(diverged, Status.DIVERGED, Status.STEPS_DONE)
    end = eqx.combine(nan_derivative_where(diverged, end), static)
    return Run(end, taken, status.astype(jnp.int32))


def _moved(moved: Bool[Array, ""], active: Bool[Array, ""] | None, new: Any, old: Any) -> Any:
    """Return the arrays `new` where `moved` holds, else `old`.

    The tangents are those of `new` wherever the run is `active` (None: everywhere), even where a
    step is rejected because it is not finite. So the reverse sweep need not compute a step only to
    learn that it was finite. The derivative of such a run becomes NaN at the end.
    """

    def leaf(u, v):
        if tree.is_floating(v):
            return _choose(moved, moved if active is None else active, active is None, u, v)
        return jnp.where(moved, u, v)

    return jax.tree.map(leaf, new, old)


# This rule saves work and changes no result: a scan that drops it (see `closures`) does no harm.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _choose(moved: Array, active: Array, everywhere: bool, new: Array, old: Array) -> Array:
    del active, everywhere
    return jnp.where(moved, new, old)


@_choose.defjvp
def _choose_jvp(everywhere: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    moved, active, new, old = primals
    _, _, new_tangent, old_tangent = tangents
    value = _choose(moved, active, everywhere, new, old)
    return value, new_tangent if everywhere else jnp.where(active, new_tangent, old_tangent)


class Blocks(NamedTuple):
    """How steps are grouped: nested scans, whose starts the reverse sweep keeps.

    Attributes
    ----------
    lengths : tuple of int
        Lengths of the scans, outermost first; their product is at least the number of steps.
    recompute_steps : bool
        Whether the sweep keeps only the start of each innermost step, too.
    """

    lengths: tuple[int, ...]
    recompute_steps: bool


def blocks_of(steps: int, checkpoint: Checkpoint, counted: bool) -> Blocks:
    """Return how `steps` steps are grouped; a run that is not `counted` may end before them.

    Lengths that divide the number of steps are preferred, because no step is then wasted.
    """
    if counted and checkpoint in ("iterates", "none"):
        return Blocks((steps,), checkpoint == "iterates")
    if checkpoint == "log":
        levels = max(1, math.ceil(math.log(steps) / math.log(LOG_MAX_SCAN_LENGTH) - 1e-9))
        length = math.ceil(steps ** (1 / levels) - 1e-9)
        return Blocks((length,) * levels, True)
    inner = near_divisor(steps, min(BLOCK_STEPS, steps))
    outer = math.ceil(steps / inner)
    if outer <= MAX_BLOCKS:
        return Blocks((outer, inner), False)
    middle = near_divisor(outer, math.ceil(math.sqrt(outer)))
    return Blocks((math.ceil(outer / middle), middle, inner), False)


def near_divisor(number: int, wanted: int) -> int:
    """Return the divisor of `number` nearest to `wanted` within a factor 3/2, else `wanted`."""
    divisors = [k for k in range(-(-2 * wanted // 3), 3 * wanted // 2 + 1) if number % k == 0]
    return min(divisors, key=lambda k: abs(k - wanted), default=wanted)


def nest(body: Callable, running: Callable | None, lengths: tuple[int, ...]) -> Callable:
    """Return nested scans of `body`, which skip a block if no member of the batch is `running`."""

    def scan(function, length):
        return lambda carry: manual_axes.scan(function, carry, length)

    block = scan(body, lengths[-1])
    for length in reversed(lengths[:-1]):
        block = scan(_skippable(block, running), length)
    return block


def _skippable(block: Callable, running: Callable | None) -> Callable:
    if running is None:  # no branch: for a branch, the reverse sweep would copy the step's data
        return jax.checkpoint(block, prevent_cse=False)

    def maybe(carry):
        return manual_axes.cond(any_in_batch(running(carry)), block, lambda same: same, carry)

    return jax.checkpoint(maybe, prevent_cse=False)
