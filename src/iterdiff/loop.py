"""The only loop: take steps until a rule is satisfied, an iterate is not finite, or time is up.

It comes in two kinds. `run` is a ``while_loop``: fast, any number of steps, no reverse-mode
derivative. `unroll` is built from scans, and JAX differentiates it in every way, at a memory that
its `Checkpoint` sets. (`iterdiff.keeping` has the kinds of `run` that keep some of their states.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff import tree
from iterdiff.hoisting import detach
from iterdiff.solution import Status
from iterdiff.walking import shared

RUNNING = -1

Step = Callable[[Any], Any]
Satisfied = Callable[["Run"], Bool[Array, ""]]

Checkpoint = Literal["iterates", "sqrt", "log", "none"]
"""What the reverse sweep keeps of T steps: see `modes.Unrolled`."""


class Run(NamedTuple):
    """Where a loop stands: the state, how many steps led to it, and a `Status` code."""

    state: Any
    steps: Int[Array, ""]
    status: Int[Array, ""]


class Loop(NamedTuple):
    """What is iterated.

    Attributes
    ----------
    step : callable
        Maps a state to the next one.
    satisfied : callable or None
        Tells of a `Run` whether its iterate will do; None: a fixed number of steps.
    max_steps : int
        The most steps.
    """

    step: Step
    satisfied: Satisfied | None
    max_steps: int


def begin(state: Any) -> Run:
    """Return the run that has not taken a step from `state` yet."""
    strong = jax.tree.map(_strong, state)
    return Run(strong, jnp.zeros((), jnp.int32), jnp.full((), RUNNING, jnp.int32))


def _strong(leaf: Any) -> Any:
    return jax.lax.convert_element_type(leaf, leaf.dtype) if eqx.is_array(leaf) else leaf


def where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return the array leaves of `new` where the scalar `condition` holds, else those of `old`."""

    def choose(u, v):
        return jnp.where(condition, u, v) if eqx.is_array(v) else v

    return jax.tree.map(choose, new, old)


def advance(loop: Loop, run: Run) -> Run:
    """Look at the iterate, and take one step unless it will do or the step is not finite.

    What the look and the step both compute of the iterate (its gradient, say) is computed once.
    """
    dynamic, static = eqx.partition(run, eqx.is_array)

    def both(dynamic):
        here = eqx.combine(dynamic, static)
        done = jnp.array(False) if loop.satisfied is None else loop.satisfied(here)
        return done, arrays_of(loop.step(here.state), here.state)

    done, new = both(dynamic) if loop.satisfied is None else shared(both)(dynamic)
    new = eqx.combine(new, static.state)
    check_same(run.state, new)
    finite = tree.all_finite(new.x)
    moved = finite & ~done
    status = jnp.where(done, Status.CONVERGED, jnp.where(finite, RUNNING, Status.DIVERGED))
    state = where(moved, new, run.state)
    return Run(state, run.steps + moved.astype(jnp.int32), status.astype(jnp.int32))


def check_same(old: Any, new: Any) -> None:
    """Refuse a step that does not keep structure, shapes and dtypes.

    Raises
    ------
    ValueError
        Naming the first leaf that changed.
    """
    structure = jax.tree.structure(old)
    after, other = jax.tree.flatten(new)
    if structure != other:
        raise ValueError(
            "`step` must return a state of the structure it was given: "
            f"it was given {structure} and returned {other}."
        )
    for (path, u), v in zip(jax.tree_util.tree_leaves_with_path(old), after, strict=True):
        if not eqx.is_array(u):
            continue
        if jnp.shape(u) != jnp.shape(v) or jnp.result_type(u) != jnp.result_type(v):
            raise ValueError(
                "`step` must keep shapes and dtypes, but it turned "
                f"state{jax.tree_util.keystr(path)} from {jnp.result_type(u)}{list(jnp.shape(u))} "
                f"into {jnp.result_type(v)}{list(jnp.shape(v))}."
            )


def finish(loop: Loop, run: Run) -> Run:
    """Give a run that used up its steps the status it deserves."""
    if loop.satisfied is None:
        at_limit = jnp.asarray(Status.STEPS_DONE)
    else:
        satisfied = loop.satisfied(run)
        at_limit = jnp.where(satisfied, Status.CONVERGED, Status.MAX_STEPS_REACHED)
    status = jnp.where(run.status == RUNNING, at_limit, run.status)
    return run._replace(status=status.astype(jnp.int32))


def run(loop: Loop, state: Any) -> Run:
    """Run without keeping anything: for primal solutions.

    Nothing is differentiated: derivatives of all that the loop touches, also of what its
    functions close over, stop here.

    Parameters
    ----------
    loop : Loop
        What is iterated.
    state : pytree with an attribute ``x``
        Where to start.

    Returns
    -------
    Run
        The last finite state, its steps and status.
    """
    start, loop = detached(loop, begin(state))
    dynamic, static = eqx.partition(start, eqx.is_array)

    def going_on(dynamic):
        here = eqx.combine(dynamic, static)
        return (here.status == RUNNING) & (here.steps < loop.max_steps)

    def body(dynamic):
        return eqx.partition(advance(loop, eqx.combine(dynamic, static)), eqx.is_array)[0]

    end = eqx.combine(jax.lax.while_loop(going_on, body, dynamic), static)
    return finish(loop, end)


def arrays_of(new: Any, old: Any) -> PyTree:
    """Return the leaves of a new state that were arrays in the old one.

    A constant that a step returns need be no array while the step is traced.
    """
    return eqx.filter(new, jax.tree.map(eqx.is_array, old))


def detached(loop: Loop, start: Run) -> tuple[Run, Loop]:
    """Cut derivatives of the start and of everything that the loop's functions close over."""
    start = stop_gradient(start)
    dynamic, static = eqx.partition(start, eqx.is_array)

    def step(dynamic):
        old = eqx.combine(dynamic, static.state)
        new = loop.step(old)
        check_same(old, new)
        return arrays_of(new, old)

    seen: dict = {}
    detached_step = detach(step, dynamic.state, seen=seen)

    def whole_step(state):
        return eqx.combine(detached_step(eqx.filter(state, eqx.is_array)), static.state)

    if loop.satisfied is None:
        return start, loop._replace(step=whole_step)
    rule = loop.satisfied
    detached_rule = detach(lambda dynamic: rule(eqx.combine(dynamic, static)), dynamic, seen=seen)

    def satisfied(run):
        return detached_rule(eqx.filter(run, eqx.is_array))

    return start, Loop(whole_step, satisfied, loop.max_steps)


def stop_gradient(a: Any) -> Any:
    """Cut derivatives of the array leaves of `a`."""
    return jax.tree.map(lambda v: jax.lax.stop_gradient(v) if eqx.is_array(v) else v, a)


def any_member(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """Return whether `condition` holds for any member of the batch: under ``vmap`` one for all."""
    return eqxi.unvmap_any(condition)


def forward_only(a: PyTree, message: str) -> PyTree:
    """Return the tangents `a`; reverse mode raises a RuntimeError with this message."""
    return eqxi.nondifferentiable_backward(a, msg=message, symbolic=True)


# Differentiable loops.


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
        whole = eqx.combine(old if exact else where(active, old, dynamic), static)
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
