"""Measurements of iterdiff's internals: the only benchmark module that imports private ones."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import iterdiff as itd
from benchmarks.harness.measure import Comparison
from benchmarks.speed.case import Case, Data
from iterdiff.diagnostics.recorder import begin, record
from iterdiff.diagnostics.trace import build_recorder
from iterdiff.loop.checkpoints import run_with_checkpoints
from iterdiff.loop.pullback import LinearisedSteps
from iterdiff.loop.run import run_loop
from iterdiff.loop.task import Task


def trace_program(*arguments: Any, **options: Any) -> Callable:
    """Return the program that `iterdiff.trace` compiles for these arguments, as a variant.

    The variant ignores its own arguments. Its inputs are those of the run, behind a barrier, so
    that the compiler cannot fold them.
    """
    recorder = build_recorder(*arguments, **options)
    inputs = recorder, begin(recorder), recorder.count
    arrays, static = eqx.partition(inputs, eqx.is_array)
    held, structure = jax.tree.flatten(arrays)

    def variant(*_):
        inputs = jax.tree.unflatten(structure, jax.lax.optimization_barrier(held))
        return record(*eqx.combine(inputs, static))[1]

    return variant


def parts(case: Case, steps: int, primal: Callable, others: dict[str, Callable]) -> Comparison:
    """Return the parts of iterdiff's default gradient of a fixed number of steps.

    Parameters
    ----------
    case : Case
        The problem.
    steps : int
        Number of steps.
    primal : callable
        ``primal(theta, data)``, the run as a plain scan.
    others : dict of callables
        Further functions of the same arguments.
    """

    def task(theta: Any, data: Data) -> Task:
        algorithm, start = itd.GradientDescent(case.step_size), jnp.zeros_like(theta)
        return Task(case.problem(data), algorithm, start, theta, itd.Steps(steps))

    def run(theta, data):
        return run_loop(task(theta, data).loop(), task(theta, data).state()).state.x

    def kept(theta, data):
        found = run_with_checkpoints(task(theta, data).loop(), task(theta, data).state(), steps)
        return found[0].state.x, found[1].states.x

    def linearised(theta, data) -> LinearisedSteps:
        return LinearisedSteps(lambda t, x, _: case.step(x, t, data), theta, states[0], steps)

    def second_derivatives(theta, data):
        """Compute all that products with the step's derivatives need, and reduce it."""
        at_once = linearised(theta, data).at_once

        def block(i, total):
            rows = jax.lax.dynamic_slice_in_dim(states, i * at_once, at_once)
            pieces = jax.vmap(lambda x: jax.vjp(lambda t, x: case.step(x, t, data), theta, x)[1])
            return total + sum(jnp.sum(piece) for piece in jax.tree.leaves(pieces(rows)))

        return jax.lax.fori_loop(0, steps // at_once, block, jnp.zeros(()))

    def sweep(theta, data):
        start = jnp.ones_like(theta), jnp.zeros_like(theta)
        return linearised(theta, data).pull(states, jnp.int32(steps), start)

    states = jax.jit(kept)(case.theta, case.data)[1]
    variants = {
        "the run: plain scan": primal,
        "the run, with its tests for finite numbers": run,
        "the same, keeping its iterates": kept,
        "only the step's second derivatives at kept iterates": second_derivatives,
        "reverse sweep over kept iterates, second derivatives included": sweep,
        **others,
    }
    title = f"Where the time goes: {case.name}, {steps:,} steps"
    return Comparison(title, variants, (case.theta, case.data))
