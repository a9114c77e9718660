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

from iterdiff.jaxtools.closures import detach
from iterdiff.loop.run import arrays_of, select, stop_gradient
from iterdiff.loop.unroll import Checkpoint, blocks_of, nest

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
    """Return the last carry of a loop of which JAX differentiates the last `last` steps."""
    last = min(last, loop.max_steps)
    start = _carry_before_end(loop, init, last)
    return differentiable_while_loop(loop._replace(max_steps=last), start, checkpoint)


def _carry_before_end(loop: BoundedLoop, init: Any, last: int) -> Any:
    """Return the carry `last` steps before the end of a run (`init` if there are fewer).

    The run keeps two snapshots, the latest ones at multiples of `last` steps. The earlier one is
    at most `last` steps before the carry that is wanted.
    """
    arrays, static = eqx.partition(stop_gradient(init), eqx.is_array)
    condition = detach(lambda a: loop.condition(eqx.combine(a, static)), arrays)
    body = detach(lambda a: _body_on_arrays(loop.body, a, static), arrays)

    def advance(carry):
        count, arrays, earlier, later = carry
        earlier, later = select(count % last == 0, (later, arrays), (earlier, later))
        return count + 1, body(arrays), earlier, later

    zero = jnp.array(0)
    count, _, earlier, _ = while_loop(
        lambda carry: condition(carry[1]),
        advance,
        (zero, arrays, arrays, arrays),
        max_steps=loop.max_steps,
    )
    time_of_earlier = jnp.maximum((count - 1) // last - 1, 0) * last
    steps = jnp.maximum(count - last, 0) - time_of_earlier
    _, arrays = while_loop(
        lambda carry: carry[0] < steps,
        lambda carry: (carry[0] + 1, body(carry[1])),
        (zero, earlier),
    )
    return eqx.combine(arrays, static)


def _body_on_arrays(body: Body, arrays: PyTree, static: PyTree) -> PyTree:
    """Return the arrays of the next carry.

    The body may return a constant in place of an array, such as a flag that says "no longer the
    first step"; JAX converts it.
    """
    old = eqx.combine(arrays, static)
    return arrays_of(body(old), old)
