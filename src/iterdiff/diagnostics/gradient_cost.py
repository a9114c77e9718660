"""Time and memory of a gradient through a solve."""

import time
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.by_content import Traced
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Task
from iterdiff.modes.base import Mode
from iterdiff.solving.solve import solve

MIN_TIMED_RUNS, MAX_TIMED_RUNS = 3, 30
"""Limits of the number of timed evaluations of a gradient."""

ENOUGH_SECONDS = 0.1
"""After this time in total, no further evaluation is timed."""


class GradientCost(NamedTuple):
    """What one compiled gradient costs.

    Attributes
    ----------
    seconds : float
        Wall-clock time, the shortest of several evaluations.
    temporary_bytes : int
        Temporary memory of the compiled program.
    forward_only : bool
        Whether reverse mode does not apply, so that this is the cost in forward mode: of one
        directional derivative, its time multiplied by the number of parameters.
    """

    seconds: float
    temporary_bytes: int
    forward_only: bool


def gradient_cost(task: Task, mode: Mode, steps: int) -> GradientCost:
    """Compile and time the gradient of ``sum(x)`` in theta through `steps` steps of `task`."""
    floating, static = floating_part(task.theta)

    def total(floating):
        theta = eqx.combine(floating, static)
        inputs = (task.problem, task.algorithm, task.x0, theta)
        x = solve(*inputs, stop=Steps(steps), mode=mode, throw=False).x
        return tree.dot(x, jax.tree.map(jnp.ones_like, x))

    derivative, forward_only = _compiled(total, floating)
    memory = derivative.temporary_bytes(floating)
    times: list[float] = []
    while len(times) < MIN_TIMED_RUNS or (
        len(times) < MAX_TIMED_RUNS and sum(times) < ENOUGH_SECONDS
    ):
        start = time.perf_counter()
        jax.block_until_ready(derivative(floating))
        times.append(time.perf_counter() - start)
    seconds = min(times) * (tree.size(floating) if forward_only else 1)
    return GradientCost(seconds, memory, forward_only)


def _compiled(total: Callable[[PyTree], Array], floating: PyTree) -> tuple[Traced, bool]:
    """Return the compiled gradient; if it does not exist, one derivative in forward mode."""
    try:
        return Traced(jax.grad(total), floating), False
    except ValueError:  # JAX cannot reverse a loop whose length it does not know
        ones = jax.tree.map(jnp.ones_like, floating)
        return Traced(lambda at: jax.jvp(total, (at,), (ones,)), floating), True
