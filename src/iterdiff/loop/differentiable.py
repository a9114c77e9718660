"""Differentiate the end of a run only: late start, by count or by measurement."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import detach
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.checkpoints import Checkpoints, run_with_checkpoints
from iterdiff.loop.reverse import unroll_kept
from iterdiff.loop.run import Loop, Run, run_loop, stop_gradient
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Task
from iterdiff.loop.unroll import Checkpoint, unroll

SLOTS = 64
"""So many states of a run are kept, to start from again near its end."""


def late(task: Task, last: int, checkpoint: Checkpoint) -> Run:
    """Run, and differentiate the last `last` steps; the state before them is a constant."""
    state = stop_gradient(task.state())
    loop = task.loop()
    if isinstance(task.stop, Steps):
        end = run_loop(loop._replace(max_steps=task.stop.max_steps - last), state)
        tail = _tail(task, end.state, last, None, checkpoint)
        return tail._replace(steps=end.steps + tail.steps)
    end, kept = run_with_checkpoints(loop, state, SLOTS)
    return _from(task, end, kept, jnp.minimum(end.steps, last), last, checkpoint)


def late_enough(task: Task, rtol: float, checkpoint: Checkpoint) -> Run:
    """Run, measure how many steps back still matter, and differentiate these."""
    if checkpoint == "iterates":  # of all steps that may run: room for few, as few may matter
        checkpoint = "sqrt"
    end, kept = run_with_checkpoints(task.loop(), stop_gradient(task.state()), SLOTS)
    enough = memory_of(task, end.state, rtol, end.steps)
    return _from(task, end, kept, enough, task.stop.max_steps, checkpoint)


def _from(
    task: Task,
    end: Run,
    kept: Checkpoints,
    last: Int[Array, ""],
    most: int,
    checkpoint: Checkpoint,
) -> Run:
    """Take the last `last` (up to `most`) of a run's steps once more, differentiably."""
    static = eqx.filter(end.state, eqx.is_array, inverse=True)

    def step(arrays):
        return eqx.filter(task.step(eqx.combine(arrays, static)), eqx.is_array)

    step_ = detach(step, eqx.filter(end.state, eqx.is_array))
    start = stop_gradient(kept.at(step_, end.steps - last))
    tail = _tail(task, eqx.combine(start, static), most, last, checkpoint)
    return end._replace(state=tail.state)


def _tail(
    task: Task,
    start: Any,
    most: int,
    steps: Int[Array, ""] | None,
    checkpoint: Checkpoint,
) -> Run:
    """Take `steps` steps (None: `most`), differentiably."""
    counted = steps is None
    nested = ("sqrt", "log", "none") if counted else ("log",)
    if checkpoint in nested or most == 1:
        return unroll(task.step, start, most, checkpoint, steps)
    enough = None if counted else lambda run: run.steps >= steps
    keep = "sqrt" if checkpoint == "sqrt" else "iterates"
    return unroll_kept(Loop(task.step, enough, most), start, keep)


def memory_of(task: Task, state: Any, rtol: float, most: Int[Array, ""]) -> Int[Array, ""]:
    """Return after how many steps a perturbation of `state` has decayed below `rtol`.

    Powers of the step's Jacobian at `state`, in one random direction; at most `most`.
    """
    floating, rest = floating_part(stop_gradient(state))

    def step(floating):
        return floating_part(task.step(eqx.combine(floating, rest)))[0]

    push = detach(jax.linearize(step, floating)[1], floating)
    start = tree.random_directions(jax.random.key(0), floating, 1)
    start = jax.tree.map(lambda v: v[0], start)
    threshold = rtol * tree.norm(start)

    def going_on(carry):
        vector, count = carry
        return ~(tree.norm(vector) <= threshold) & (count < most)

    def power(carry):
        vector, count = carry
        return push(vector), count + 1

    return jax.lax.while_loop(going_on, power, (start, jnp.zeros_like(most)))[1]
