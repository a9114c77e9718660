"""The only loop: take steps until a rule is satisfied, an iterate is not finite, or time is up.

It comes in two kinds. `run` is a ``while_loop``: fast, any number of steps, no reverse-mode
derivative. `unroll` is built from scans, and JAX differentiates it in every way, at a memory that
its `Checkpoint` sets. (`iterdiff.keeping` has the kinds of `run` that keep some of their states.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import detach
from iterdiff.jaxtools.jaxpr import shared
from iterdiff.loop.status import Status

RUNNING = -1

Step = Callable[[Any], Any]
Satisfied = Callable[["Run"], Bool[Array, ""]]


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


def select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
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
    state = select(moved, new, run.state)
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


def run_loop(loop: Loop, state: Any) -> Run:
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


# Differentiable loops.
