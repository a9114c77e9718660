"""What each library returns where a program has a one-sided derivative, or none.

Programs of two unknowns in one parameter, t. The right one-sided derivatives are differences of
exact solutions, which are found by trying all active sets.
"""

from collections.abc import Callable
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.constraints import rivals
from benchmarks.constraints.rivals import Program
from benchmarks.harness.results import Column, Table

AT = 1.0
"""The parameter at which derivatives are taken."""

STEP = 1e-4
"""Step of the one-sided differences; between the edges the solutions are affine in t."""

FEASIBLE_MAX_EXCESS = 1e-9
"""A point violates a constraint, and a multiplier its sign, beyond this size."""


def _program(Q, c, rows) -> Callable[[float], Program]:
    """Return a program as a function of t; c, and the bound of each row, are (value, slope)."""
    linear, moved = map(np.asarray, c)
    G, h, slope = (np.asarray(part, float) for part in zip(*rows, strict=True))

    def at(t):
        zero = np.zeros((0, 2)), np.zeros(0)
        return Program(np.diag(Q), linear + (t - AT) * moved, *zero, G, h + (t - AT) * slope)

    return at


STILL, LP = ([-2.0, 0.0], [0.0, 0.0]), ([-1.0, -2.0], [-1.0, 1.0])
BOUND, OTHER = ([1.0, 0.0], 1.0, 1.0), ([0.0, 1.0], 1.0, 0.0)
FIXED = ([1.0, 0.0], 1.0, 0.0)
POINTS = {
    "regular": _program([1.0, 1.0], STILL, [BOUND, OTHER]),
    "weakly active": _program([1.0, 1.0], ([-1.0, 0.0], [0.0, 0.0]), [BOUND, OTHER]),
    "one constraint twice": _program([1.0, 1.0], STILL, [BOUND, BOUND]),
    "twice, moved apart": _program([1.0, 1.0], STILL, [BOUND, ([1.0, 0.0], 1.0, 2.0)]),
    "vertex of a linear program": _program([0.0, 0.0], LP, [FIXED, OTHER]),
    "vertex that moves": _program([0.0, 0.0], LP, [BOUND, OTHER]),
}
"""Programs by what is special about them."""


def exact(program: Program) -> np.ndarray:
    """Return the solution: the first active set whose point satisfies the KKT conditions."""
    Q, c, _, _, G, h = map(np.asarray, program)
    for count in range(len(G) + 1):
        for chosen in map(list, combinations(range(len(G)), count)):
            rows = G[chosen]
            kkt = np.block([[Q, rows.T], [rows, np.zeros((count, count))]])
            if np.linalg.matrix_rank(kkt) < len(kkt):
                continue
            found = np.linalg.solve(kkt, np.concatenate([-c, h[chosen]]))
            x, multipliers = found[:2], found[2:]
            excess = np.max(G @ x - h, initial=-np.inf)
            if max(excess, np.max(-multipliers, initial=-np.inf)) <= FEASIBLE_MAX_EXCESS:
                return x
    raise ValueError("no active set is optimal")


def _right(at: Callable[[float], Program]) -> str:
    here = exact(at(AT))
    below, above = (exact(at(AT - STEP)) - here) / -STEP, (exact(at(AT + STEP)) - here) / STEP
    if np.allclose(below, above, atol=1e-6):
        return _shown(above)
    return f"none: {_shown(below)} below, {_shown(above)} above"


def _shown(derivative) -> str:
    numbers = np.asarray(derivative)
    return "NaN" if np.isnan(numbers).any() else f"[{', '.join(f'{v + 0.0:.3g}' for v in numbers)}]"


def _taken(solution: Callable) -> str:
    """Return what a library gives for the derivative in t, or the error that it raises."""
    try:
        # Row by row: cvxpylayers has no batching rule.
        pull = jax.vjp(solution, jnp.asarray(AT))[1]
        return _shown(np.round([pull(row)[0] for row in jnp.eye(2)], 6))
    except Exception as error:
        return f"raises {type(error).__name__}"


def _theirs(solution: Callable, at: Callable[[float], Program]) -> str:
    def of(t):
        program = Program(*map(jnp.asarray, at(t)))
        return solution(program.c, program)

    return _taken(of)


def _ours(at: Callable[[float], Program]) -> str:
    problem = itd.QuadraticProgram(at(AT).Q, lambda t: at(t).c, G=at(AT).G, h=lambda t: at(t).h)
    stop = itd.ResidualBelow(rtol=0.0, atol=1e-9, max_steps=500)

    def solve(t):
        return itd.solve(problem, itd.ADMM(), jnp.zeros(2), t, stop=stop)

    marked = np.any(solve(jnp.asarray(AT)).weakly_active)
    return _taken(lambda t: solve(t).x) + (", marked weakly active" if marked else "")


def table(others: bool = True) -> Table:
    """Return the table; without `others`, for iterdiff alone."""
    libraries: dict[str, Callable] = {"iterdiff": _ours}
    if others:
        jaxopt = rivals.by_jaxopt(1e-8)
        libraries["jaxopt OSQP"] = lambda at: _theirs(jaxopt, at)
        if rivals.has_cvxpylayers():
            libraries["cvxpylayers"] = lambda at: _theirs(
                rivals.by_cvxpylayers(Program(*map(np.asarray, at(AT)))), at
            )
    columns = [Column("point"), Column("right"), *map(Column, libraries)]
    rows = [[name, _right(at), *(f(at) for f in libraries.values())] for name, at in POINTS.items()]
    note = (
        "The derivative of x in t, in reverse mode, of programs with two unknowns. The right one "
        "is that of exact solutions, from either side."
    )
    return Table("What each returns at degenerate points", columns, rows, note)
