"""Time and memory of a gradient through a solve."""

import time
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from iterdiff.jaxtools import tree
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
    """

    seconds: float
    temporary_bytes: int


def gradient_cost(task: Task, mode: Mode, steps: int) -> GradientCost:
    """Compile and time the gradient of ``sum(x)`` in theta through `steps` steps of `task`."""
    floating, static = floating_part(task.theta)

    def total(floating):
        theta = eqx.combine(floating, static)
        inputs = (task.problem, task.algorithm, task.x0, theta)
        x = solve(*inputs, stop=Steps(steps), mode=mode, throw=False).x
        return tree.dot(x, jax.tree.map(jnp.ones_like, x))

    gradient = jax.jit(jax.grad(total)).lower(floating).compile()
    memory = gradient.memory_analysis()
    times: list[float] = []
    while len(times) < MIN_TIMED_RUNS or (
        len(times) < MAX_TIMED_RUNS and sum(times) < ENOUGH_SECONDS
    ):
        start = time.perf_counter()
        jax.block_until_ready(gradient(floating))
        times.append(time.perf_counter() - start)
    return GradientCost(min(times), int(getattr(memory, "temp_size_in_bytes", 0)))
