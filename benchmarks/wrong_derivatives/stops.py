"""`DerivativeErrorBelow` against an oracle that knows the truth, and the cost of `Checked`.

The oracle is a separate run, with tangents by `jax.jvp` and implicit derivatives by dense linear
algebra, which compares each iterate's derivative with the true Jacobian.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import Comparison, Effort, measure
from benchmarks.speed.case import Data as Samples
from benchmarks.speed.problems import logistic, samples
from benchmarks.wrong_derivatives import hard_cases, slow_cases
from benchmarks.wrong_derivatives.group import (
    Data,
    Group,
    Setup,
    builder,
    case,
    fixed,
    generator,
    grid,
    run_all,
    truth,
)
from benchmarks.wrong_derivatives.slow_cases import BOTH, contraction_case, quadratic_case

EVERY = 10
"""Steps between two judgements of the rule."""
TOLERANCES = (1e-2, 1e-4, 1e-6)


class Stop(NamedTuple):
    """Where the rule and the oracle stopped.

    Attributes
    ----------
    label : str
        Group, mode, case and tolerance.
    steps, oracle : int
        Steps of the rule and of the oracle.
    error_over_tolerance : float
        True error at the stop over the tolerance.
    converged : bool
        Whether the rule reached its tolerance.
    """

    label: str
    steps: int
    oracle: int
    error_over_tolerance: float
    converged: bool


def groups() -> list[tuple[Group, int, bool]]:
    """Return groups that converge, their most steps, and whether the true derivative is zero."""
    layers = grid("stop-picard", contraction_case, norm=(0.5, 0.9, 0.99), rtol=(0.0,))
    slow = grid("stop-gd", quadratic_case, kappa=(1e1, 1e2), rtol=(0.0,))
    fast = grid("stop-nesterov", quadratic_case, kappa=(1e2, 1e3), rtol=(0.0,))
    zero = grid("stop-zero", lambda rng: case(rng, np.full(1, 0.5), np.full(1, 0.5)))
    regression = slow_cases.logistic_group()
    game, bent = hard_cases.games()[0], hard_cases.non_normal()[0]
    flat = builder(
        lambda _: itd.Minimization(lambda x, theta: jnp.sum(theta * x**2) / 2),
        fixed(itd.GradientDescent(0.1)),
    )
    descent, nesterov = (
        slow_cases.quadratic(algorithm)
        for algorithm in (slow_cases.gradient_descent, slow_cases.nesterov)
    )
    rows = (
        ("gd", descent, slow, 4000),
        ("nesterov", nesterov, fast, 1500),
        ("picard", slow_cases.tanh_layer(itd.Picard()), layers, 3000),
        ("logistic", regression.build, regression.cases[:8:4], 6000),
        ("min-max", game.build, game.cases[::3], 6000),
        ("non-normal", bent.build, bent.cases[::3], 1500),
        ("zero derivative", flat, zero, 1000),
    )
    return [
        (Group("stops", name, build, cases, BOTH, "jacobian"), steps, cases is zero)
        for name, build, cases, steps in rows
    ]


def push(function: Callable, *inputs: Any) -> Callable:
    """Return the values of a function, and its tangents for a batch of tangents of its inputs."""
    return jax.vmap(lambda *tangents: jax.jvp(function, inputs, tangents), out_axes=(None, 0))


def errors(group: Group, steps: int, true: np.ndarray) -> dict[str, np.ndarray]:
    """Return each mode's error (Frobenius) after 0, 1, ... steps: the oracle's knowledge."""

    def one(data: Data, true: jax.Array) -> dict[str, jax.Array]:
        problem, algorithm, x0, theta = group.build(data)[:4]
        directions = jnp.eye(theta.size)

        def step(state, t):
            return algorithm.step(problem, state, t)

        def body(carry, _):
            state, tangents = carry
            a, b = jax.jacfwd(problem.residual, (0, 1))(state.x, theta)
            implicit = jnp.linalg.norm(-jnp.linalg.solve(a, b) - true)
            unrolled = jnp.linalg.norm(tangents.x.T - true)
            new = push(step, state, theta)(tangents, directions)
            return new, {"implicit": implicit, "unrolled": unrolled}

        start = push(lambda t: algorithm.init(problem, x0, t), theta)(directions)
        return jax.lax.scan(body, start, None, steps + 1)[1]

    return run_all(one, group.stacked(), true)


def stops(group: Group, steps: int, zero: bool) -> list[Stop]:
    """Return where `DerivativeErrorBelow` stops in each case, mode and tolerance."""
    true = truth(group)[0]
    known = errors(group, steps, true)
    points = list(itertools.product(range(len(group.cases)), TOLERANCES))
    batch = {key: leaf[[i for i, _ in points]] for key, leaf in group.stacked().items()}
    batch["tolerance"] = np.array([tolerance for _, tolerance in points])

    def one(data: Data) -> dict[str, Any]:
        setup = group.build(data)
        atol = data["tolerance"] if zero else 0.0
        rule = itd.DerivativeErrorBelow(data["tolerance"], steps, every=EVERY, atol=atol)
        solutions = {
            name: itd.solve(*setup[:4], stop=rule, mode=mode, throw=False)
            for name, mode in group.modes.items()
        }
        return {name: (found.steps, found.status) for name, found in solutions.items()}

    found = []
    for name, (taken, status) in run_all(one, batch).items():
        for k, (i, tolerance) in enumerate(points):
            allowed = tolerance * (1.0 if zero else np.linalg.norm(true[i]))
            below = np.flatnonzero(known[name][i] <= allowed)
            found.append(
                Stop(
                    f"{group.name} {name} {group.cases[i]['label']} tolerance={tolerance:.0e}",
                    int(taken[k]),
                    int(below[0]) if below.size else steps + 1,
                    float(known[name][i][int(taken[k])] / allowed),
                    int(status[k]) == int(itd.Status.CONVERGED),
                )
            )
    return found


class Cost(NamedTuple):
    """Seconds: medians of differences within a round."""

    gradient: float
    derivative: float
    check: float


def _cost(setup: Setup, mode: itd.Mode, steps: int, rounds: int) -> Cost:
    def loss_under(mode: itd.Mode):
        def loss(theta: jax.Array) -> jax.Array:
            run = (setup.problem, setup.algorithm, setup.x0, theta)
            return jnp.sum(itd.solve(*run, stop=itd.Steps(steps), mode=mode).x ** 2)

        return loss

    loss, checked = loss_under(mode), loss_under(itd.Checked(mode, on_failure="nan"))
    variants = {"primal": loss, "gradient": jax.grad(loss), "checked": jax.grad(checked)}
    rows = measure(Comparison("cost", variants, (setup.theta,)), Effort(rounds, math.inf))
    times = [np.array([row.times[k] for k in range(rounds)]) for row in rows]
    return Cost(
        *(float(np.median(t)) for t in (times[1], times[1] - times[0], times[2] - times[1]))
    )


def costs(rounds: int, steps: int = 200) -> dict[tuple[str, str], Cost]:
    """Return what checking costs, by problem and mode.

    The implicit derivative does not depend on the length of the run, and may take far less time
    than the run's noise. It is therefore timed once more from the end of the run, with one step.
    """
    features, signs = samples()
    halves = (features[::2], signs[::2], features[1::2], signs[1::2])
    regression = logistic("", Samples(*halves), 1e-2)
    descent = itd.GradientDescent(regression.step_size)
    problem, start = regression.problem(regression.data), jnp.zeros_like(regression.theta)
    layer = jax.tree.map(jnp.asarray, contraction_case(generator("cost"), 0.9, 0.0, 200))
    setups = {
        "logistic regression, 30 unknowns": Setup(problem, descent, start, regression.theta),
        "layer, 200": slow_cases.tanh_layer(itd.Picard())(layer),
        "chain, 2000 (conjugate gradients)": chain(2000),
    }
    found = {}
    for name, setup in setups.items():
        for key, mode in BOTH.items():
            found[name, f"{key}, {steps} steps"] = _cost(setup, mode, steps, rounds)
        ended = setup._replace(x0=itd.solve(*setup[:4], stop=itd.Steps(steps)).x)
        found[name, "implicit, from the end"] = _cost(ended, itd.Implicit(), 1, 10 * rounds)
    return found


def chain(size: int) -> Setup:
    """Return a chain of springs: its products are cheap, and no matrix is formed."""
    stiffness = jnp.linspace(1.0, 3.0, size)

    def energy(x: jax.Array, force: jax.Array) -> jax.Array:
        own = jnp.sum(stiffness * x**2 / 2 + jnp.cosh(x) / 20)
        return own + jnp.sum((x - jnp.roll(x, 1)) ** 2) / 4 - x @ force

    force = jnp.asarray(generator("chain").normal(size=size))
    return Setup(itd.Minimization(energy), itd.GradientDescent(0.3), jnp.zeros(size), force)
