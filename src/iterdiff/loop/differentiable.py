"""Runs that JAX differentiates: which loop takes the steps, by which policy.

All steps of a run are differentiable, or the last few (a late start): then the state before them
is a constant. The checkpoint policy decides how:

=============  ======================  ==========================================
policy         number of steps known   unknown (a stopping rule)
=============  ======================  ==========================================
"iterates"     `unroll_kept`           `unroll_kept`
"sqrt"         `unroll`                `unroll_kept`
"log"          `unroll`                `run_loop` for their number, then `unroll`
"none"         `unroll`                `unroll_kept`, as "iterates"
=============  ======================  ==========================================

On an accelerator, a known number of steps is taken by `unroll` under "iterates", too: a scan of
known length, which keeps the iterates and recomputes each step once. The explicit reverse sweep has
loops whose lengths depend on data, for which the host would wait at every step.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from iterdiff.jaxtools import manual_axes, placement, tree
from iterdiff.jaxtools.closures import detach
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.checkpoints import Checkpoints, run_with_checkpoints
from iterdiff.loop.reverse import unroll_kept
from iterdiff.loop.run import Loop, Run, begin, run_loop, stop_gradient
from iterdiff.loop.task import Task
from iterdiff.loop.unroll import Checkpoint, unroll

Last = int | Literal["auto"] | None
"""How many of the last steps are differentiated: see `modes.Unrolled`."""

LATE_START_SLOTS = 64
"""States that a run with a late start keeps, to restart from near its end."""


def differentiable_run(
    task: Task,
    checkpoint: Checkpoint,
    *,
    last: Last = None,
    rtol: float = 1e-6,
    end: Run | None = None,
) -> Run:
    """Run the task; JAX differentiates all its steps, or the last few.

    Parameters
    ----------
    task : Task
        What is run.
    checkpoint : {"iterates", "sqrt", "log", "none"}
        What the reverse sweep keeps.
    last : int, "auto" or None
        How many of the last steps are differentiated; None: all.
    rtol : float
        The tolerance of ``last="auto"``.
    end : Run, optional
        The result of the run, if it is known already: its steps are then repeated.

    Returns
    -------
    Run
        The result, which carries the derivative in its state.
    """
    if last is not None:
        return _late_run(task, last, checkpoint, rtol)
    loop, state = task.loop(), task.state()
    if end is None and checkpoint == "log" and task.stop.checks:
        end = run_loop(loop, state)
    if end is None:
        return _by_policy(loop, state, checkpoint)
    repeated = unroll(task.step, state, loop.max_steps, checkpoint, end.steps)
    return end._replace(state=repeated.state)


def steps_back(last: int, task: Task) -> int:
    """Return how many steps back the last `last` steps begin that made the iterate.

    The derivative of the last step of an algorithm with a lag is zero, so that one-step
    differentiation has to start earlier.
    """
    return min(last + task.algorithm.lag, task.stop.max_steps)


def _by_policy(loop: Loop, state: Any, checkpoint: Checkpoint) -> Run:
    if loop.satisfied is None and (checkpoint != "iterates" or placement.on_accelerator()):
        return unroll(loop.step, state, loop.max_steps, checkpoint)
    return unroll_kept(loop, state, "sqrt" if checkpoint == "sqrt" else "iterates")


def _late_run(task: Task, last: int | Literal["auto"], checkpoint: Checkpoint, rtol: float) -> Run:
    """Run, then repeat the last steps; the state before them is a constant."""
    loop, state = task.loop(), stop_gradient(task.state())
    if last != "auto":
        last = steps_back(last, task)
        if not task.stop.checks:
            before = run_loop(loop._replace(max_steps=loop.max_steps - last), state)
            tail = Loop(task.step, None, last)
            run = _by_policy(tail, before.state, "none" if last == 1 else checkpoint)
            return run._replace(steps=before.steps + run.steps)
    end, kept = run_with_checkpoints(loop, state, LATE_START_SLOTS)
    if last != "auto":
        return _repeat_last(task, end, kept, jnp.minimum(end.steps, last), last, checkpoint)
    enough = memory_of(task, end.state, rtol, end.steps)
    # Few of all the steps that may run will matter: "iterates" would reserve memory for all.
    checkpoint = "sqrt" if checkpoint == "iterates" else checkpoint
    # If all steps matter, so does what the algorithm computes at the start: the first residual of
    # conjugate gradients is all that its steps see of the right-hand side.
    first = begin(task.state()).state
    return _repeat_last(task, end, kept, enough, loop.max_steps, checkpoint, first)


def _repeat_last(
    task: Task,
    end: Run,
    kept: Checkpoints,
    count: Int[Array, ""],
    most: int,
    checkpoint: Checkpoint,
    from_start: Any = None,
) -> Run:
    """Repeat the last `count` (at most `most`) steps of a run, differentiably.

    If these are all steps, their start is `from_start`, which carries a derivative.
    """
    static = eqx.filter(end.state, eqx.is_array, inverse=True)

    def step(arrays):
        return eqx.filter(task.step(eqx.combine(arrays, static)), eqx.is_array)

    step = detach(step, eqx.filter(end.state, eqx.is_array))
    arrays = stop_gradient(kept.at(step, end.steps - count))
    if from_start is not None:
        arrays = tree.where(count == end.steps, eqx.filter(from_start, eqx.is_array), arrays)
    start = eqx.combine(arrays, static)
    if checkpoint == "log" or most == 1:
        run = unroll(task.step, start, most, checkpoint, count)
    else:
        loop = Loop(task.step, lambda run: run.steps >= count, most)
        run = _by_policy(loop, start, checkpoint)
    return end._replace(state=run.state)


def memory_of(task: Task, state: Any, rtol: float, most: Int[Array, ""]) -> Int[Array, ""]:
    """Return after how many steps a perturbation of `state` has decayed below `rtol`.

    The count is that of powers of the step's Jacobian at `state`, applied to one random direction;
    it is at most `most`.
    """
    floating, rest = floating_part(stop_gradient(state))

    def step(floating):
        return floating_part(task.step(eqx.combine(floating, rest)))[0]

    push = detach(jax.linearize(step, floating)[1], floating)
    start = tree.fixed_directions(floating, 1)
    start = manual_axes.aligned(jax.tree.map(lambda v: v[0], start), floating)
    threshold = rtol * tree.norm(start)

    def above(carry):
        vector, count = carry
        return ~(tree.norm(vector) <= threshold) & (count < most)

    def multiply(carry):
        vector, count = carry
        return push(vector), count + 1

    return manual_axes.while_loop(above, multiply, (start, jnp.zeros_like(most)))[1]
