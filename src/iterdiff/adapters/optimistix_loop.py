"""The loops that optimistix asks an adjoint for: one without a derivative, two with one.

Optimistix hands over a condition, a body and a carry. All three loops take steps while the
condition holds, up to a maximum number. The carry may have leaves that are not arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from iterdiff.algorithms.base import State
from iterdiff.jaxtools.closures import detach
from iterdiff.loop.checkpoints import run_with_checkpoints
from iterdiff.loop.run import Loop, arrays_of, select, stop_gradient
from iterdiff.loop.unroll import Checkpoint, blocks_of, nest, unroll

MAX_CHECKPOINTS = 64
"""Carries kept of a run whose last steps are then taken once more."""

Condition = Callable[[Any], Bool[Array, ""]]
Body = Callable[[Any], Any]


class BoundedLoop(NamedTuple):
    """A loop over foreign carries.

    Attributes
    ----------
    condition : callable
        Whether to take another step from a carry.
    body : callable
        Maps a carry to the next one.
    max_steps : int
        The largest number of steps.
    """

    condition: Condition
    body: Body
    max_steps: int


class _Carry(State):
    """A foreign carry as the state of our loop.

    `x` is empty, because optimistix itself stops at an iterate that is not finite.
    """

    x: tuple[()]
    value: PyTree


def while_loop(condition: Condition, body: Body, init: Any, *, max_steps: int | None = None) -> Any:
    """Return the last carry of a loop that has no reverse-mode derivative.

    `iterdiff.loop.run.run_loop` would compute one more step and discard it.
    """
    arrays, static = eqx.partition(init, eqx.is_array)

    def is_running(carry):
        count, arrays = carry
        holds = condition(eqx.combine(arrays, static))
        return holds if max_steps is None else holds & (count < max_steps)

    def advance(carry):
        count, arrays = carry
        return count + 1, _body_on_arrays(body, arrays, static)

    _, arrays = jax.lax.while_loop(is_running, advance, (jnp.array(0), arrays))
    return eqx.combine(arrays, static)


def differentiable_while_loop(loop: BoundedLoop, init: Any, checkpoint: Checkpoint) -> Any:
    """Return the last carry of a loop whose steps JAX differentiates, all of them."""
    arrays, static = eqx.partition(init, eqx.is_array)
    start = jnp.array(0), arrays

    def is_running(carry):
        count, arrays = carry
        return loop.condition(eqx.combine(arrays, static)) & (count < loop.max_steps)

    def advance(carry):
        # After the last step the body runs on the start, where its derivative is finite.
        running = is_running(carry)
        count, arrays = select(running, carry, start)
        new = count + 1, _body_on_arrays(loop.body, arrays, static)
        return select(running, new, carry)

    blocks = blocks_of(loop.max_steps, checkpoint, counted=False)
    if blocks.recompute_steps:
        advance = jax.checkpoint(advance, prevent_cse=False)
    _, arrays = nest(advance, is_running, blocks.lengths)(start)
    return eqx.combine(arrays, static)


def late_while_loop(loop: BoundedLoop, init: Any, checkpoint: Checkpoint, last: int) -> Any:
    """Return the last carry of a loop of which JAX differentiates the last `last` steps.

    The loop runs without a derivative first and keeps up to `MAX_CHECKPOINTS` carries. Its last
    steps are then taken once more.
    """

    def step(state):
        return _Carry((), loop.body(state.value))

    def satisfied(run):
        return ~loop.condition(run.state.value)

    end, checkpoints = run_with_checkpoints(
        Loop(step, satisfied, loop.max_steps), _Carry((), init), MAX_CHECKPOINTS
    )
    arrays, static = eqx.partition(end.state, eqx.is_array)
    step_on_arrays = detach(lambda a: arrays_of(step(eqx.combine(a, static)), end.state), arrays)
    steps_back = jnp.minimum(end.steps, last)
    start = stop_gradient(checkpoints.at(step_on_arrays, end.steps - steps_back))
    return unroll(step, eqx.combine(start, static), last, checkpoint, steps_back).state.value


def _body_on_arrays(body: Body, arrays: PyTree, static: PyTree) -> PyTree:
    """Return the arrays of the next carry.

    The body may return a constant in place of an array, such as a flag that says "no longer the
    first step"; JAX converts it.
    """
    old = eqx.combine(arrays, static)
    return arrays_of(body(old), old)
