"""The scalar study: 1,000 iterates of gradient descent and their derivatives.

`trace` is a call that returns a dataset, with reference, checks and labels; what it runs once
compiled is one program. Both are timed: the program as all other variants are, the call as a
user makes it.
"""

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.harness import Effort, Table, Variant, best, duration, measure, row
from benchmarks.sections import Section
from benchmarks.targets import Figure
from benchmarks.traced import compiled_core

CORE = "iterdiff trace, its compiled program"
WHOLE = "iterdiff trace, the whole call"
START, THETA, STEP_SIZE = 0.5, 0.05, 0.1


def objective(x, theta):
    """Return a parabola with its minimum, 0, at 0 whatever `theta` is."""
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
    """Return the absolute errors of all derivatives, carried along by hand."""

    def body(carry, _):
        x, dx = jax.jvp(step, (carry[0], theta), (carry[1], jnp.ones_like(theta)))
        return (x, dx), (jnp.abs(x), jnp.abs(dx))

    start = jnp.asarray(START)
    _, (xs, dxs) = jax.lax.scan(body, (start, jnp.zeros_like(start)), None, steps)
    return jnp.concatenate([start[None], xs]), jnp.concatenate([jnp.zeros(1), dxs])


def closed_form(steps: int) -> np.ndarray:
    """Return the absolute derivatives of x_t = x_0 (1 - h theta)^t."""
    t = np.arange(steps + 1)
    return STEP_SIZE * t * START * (1 - STEP_SIZE * THETA) ** np.maximum(t - 1, 0)


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Scalar study")
    steps = 50 if effort.toy else 1000

    def traced(theta):
        data = itd.trace(
            itd.Minimization(objective),
            itd.GradientDescent(STEP_SIZE),
            START,
            float(theta),
            steps=steps,
            modes={"unrolled": itd.Unrolled()},
        )
        return data["jacobian_error"].values[0]

    def as_in_notebooks(theta):
        history(theta, steps)
        return jnp.abs(jax.jacfwd(lambda t: history(t, steps))(theta))

    def compiled_history(theta):
        xs = history(theta, steps)
        return xs, jnp.abs(jax.jacfwd(lambda t: history(t, steps))(theta))

    variants = [
        Variant("by hand: carry (x, dx) in one scan", lambda t: carried(t, steps)[1]),
        Variant("primal: history of iterates", lambda t: history(t, steps), answers=False),
        Variant("history and jacfwd of it, compiled", lambda t: compiled_history(t)[1]),
        Variant(
            "history and jacfwd of it, eager, as in notebooks", as_in_notebooks, compiled=False
        ),
        Variant(WHOLE, traced, compiled=False),
    ]
    if not effort.toy:
        core = compiled_core(lambda: traced(THETA))
        variants.insert(-1, Variant(CORE, core, answers=False))
    title = f"Scalar study: {steps} iterates and derivatives"
    table = Table(title, tuple(variants), jnp.asarray(THETA), closed_form(steps))
    rows = section.add(table, measure(table, effort))
    if not effort.toy:
        ours, whole, other = row(rows, CORE), row(rows, WHOLE), best(rows)
        note = f"the whole call, dataset included: {duration(whole.seconds)}"
        section.figures.append(Figure("scalar core", ours.ratio, other.name, other.ratio, note))
    return section
