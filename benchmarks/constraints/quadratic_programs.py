"""Gradients through quadratic programs: ours, and jaxopt's OSQP with its implicit derivative.

The truth comes from the construction: minimiser, multipliers and active set are drawn first, and
the linear term and the right-hand sides follow. The gradient is one solve with the KKT matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import Comparison, Effort, best, compare, named
from benchmarks.harness.results import Measurement, Section, Target

SIZES = (5, 50, 200, 500)
"""Unknowns of a single program; it has as many inequalities, and a fifth as many equalities."""

BATCH, STATES, CONTROLS, HORIZON = 1000, 4, 2, 10
"""A batch of control problems: programs in 20 controls with 40 bounds, one for each start."""

OURS = "iterdiff ADMM, Implicit(refine=1)"
TIGHT = "iterdiff ADMM to 1e-9, Implicit()"
PEER = "jaxopt OSQP, implicit"
TARGET = Target("batch of 1,000 control problems", "≤ 1.2 × the fastest", 1.2)


class Program(NamedTuple):
    """The arrays of a quadratic program; in a batch, only `c` and `h` have one more axis."""

    Q: Any
    c: Any
    A: Any
    b: Any
    G: Any
    h: Any


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


def by_jaxopt(tol: float) -> Callable:
    """Return jaxopt's solution."""
    from jaxopt import OSQP

    def solution(c, program):
        solver = OSQP(tol=tol, maxiter=4000, check_primal_dual_infeasability=False)
        equalities = (program.A, program.b) if len(program.b) else None
        found = solver.run(
            params_obj=(program.Q, c), params_eq=equalities, params_ineq=(program.G, program.h)
        )
        return found.params.primal

    return solution


def gradients() -> dict[str, Callable]:
    """Return each library's gradient of ``sum(x**2) / 2`` in `c`."""
    solutions = {
        OURS: by_iterdiff(1e-5, itd.Implicit(refine=1)),
        TIGHT: by_iterdiff(1e-9, itd.Implicit()),
        f"{PEER}, tol=1e-4": by_jaxopt(1e-4),
        f"{PEER}, tol=1e-8": by_jaxopt(1e-8),
    }

    def gradient(solution):
        return jax.grad(lambda c, program: jnp.sum(solution(c, program) ** 2) / 2)

    return {name: gradient(solution) for name, solution in solutions.items()}


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Quadratic programs")
    for size in (5,) if effort.toy else SIZES:
        program, truth = random_program(size)
        title = f"Gradient through a random program, n = {size}"
        compare(section, Comparison(title, gradients(), (program.c, program), truth), effort)
    count = 4 if effort.toy else BATCH
    program, _ = control_programs(count)
    axes = (0, Program(None, 0, None, None, None, None))
    functions = {name: jax.vmap(f, axes) for name, f in gradients().items()}
    # The reference solves to rounding, and differentiates there.
    precise = by_iterdiff(1e-11, itd.Implicit(refine=2))
    loss = jax.grad(lambda c, program: jnp.sum(precise(c, program) ** 2) / 2)
    truth = jax.jit(jax.vmap(loss, axes))(program.c, program)
    comparison = Comparison(f"Batch of {count} programs", functions, (program.c, program), truth)
    rows = compare(section, comparison, effort)
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
