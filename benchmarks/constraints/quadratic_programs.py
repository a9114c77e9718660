"""Gradients through quadratic programs: ours, jaxopt's OSQP, and cvxpylayers if installed.

The truth comes from the construction: minimiser, multipliers and active set are drawn first, and
the linear term and the right-hand sides follow. The gradient is one solve with the KKT matrix.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.constraints import edges, rivals
from benchmarks.constraints.rivals import Program
from benchmarks.harness.measure import Comparison, Effort, best, compare, named
from benchmarks.harness.results import Measurement, Section, Target

SIZES = (5, 50, 200, 500)
"""Unknowns of a single program; it has as many inequalities, and a fifth as many equalities."""

BATCH, STATES, CONTROLS, HORIZON = 1000, 4, 2, 10
"""A batch of control problems: programs in 20 controls with 40 bounds, one for each start."""

OURS = "iterdiff ADMM, Implicit(refine=1)"
TIGHT = "iterdiff ADMM to 1e-9, Implicit()"
PEER = "jaxopt OSQP, implicit"
LAYER = "cvxpylayers, not compiled"
TARGET = Target("batch of 1,000 control problems", "≤ 1.2 × the fastest", 1.2)


def random_program(size: int) -> tuple[Program, np.ndarray]:
    """Return a program and the gradient of ``sum(x**2) / 2`` in `c`."""
    rng = np.random.default_rng(size)
    root = rng.standard_normal((size, size)) / np.sqrt(size)
    Q, x = root @ root.T + 0.1 * np.eye(size), rng.standard_normal(size)
    count = max(size // 5, 1)
    A, G = rng.standard_normal((count, size)), rng.standard_normal((size, size))
    active = np.arange(size) < size // 3
    y, z = rng.standard_normal(count), np.where(active, 0.1 + rng.random(size), 0.0)
    slack = np.where(active, 0.0, 0.1 + rng.random(size))
    program = Program(Q, -(Q @ x + A.T @ y + G.T @ z), A, A @ x, G, G @ x + slack)
    J = np.concatenate([A, G[active]])
    kkt = np.block([[Q, J.T], [J, np.zeros((len(J), len(J)))]])
    adjoint = np.linalg.solve(kkt, np.concatenate([x, np.zeros(len(J))]))
    return Program(*map(jnp.asarray, program)), -adjoint[:size]


def control_programs(count: int) -> tuple[Program, None]:
    """Return condensed control problems from random starts."""
    rng = np.random.default_rng(0)
    step = np.eye(STATES) + 0.1 * rng.standard_normal((STATES, STATES))
    push = 0.3 * rng.standard_normal((STATES, CONTROLS))
    powers = [np.linalg.matrix_power(step, k) for k in range(HORIZON + 1)]
    zero = np.zeros((STATES, CONTROLS))
    response = np.block(
        [[powers[t - k] @ push if k <= t else zero for k in range(HORIZON)] for t in range(HORIZON)]
    )
    free = np.concatenate(powers[1:])
    starts = 2 * rng.standard_normal((count, STATES))
    size = HORIZON * CONTROLS
    Q = response.T @ response + 0.1 * np.eye(size)
    c = starts @ (response.T @ free).T
    G = np.concatenate([np.eye(size), -np.eye(size)])
    program = Program(Q, c, np.zeros((0, size)), np.zeros(0), G, 0.5 * np.ones(2 * size))
    return Program(*map(jnp.asarray, program)), None


def by_iterdiff(atol: float, mode: itd.Mode) -> Callable:
    """Return our solution as a function of `c` and the program."""

    def solution(c, program):
        problem = itd.QuadraticProgram(
            program.Q, lambda c: c, program.A, program.b, program.G, program.h
        )
        stop = itd.ResidualBelow(rtol=0.0, atol=atol, max_steps=500)
        start = jnp.zeros(c.size)
        return itd.solve(problem, itd.ADMM(), start, c, stop=stop, mode=mode, throw=False).x

    return solution


def solutions(program: Program, *, others: bool) -> dict[str, Callable]:
    """Return each library's solution as a function of `c` and the program."""
    found = {
        OURS: by_iterdiff(1e-5, itd.Implicit(refine=1)),
        TIGHT: by_iterdiff(1e-9, itd.Implicit()),
    }
    if others:
        found |= {f"{PEER}, tol={tol:g}": rivals.by_jaxopt(tol) for tol in (1e-4, 1e-8)}
        if rivals.has_cvxpylayers():
            found[LAYER] = rivals.by_cvxpylayers(program)
    return found


def gradients(program: Program, effort: Effort, axes: tuple | None = None) -> dict[str, Callable]:
    """Return each library's gradient of ``sum(x**2) / 2`` in `c`; of a batch, along `axes`."""

    def gradient(solution):
        return jax.grad(lambda c, program: jnp.sum(solution(c, program) ** 2) / 2)

    made = {
        name: gradient(solution)
        for name, solution in solutions(program, others=not effort.toy).items()
    }
    if axes is None:
        return made
    return {name: f if name == LAYER else jax.vmap(f, axes) for name, f in made.items()}


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Quadratic programs")
    if not rivals.has_cvxpylayers():
        section.note = rivals.CVXPYLAYERS_MISSING + "."
    for size in (5,) if effort.toy else SIZES:
        program, truth = random_program(size)
        title = f"Gradient through a random program, n = {size}"
        variants, inputs = gradients(program, effort), (program.c, program)
        compare(section, Comparison(title, variants, inputs, truth, eager=(LAYER,)), effort)
    count = 4 if effort.toy else BATCH
    program, _ = control_programs(count)
    axes = (0, Program(None, 0, None, None, None, None))
    # The reference solves to rounding, and differentiates there.
    precise = by_iterdiff(1e-11, itd.Implicit(refine=2))
    loss = jax.grad(lambda c, program: jnp.sum(precise(c, program) ** 2) / 2)
    truth = jax.jit(jax.vmap(loss, axes))(program.c, program)
    title, variants = f"Batch of {count} programs", gradients(program, effort, axes)
    comparison = Comparison(title, variants, (program.c, program), truth, eager=(LAYER,))
    rows = compare(section, comparison, effort)
    section.tables.append(edges.table(others=not effort.toy))
    if not effort.toy:
        ours, other = named(rows, OURS), best(rows)  # however wrong it is
        section.measurements.append(
            Measurement(
                TARGET,
                ours.seconds / other.seconds,
                other.name,
                1.0,
                f"error {ours.error:.1e}, of the other {other.error:.1e}",
            )
        )
    return section
