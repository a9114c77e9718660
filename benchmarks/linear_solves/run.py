"""Large adjoint solves: preconditioned against not, and warm-started against not.

The gradient of a mean over a part of the square, in the parameters of `convection_diffusion`.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import Effort
from benchmarks.harness.results import OURS, Column, Section, Table
from benchmarks.linear_solves.convection_diffusion import Case
from iterdiff.linalg.dense_or_krylov import Limits

THETA = np.array([1.0, 100.0, 50.0])
"""The reaction rate, and the strengths of the sources."""
LARGE = 500
"""Points in a row: 250,000 unknowns."""
SEQUENCE_POINTS = 24
"""Of the sequence: 576 unknowns, so that factors are an alternative."""
SEQUENCE_LENGTH = 50
"""Gradients of nearby problems."""
CHANGE = 0.02
"""Relative change of the parameters from one problem to the next."""
RECYCLED = 3
"""Adjoints that are kept besides the last one."""
PATIENCE = 300
"""Products that GMRES takes before it has to make progress, in each of two attempts. The default is
1000, which only takes longer to fail here."""
FOREIGN_MAX_STEPS = 20_000
"""Of lineax's solver, which takes two products a step."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One gradient.

    Attributes
    ----------
    products : int
        With the matrix or its transpose.
    seconds : float
        Of the compiled program.
    error : float
        Relative, in Euclidean norm; NaN if the solve failed.
    """

    products: int
    seconds: float
    error: float


def variants(case: Case) -> dict[str, itd.Implicit]:
    """Return the ways to solve, by name."""
    patient = itd.DenseOrKrylov(limits=Limits(trial_max_products=PATIENCE))
    foreign = lx.BiCGStab(1e-10, 1e-10, max_steps=FOREIGN_MAX_STEPS)
    return {
        f"{OURS} GMRES(50), no preconditioner": itd.Implicit(patient),
        f"{OURS} GMRES(50), sine transforms": itd.Implicit(preconditioner=case.fast),
        "lineax BiCGStab, no preconditioner": itd.Implicit(foreign),
        "lineax BiCGStab, sine transforms": itd.Implicit(foreign, preconditioner=case.fast),
    }


def once(case: Case, mode: itd.Implicit, u: np.ndarray, exact: np.ndarray) -> Run:
    """Return what one gradient takes after its program is compiled, and how wrong it is."""
    given = jnp.asarray(THETA), jnp.asarray(u)
    program = case.gradient(mode).lower(*given).compile()
    case.products.take()
    start = time.perf_counter()
    found = np.asarray(program(*given))
    seconds = time.perf_counter() - start
    error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    return Run(case.products.take(), seconds, error)


def preconditioned(n: int) -> Table:
    """Return the table of single gradients on a grid of n by n points."""
    case = Case(n)
    u, _, exact = case.exactly(THETA)
    rows: list[list[Any]] = []
    for name, mode in variants(case).items():
        run = once(case, mode, u, exact)
        failed = math.isnan(run.error)
        rows.append([name, run.products, run.seconds, "refused" if failed else f"{run.error:.1e}"])
    columns = [
        Column("solver"),
        Column("products", "count"),
        Column("time", "s"),
        Column("relative error of the gradient"),
    ]
    note = (
        f"{n**2:,} unknowns, float64, not symmetric. Products are those with the matrix or its "
        "transpose. *Refused*: the solve did not converge, and the derivative is NaN or an "
        f"exception; without a preconditioner, GMRES gives up where {PATIENCE} products do not "
        "predict an end. The true gradient comes from a sparse LU."
    )
    return Table("One gradient, preconditioned and not", columns, rows, note)


def sequence(n: int, length: int) -> Table:
    """Return the table of gradients of nearby problems."""
    case = Case(n)
    path = [THETA * (1 + CHANGE * k) for k in range(length)]
    solved = [case.exactly(theta) for theta in path]
    start, x0 = itd.AdjointState.start, jnp.zeros((n, n))
    kept = {
        "nothing: each solve starts from zero": None,
        "the last adjoint": start(x0),
        f"the last {RECYCLED + 1} adjoints": start(x0, recycle=RECYCLED),
        "factors, and the last adjoint": start(x0, factors=True),
        f"factors, and the last {RECYCLED + 1} adjoints": start(x0, recycle=RECYCLED, factors=True),
    }
    rows: list[list[Any]] = []
    for name, begin in kept.items():
        first, others, seconds, error = _along(case, path, solved, begin)
        without = rows[0][2] if rows else others
        rows.append([name, first, others, f"{1 - others / without:.0%}", seconds, error])
    columns = [
        Column("handed from solve to solve"),
        Column("products of the first", "count"),
        Column("products of the others", "count"),
        Column("of these saved"),
        Column("time", "s"),
        Column("largest relative error", "error"),
    ]
    note = (
        f"{length} gradients, {n**2:,} unknowns; the parameters change by {CHANGE:.0%} of their "
        "first values from one to the next. Preconditioned by sine transforms, or by the factors: "
        f"to form the matrix for these takes {n**2:,} of the first products."
    )
    return Table("A sequence of nearby problems", columns, rows, note)


def _along(case: Case, path: list, solved: list, begin: itd.AdjointState | None) -> tuple:
    """Return products of the first solve and of the others, seconds, and the largest error.

    Each solve starts from zero if `begin` is None.
    """
    step, warm = _gradient_with_state(case), begin is not None
    begin = itd.AdjointState.start(jnp.zeros((case.n, case.n))) if begin is None else begin
    jax.block_until_ready(step(jnp.asarray(path[0]), begin, jnp.asarray(solved[0][0])))
    case.products.take()
    state, seconds, errors, products = begin, 0.0, [], []
    for theta, (u, _, exact) in zip(path, solved, strict=True):
        given = jnp.asarray(theta), state if warm else begin, jnp.asarray(u)
        start = time.perf_counter()
        _, gradient, state = jax.block_until_ready(step(*given))
        seconds += time.perf_counter() - start
        products.append(case.products.take())
        errors.append(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))
    return products[0], sum(products[1:]), seconds, float(max(errors))


def _gradient_with_state(case: Case) -> Callable:
    """Return the compiled function ``(theta, state, u) -> value, gradient, next state``."""
    weights, problem = jnp.asarray(case.weights), case.problem()

    def loss(theta, state, u):
        if state.factors is None:
            solver = itd.DenseOrKrylov(matrix_free=True)
            mode = itd.Implicit(solver, guess=state, preconditioner=case.fast)
        else:
            mode = itd.Implicit(guess=state)
        return jnp.vdot(weights, mode.attach(problem, u, theta, throw=True))

    return jax.jit(itd.value_and_grad_with_state(loss))


def run(effort: Effort) -> Section:
    """Run everything; smaller grids with a small effort."""
    small = effort.toy or effort.rounds < Effort().rounds
    tables = [
        preconditioned(LARGE // 10 if small else LARGE),
        sequence(SEQUENCE_POINTS, SEQUENCE_LENGTH),
    ]
    return Section("Large adjoint solves", tables=tables)
