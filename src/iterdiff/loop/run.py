"""Run an iteration without derivatives: a while loop with a stopping rule.

The loop ends when the rule is satisfied, when a step is not finite, or after `max_steps`. It keeps
nothing but the present state. `iterdiff.loop.checkpoints` has the variant that keeps some states,
`iterdiff.loop.unroll` the loops that JAX differentiates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.algorithms.status import RUNNING, Status
from iterdiff.jaxtools import manual_axes, placement, tree
from iterdiff.jaxtools.closures import detach
from iterdiff.jaxtools.jaxpr import is_small, shared

STEPS_PER_LOOK = 16
"""On an accelerator, the host reads once in so many small steps whether the run goes on."""

SMALL_STEP_MAX_FLOPS = 1_000_000
"""A step of at most so many operations takes less time than the host takes to read a condition."""

Step = Callable[[Any], Any]
Satisfied = Callable[["Run"], Bool[Array, ""]]


class Run(NamedTuple):
    """Where a loop stands.

    Attributes
    ----------
    state : pytree with an attribute ``x``
        The algorithm's state.
    steps : integer scalar
        Number of steps that led to the state.
    status : integer scalar
        A `Status` code, or `RUNNING`.
    """

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
        Whether a `Run` may stop at its iterate; None for a fixed number of steps.
    max_steps : int
        The largest number of steps.
    """

    step: Step
    satisfied: Satisfied | None
    max_steps: int


def begin(state: Any) -> Run:
    """Return the run that has not taken a step yet."""

    def strong(leaf):  # a weakly typed leaf would change its type at the first step
        return jax.lax.convert_element_type(leaf, leaf.dtype) if eqx.is_array(leaf) else leaf

    steps, status = jnp.zeros((), jnp.int32), jnp.full((), RUNNING, jnp.int32)
    return manual_axes.aligned(Run(jax.tree.map(strong, state), steps, status))


def advance(loop: Loop, run: Run) -> Run:
    """Check the iterate, then take one step unless the rule is satisfied or the step not finite.

    What the rule and the step both compute from the iterate, such as its gradient, is computed
    once.
    """
    dynamic, static = eqx.partition(run, eqx.is_array)

    def check_and_step(dynamic):
        here = eqx.combine(dynamic, static)
        done = jnp.array(False) if loop.satisfied is None else loop.satisfied(here)
        return done, arrays_of(loop.step(here.state), here.state)

    once = check_and_step if loop.satisfied is None else shared(check_and_step)
    done, new = once(dynamic)
    new = eqx.combine(new, static.state)
    check_same(run.state, new)
    finite = tree.all_finite(new.x)
    moved = finite & ~done
    verdict = getattr(new, "verdict", None)  # a state need not be a `State`
    going = RUNNING if verdict is None else verdict
    status = jnp.where(done, Status.CONVERGED, jnp.where(finite, going, Status.DIVERGED))
    state = select(moved, new, run.state)
    return Run(state, run.steps + moved.astype(jnp.int32), status.astype(jnp.int32))


def finish(loop: Loop, run: Run) -> Run:
    """Replace the status `RUNNING` of a run that has used up its steps."""
    if loop.satisfied is None:
        at_limit = jnp.int32(Status.STEPS_DONE)
    else:
        satisfied = loop.satisfied(run)
        at_limit = jnp.where(satisfied, Status.CONVERGED, Status.MAX_STEPS_REACHED)
    status = jnp.where(run.status == RUNNING, at_limit.astype(jnp.int32), run.status)
    return run._replace(status=status)


def run_loop(loop: Loop, state: Any) -> Run:
    """Run the loop, keeping nothing but the present state.

    The result carries no derivative, neither in `state` nor in the values that the loop's functions
    close over. On an accelerator, a fixed number of steps is a loop of known length, and small
    steps are taken `STEPS_PER_LOOK` at a time: a step after the end changes nothing, and the rule
    stops the run at the same step as ever.

    Parameters
    ----------
    loop : Loop
        What is iterated.
    state : pytree with an attribute ``x``
        The start.

    Returns
    -------
    Run
        The last finite state, the number of steps that led to it, and the status.
    """
    start, loop = detached(loop, begin(state))
    dynamic, static = eqx.partition(start, eqx.is_array)

    def running(dynamic):
        here = eqx.combine(dynamic, static)
        return (here.status == RUNNING) & (here.steps < loop.max_steps)

    def body(dynamic):
        return eqx.filter(advance(loop, eqx.combine(dynamic, static)), eqx.is_array)

    def masked(dynamic):
        return tree.where(running(dynamic), body(dynamic), dynamic)

    if not placement.on_accelerator():
        end = manual_axes.while_loop(running, body, dynamic)
    elif loop.satisfied is None:
        end = manual_axes.scan(masked, dynamic, loop.max_steps)
    elif is_small(jax.make_jaxpr(body)(dynamic).jaxpr, SMALL_STEP_MAX_FLOPS):
        several = lambda dynamic: manual_axes.scan(masked, dynamic, STEPS_PER_LOOK)  # noqa: E731
        end = manual_axes.while_loop(running, several, dynamic)
    else:
        end = manual_axes.while_loop(running, body, dynamic)
    return finish(loop, eqx.combine(end, static))


# States: pytrees in which some leaves are no arrays.


def select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return the array leaves of `new` where the scalar `condition` holds, else those of `old`."""

    def choose(u, v):
        return jnp.where(condition, u, v) if eqx.is_array(v) else v

    return jax.tree.map(choose, new, old)


def arrays_of(new: Any, old: Any) -> PyTree:
    """Return the leaves of a new state that are arrays in the old one.

    A constant that a step returns may not be an array while the step is traced.
    """
    return eqx.filter(new, jax.tree.map(eqx.is_array, old))


def stop_gradient(a: Any) -> Any:
    """Cut derivatives of the array leaves of `a`."""
    return jax.tree.map(lambda v: jax.lax.stop_gradient(v) if eqx.is_array(v) else v, a)


def check_same(old: Any, new: Any) -> None:
    """Raise unless a step has kept structure, shapes and dtypes of the state.

    Raises
    ------
    ValueError
        Naming the first leaf that changed.
    """
    structure = jax.tree.structure(old)
    after, other = jax.tree.flatten(new)
    if structure != other:
        raise ValueError(
            f"`step` must return a state of the structure {structure}, but it returned {other}."
        )
    for (path, u), v in zip(jax.tree_util.tree_leaves_with_path(old), after, strict=True):
        if not eqx.is_array(u):
            continue
        if jnp.shape(u) != jnp.shape(v) or jnp.result_type(u) != jnp.result_type(v):
            raise ValueError(
                "`step` must keep shapes and dtypes, but it changed "
                f"state{jax.tree_util.keystr(path)} from {jnp.result_type(u)}{list(jnp.shape(u))} "
                f"to {jnp.result_type(v)}{list(jnp.shape(v))}."
            )


def detached(loop: Loop, start: Run) -> tuple[Run, Loop]:
    """Cut derivatives of the start and of the values that the loop's functions close over."""
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
