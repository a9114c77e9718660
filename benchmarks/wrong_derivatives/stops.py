"""`DerivativeErrorBelow` against an oracle that knows the truth, and what `Checked` costs.

The oracle is a run of its own, with tangents by `jax.jvp` and implicit derivatives by dense linear
algebra, compared with the true Jacobian at every step.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks import wrong_cases, wrong_cases_hard
from benchmarks.wrong_base import QUICK, Data, Group, Setup, truth

EVERY = 10
TOLERANCES = (1e-2, 1e-4, 1e-6)


class Stop(NamedTuple):
    """Where a rule stopped, and where an oracle would have."""

    label: str
    steps: int
    oracle: int
    error_over_tolerance: float
    converged: bool


def _video(data: Data) -> Setup:
    problem = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2) / 2)
    return Setup(problem, itd.GradientDescent(0.1), data["x0"], data["theta"])


def groups() -> list[tuple[Group, int, bool]]:
    """Return groups that converge, the most steps, and whether the true derivative is zero."""
    three = (0.0,)
    slow = wrong_cases.grid("stop-gd", wrong_cases.quadratic_case, (1e1, 1e2), three)
    fast = wrong_cases.grid("stop-nesterov", wrong_cases.quadratic_case, (1e2, 1e3), three)
    layer = wrong_cases.grid("stop-picard", wrong_cases.contraction_case, (0.5, 0.9, 0.99), three)
    logistic = wrong_cases.logistic_group()
    games = next(g for g in wrong_cases_hard.saddles() if g.name == "min-max")
    bent = next(g for g in wrong_cases_hard.non_normal() if g.name == "non-normal-bent")
    zero = [{"label": "", "x0": np.full(1, 0.5), "theta": np.full(1, 0.5), "guess": np.zeros(1)}]
    modes, quadratic = wrong_cases.BOTH, wrong_cases.quadratic

    def group(name, build, cases):
        return Group("stops", name, build, cases, modes, "jacobian")

    return [
        (group("gd", quadratic(wrong_cases.gradient_descent), slow), 4000, False),
        (group("nesterov", quadratic(wrong_cases.nesterov), fast), 1500, False),
        (group("picard", wrong_cases.tanh_layer(itd.Picard()), layer), 3000, False),
        (group("logistic", logistic.build, logistic.cases[:8:4]), 6000, False),
        (group("min-max", games.build, games.cases[::3]), 6000, False),
        (group("non-normal", bent.build, bent.cases[::3]), 1500, False),
        (group("zero derivative", _video, zero), 1000, True),
    ]


def errors(group: Group, steps: int, true: np.ndarray) -> dict[str, np.ndarray]:
    """Return each mode's error (Frobenius) after 0, 1, ... steps: the oracle's knowledge."""

    def one(data: Data, true: jax.Array) -> dict[str, jax.Array]:
        setup = group.build(data)
        problem, algorithm, theta = setup.problem, setup.algorithm, setup.theta
        directions = jnp.eye(theta.size)

        def start(t):
            return algorithm.init(problem, setup.x0, t)

        def step(state, t):
            return algorithm.step(problem, state, t)

        def body(carry, _):
            state, dots = carry
            a, b = jax.jacfwd(problem.residual, (0, 1))(state.x, theta)
            implicit = jnp.linalg.norm(-jnp.linalg.solve(a, b) - true)
            unrolled = jnp.linalg.norm(dots.x.T - true)

            def push(dot, v):
                return jax.jvp(step, (state, theta), (dot, v))

            new, new_dots = jax.vmap(push, out_axes=(None, 0))(dots, directions)
            return (new, new_dots), {"implicit": implicit, "unrolled": unrolled}

        state, dots = jax.vmap(lambda v: jax.jvp(start, (theta,), (v,)), out_axes=(None, 0))(
            directions
        )
        return jax.lax.scan(body, (state, dots), None, steps + 1)[1]

    program = jax.jit(jax.vmap(one), compiler_options=QUICK)
    return jax.tree.map(np.asarray, program(group.stacked(), true))


def stops(group: Group, steps: int, zero: bool) -> list[Stop]:
    """Return where `DerivativeErrorBelow` stops in each case, mode and tolerance."""
    true = truth(group)[0]
    known = errors(group, steps, true)
    points = list(itertools.product(range(len(group.cases)), TOLERANCES))
    stacked = group.stacked()
    batch = {key: leaf[[i for i, _ in points]] for key, leaf in stacked.items()}
    batch["tolerance"] = np.array([tolerance for _, tolerance in points])

    def one(data: Data) -> dict[str, Any]:
        setup = group.build(data)
        ended = {}
        for name, mode in group.modes.items():
            rule = itd.DerivativeErrorBelow(
                data["tolerance"], steps, every=EVERY, atol=data["tolerance"] if zero else 0.0
            )
            solution = itd.solve(*setup[:4], stop=rule, mode=mode, throw=False)
            ended[name] = solution.steps, solution.status
        return ended

    ended = jax.jit(jax.vmap(one), compiler_options=QUICK)(batch)
    found = []
    for name, (taken, status) in ended.items():
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


# What Checked costs


class Cost(NamedTuple):
    """What a check adds, in seconds: medians of differences within a round."""

    gradient: float
    derivative: float
    check: float
    counts: dict[str, dict[str, int]]


def _cost(setup: Setup, mode: itd.Mode, steps: int, rounds: int) -> Cost:
    def solved(mode: itd.Mode) -> Callable:
        def loss(theta: jax.Array) -> jax.Array:
            run = (setup.problem, setup.algorithm, setup.x0, theta)
            return jnp.sum(itd.solve(*run, stop=itd.Steps(steps), mode=mode).x ** 2)

        return loss

    checked = itd.Checked(mode, on_failure="nan")
    made = {
        "primal": solved(mode),
        "bare": jax.grad(solved(mode)),
        "checked": jax.grad(solved(checked)),
    }
    counts = {key: count(jax.make_jaxpr(f)(setup.theta).jaxpr) for key, f in made.items()}
    compiled = {key: jax.jit(f).lower(setup.theta).compile() for key, f in made.items()}
    times = {key: np.zeros(rounds) for key in compiled}
    for i in range(-1, rounds):  # the first round, a rehearsal, is overwritten by the last
        for key, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(setup.theta))
            times[key][i] = time.perf_counter() - start
    derivative = float(np.median(times["bare"] - times["primal"]))
    check = float(np.median(times["checked"] - times["bare"]))
    return Cost(float(np.median(times["bare"])), derivative, check, counts)


def overhead(rounds: int, steps: int = 200) -> dict[tuple[str, str], Cost]:
    """Return what checking costs, by problem and mode.

    The implicit derivative does not depend on how long the run was, and may be far shorter than
    its noise: it is timed once more at the end of the run, with a single step.
    """
    from benchmarks import gradients

    theta = jnp.full(30, np.log(1e-2))
    h = gradients.step_size(theta)
    start = jnp.zeros(30)
    logistic = Setup(itd.Minimization(gradients.inner), itd.GradientDescent(h), start, theta)
    case = wrong_cases.contraction_case(wrong_cases.generator("cost"), 0.9, 0.0, 200)
    layer = wrong_cases.tanh_layer(itd.Picard())(jax.tree.map(jnp.asarray, case | {"label": 0}))
    cases = {
        "logistic regression, 30 unknowns": logistic,
        "layer, 200": layer,
        "chain, 2000 (conjugate gradients)": chain(2000),
    }
    found = {}
    for name, setup in cases.items():
        for key, mode in wrong_cases.BOTH.items():
            found[name, f"{key}, {steps} steps"] = _cost(setup, mode, steps, rounds)
        run = (setup.problem, setup.algorithm, setup.x0, setup.theta)
        ended = setup._replace(x0=itd.solve(*run, stop=itd.Steps(steps)).x)
        found[name, "implicit, from the end"] = _cost(ended, itd.Implicit(), 1, 10 * rounds)
    return found


def chain(size: int) -> Setup:
    """Return springs in a chain: a product costs little, and no matrix is formed."""
    stiffness = jnp.linspace(1.0, 3.0, size)

    def energy(x: jax.Array, force: jax.Array) -> jax.Array:
        own = jnp.sum(stiffness * x**2 / 2 + jnp.cosh(x) / 20)
        return own + jnp.sum((x - jnp.roll(x, 1)) ** 2) / 4 - x @ force

    force = jnp.asarray(wrong_cases.generator("chain").normal(size=size))
    return Setup(itd.Minimization(energy), itd.GradientDescent(0.3), jnp.zeros(size), force)


COUNTED = {"lu": "factorisations", "cholesky": "factorisations", "triangular_solve": "solves"}


def count(jaxpr: Any) -> dict[str, int]:
    """Count factorisations and triangular solves in a program, as written (not per round)."""
    total = {"factorisations": 0, "solves": 0}
    for equation in jaxpr.eqns:
        if equation.primitive.name in COUNTED:
            total[COUNTED[equation.primitive.name]] += 1
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                for key, value in count(inner).items():
                    total[key] += value
    return total
