"""The scalar study: 1,000 iterates of gradient descent and their derivatives.

A call of `trace` computes a reference, checks its arguments, runs one compiled program and
builds a dataset. Both are timed: the program, like all other variants, and the whole call.
"""

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import Comparison, Effort, best, compare, named
from benchmarks.harness.results import Section
from benchmarks.harness.targets import against
from benchmarks.harness.units import duration
from benchmarks.speed.internals import trace_program

CORE = "iterdiff trace, its compiled program"
WHOLE = "iterdiff trace, the whole call"
PRIMAL = "primal: history of iterates"
EAGER = "history and jacfwd of it, eager, as in notebooks"
START, THETA, STEP_SIZE = 0.5, 0.05, 0.1


def objective(x, theta):
    """Return a parabola whose minimum is 0 for every `theta`."""
    return theta * x**2 / 2


def step(x, theta):
    """Return the next iterate."""
    return x - STEP_SIZE * jax.grad(objective)(x, theta)


def history(theta, steps: int):
    """Return all iterates."""

    def body(x, _):
        x = step(x, theta)
        return x, x

    start = jnp.asarray(START)
    return jnp.concatenate([start[None], jax.lax.scan(body, start, None, steps)[1]])


def carried(theta, steps: int):
    """Return the absolute derivatives of all iterates, carried through the scan by hand."""

    def body(carry, _):
        x, dx = jax.jvp(step, (carry[0], theta), (carry[1], jnp.ones_like(theta)))
        return (x, dx), (jnp.abs(x), jnp.abs(dx))

    start = jnp.asarray(START)
    _, (_, dxs) = jax.lax.scan(body, (start, jnp.zeros_like(start)), None, steps)
    return jnp.concatenate([jnp.zeros(1), dxs])


def closed_form(steps: int) -> np.ndarray:
    """Return the absolute derivatives of x_t = x_0 (1 - h theta)^t."""
    t = np.arange(steps + 1)
    return STEP_SIZE * t * START * (1 - STEP_SIZE * THETA) ** np.maximum(t - 1, 0)


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Scalar study")
    steps = 50 if effort.toy else 1000

    start = itd.Minimization(objective), itd.GradientDescent(STEP_SIZE), START
    options = {"steps": steps, "modes": {"unrolled": itd.Unrolled()}}

    def traced(theta):
        return itd.trace(*start, float(theta), **options)["jacobian_error"].values[0]

    def primal(theta):
        return history(theta, steps)

    def both(theta):
        primal(theta)
        return jnp.abs(jax.jacfwd(primal)(theta))

    variants = {
        "by hand: carry (x, dx) in one scan": lambda theta: carried(theta, steps),
        PRIMAL: primal,
        "history and jacfwd of it, compiled": both,
        EAGER: both,
        CORE: trace_program(*start, THETA, **options),
        WHOLE: traced,
    }
    comparison = Comparison(
        f"Scalar study: {steps} iterates and derivatives",
        variants,
        (jnp.asarray(THETA),),
        closed_form(steps),
        timed_only=(PRIMAL, CORE),
        eager=(EAGER, WHOLE),
    )
    rows = compare(section, comparison, effort)
    if not effort.toy:
        ours, whole, other = named(rows, CORE), named(rows, WHOLE), best(rows)
        note = f"the whole call, dataset included: {duration(whole.seconds)}"
        section.measurements.append(
            against("scalar core", ours.ratio, other.name, other.ratio, note)
        )
    return section
