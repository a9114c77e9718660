"""Where the time of a gradient through a run goes: its parts, each compiled and timed alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import iterdiff as itd
from benchmarks.harness import Table, Variant
from benchmarks.problems import Case, Data
from iterdiff import keeping
from iterdiff import loop as loops
from iterdiff.linearised import Linearised
from iterdiff.modes.base import Task


def parts(case: Case, steps: int, primal: Callable, others: dict[str, Callable]) -> Table:
    """Return the table of the parts of iterdiff's default gradient of a counted run.

    Parameters
    ----------
    case : Case
        The problem.
    steps : int
        How many.
    primal : callable
        ``primal(theta, data)``, the run by a plain scan.
    others : dict
        More functions of the same, to compare with.
    """

    def task(theta: Any, data: Data) -> Task:
        algorithm, start = itd.GradientDescent(case.step_size), jnp.zeros_like(theta)
        return Task(case.problem(data), algorithm, start, theta, itd.Steps(steps))

    def run(theta, data):
        return loops.run(task(theta, data).loop(), task(theta, data).state()).state.x

    def kept(theta, data):
        found = keeping.run_keeping(task(theta, data).loop(), task(theta, data).state(), steps)
        return found[0].state.x, found[1].states.x

    def linearised(theta, data) -> Linearised:
        return Linearised(lambda t, x, _: case.step(x, t, data), theta, states[0], steps)

    def slopes(theta, data):
        """Compute what products with the step's derivatives need, and look at all of it."""
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
    named = {
        "the run: plain scan": primal,
        "the run, with its tests for finite numbers": run,
        "the same, keeping its iterates": kept,
        "slopes alone: the step's second derivatives at kept iterates": slopes,
        "the sweep back over kept iterates, slopes included": sweep,
        **others,
    }
    variants = [Variant(k, lambda inputs, f=f: f(*inputs), answers=False) for k, f in named.items()]
    title = f"Where the time goes: {case.name}, {steps:,} steps"
    return Table(title, tuple(variants), (case.theta, case.data), None)
