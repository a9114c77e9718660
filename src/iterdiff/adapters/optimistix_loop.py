"""Loops that other libraries hand over, with carries of their own, in our two kinds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.jaxtools.closures import detach
from iterdiff.loop.run import arrays_of, select, stop_gradient
from iterdiff.loop.unroll import Checkpoint, blocks_of, nest


class Bounded(NamedTuple):
    """A foreign loop: a condition, a body, and the most rounds."""

    going_on: Callable[[Any], Bool[Array, ""]]
    body: Callable[[Any], Any]
    max_steps: int


def while_loop(
    going_on: Callable[[Any], Bool[Array, ""]],
    body: Callable[[Any], Any],
    init: Any,
    *,
    max_steps: int | None = None,
) -> Any:
    """Loop without a reverse-mode derivative, over a carry that may hold what is no array."""
    dynamic, static = eqx.partition(init, eqx.is_array)

    def still(carry):
        count, dynamic = carry
        more = going_on(eqx.combine(dynamic, static))
        return more if max_steps is None else more & (count < max_steps)

    def once(carry):
        count, dynamic = carry
        return count + 1, _arrays_after(body, dynamic, static)

    return eqx.combine(jax.lax.while_loop(still, once, (jnp.array(0), dynamic))[1], static)


def _arrays_after(body: Callable[[Any], Any], dynamic: PyTree, static: PyTree) -> PyTree:
    """Return what became of the arrays of a carry, also where the body makes a constant of one.

    Such a constant (a flag that says "no longer the first step") need be no array any more once
    the body has been converted.
    """
    old = eqx.combine(dynamic, static)
    return arrays_of(body(old), old)


def bounded_while(loop: Bounded, init: Any, checkpoint: Checkpoint, last: int | None) -> Any:
    """Loop differentiably; with `last`, only the last so many rounds carry the derivative."""
    if last is not None:
        init = _all_but(loop, init, last)
        loop = loop._replace(max_steps=last)
    dynamic, static = eqx.partition(init, eqx.is_array)
    start = (jnp.array(0), dynamic)

    def running(carry):
        return loop.going_on(eqx.combine(carry[1], static)) & (carry[0] < loop.max_steps)

    def advance(carry):
        active = running(carry)
        count, dynamic = select(active, carry, start)
        new = _arrays_after(loop.body, dynamic, static)
        return select(active, (count + 1, new), carry)

    blocks = blocks_of(loop.max_steps, checkpoint, counted=False)
    if blocks.recompute_steps:
        advance = jax.checkpoint(advance, prevent_cse=False)
    return eqx.combine(nest(advance, running, blocks.lengths)(start)[1], static)


def _all_but(loop: Bounded, init: Any, last: int) -> Any:
    """Return the carry `last` rounds before the end (the start, if there are fewer)."""
    dynamic, static = eqx.partition(stop_gradient(init), eqx.is_array)
    going_on = detach(lambda c: loop.going_on(eqx.combine(c, static)), dynamic)
    body = detach(lambda c: _arrays_after(loop.body, c, static), dynamic)
    counted = while_loop(
        lambda c: going_on(c[1]),
        lambda c: (c[0] + 1, body(c[1])),
        (jnp.array(0), dynamic),
        max_steps=loop.max_steps,
    )
    until = counted[0] - last
    kept = while_loop(
        lambda c: c[0] < until, lambda c: (c[0] + 1, body(c[1])), (jnp.array(0), dynamic)
    )
    return eqx.combine(kept[1], static)
