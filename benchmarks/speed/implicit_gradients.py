"""The implicit gradient at a converged point, with the default settings of every library.

Some of the seven problems favour a factorisation, others conjugate gradients. Every variant
starts at the solution, so that only the derivative is timed. The unit is one evaluation of the
residual. The truths are dense factorisations in NumPy with one step of iterative refinement.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import Comparison, Effort, Row, best, compare, named
from benchmarks.harness.results import Measurement, Section
from benchmarks.harness.targets import IMPLICIT, TARGETS, against
from benchmarks.harness.units import number
from benchmarks.speed import problems
from benchmarks.speed.case import Case, Data

KRYLOV_RTOL = 1e-10
"""Relative tolerance of the hand-written Krylov variants."""

LARGEST_ERROR = TARGETS[f"implicit error {IMPLICIT[0]}"].limit
"""Times of less accurate variants are not compared with."""

Solve = Callable[[Case, Any, Any, Data, Any], Any]
"""``solve(case, x, theta, data, rhs)`` solves with the transpose of d residual / dx."""


def by_hand(case: Case, solve: Solve) -> Callable:
    """Return the implicit gradient with a given linear solve."""

    def gradient(x, theta, data):
        adjoint = solve(case, x, theta, data, jax.grad(case.loss)(x, data))
        return -jax.vjp(lambda t: case.residual(x, t, data), theta)[1](adjoint)[0]

    return gradient


def krylov(case, x, theta, data, rhs):
    """Solve by JAX's conjugate gradients, or its restarted GMRES for nonsymmetric problems."""

    def residual(x):
        return case.residual(x, theta, data)

    options = {"tol": KRYLOV_RTOL, "atol": 0.0}
    if case.objective is not None:
        return jax.scipy.sparse.linalg.cg(jax.linearize(residual, x)[1], rhs, **options)[0]
    pull = jax.vjp(residual, x)[1]
    return jax.scipy.sparse.linalg.gmres(lambda v: pull(v)[0], rhs, restart=50, **options)[0]


def factored(case, x, theta, data, rhs):
    """Form the Jacobian by its formula and factor it."""
    return _dense(case, case.jacobian(x, theta, data), rhs)


def factored_by_jax(case, x, theta, data, rhs):
    """Form the Jacobian by `jax.jacfwd` and factor it."""
    return _dense(case, jax.jacfwd(case.residual)(x, theta, data), rhs)


def _dense(case, matrix, rhs):
    if case.objective is None:
        return jnp.linalg.solve(matrix.T, rhs)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix, lower=True), rhs)


def by_jaxopt(case: Case) -> Callable:
    """Return jaxopt's implicit gradient; the solver returns its start, the solution."""

    def gradient(x, theta, data):
        from jaxopt import implicit_diff

        solver = implicit_diff.custom_root(case.residual)(lambda x, *_: x)
        return jax.grad(lambda t: case.loss(solver(x, t, data), data))(theta)

    return gradient


def by_optimistix(case: Case) -> Callable:
    """Return optimistix's implicit gradient; the solver returns its start, the solution."""

    def gradient(x, theta, data):
        import optimistix as optx

        def residual(x, inputs):
            return case.residual(x, *inputs)

        def loss(t):
            solution = optx.root_find(residual, _stopping_at_once(optx), x, (t, data))
            return case.loss(solution.value, data)

        return jax.grad(loss)(theta)

    return gradient


def _stopping_at_once(optx: Any) -> Any:
    """Return a root finder of optimistix that stops where it starts."""

    class StopsAtOnce(optx.AbstractRootFinder):
        rtol: float = 1e-8
        atol: float = 1e-8
        norm: Callable = optx.max_norm

        def init(self, fn, y, args, options, f_struct, aux_struct, tags):
            del fn, y, args, options, f_struct, aux_struct, tags
            return jnp.array(True)

        def step(self, fn, y, args, options, state, tags):
            del fn, args, options, tags
            return y, state, None

        def terminate(self, fn, y, args, options, state, tags):
            del fn, y, args, options, tags
            return state, optx.RESULTS.successful

        def postprocess(self, fn, y, aux, args, options, state, tags, result):
            del fn, args, options, state, tags, result
            return y, aux, {}

    return StopsAtOnce()


def by_iterdiff(case: Case) -> Callable:
    """Return our implicit gradient; the solver returns its start, the solution."""

    def gradient(x, theta, data):
        solver = itd.implicit(case.problem(data))(lambda x0, _: x0)
        return jax.grad(lambda t: case.loss(solver(x, t), data))(theta)

    return gradient


UNIT = "one evaluation of the residual"
DEFAULT = "iterdiff Implicit()"


def comparison(case: Case) -> Comparison:
    """Compare implicit gradients; all arrays of a batch have the batch as first axis."""
    symmetric = case.objective is not None
    label, factor = ("conjugate gradients", "Cholesky") if symmetric else ("GMRES", "LU")
    variants = {
        UNIT: case.residual,
        f"by hand: {label} to {KRYLOV_RTOL:.0e}": by_hand(case, krylov),
        f"by hand: formula of the Jacobian, {factor}": by_hand(case, factored),
        f"by hand: jax.jacfwd of the residual, {factor}": by_hand(case, factored_by_jax),
        "jaxopt custom_root, defaults": by_jaxopt(case),
        "optimistix ImplicitAdjoint, defaults": by_optimistix(case),
        DEFAULT: by_iterdiff(case),
    }
    if case.theta.ndim > 1:
        variants = {name: jax.vmap(function) for name, function in variants.items()}
    title = f"Implicit gradient at the solution: {case.name}"
    inputs = case.solution, case.theta, case.data
    return Comparison(title, variants, inputs, case.gradient, timed_only=(UNIT,))


def batch(count: int, samples: int = 50, size: int = 10) -> Case:
    """Return a stack of small logistic regressions with different data."""
    cases = [
        problems.logistic("", problems.synthetic("signs", samples, size, seed), 1e-2)
        for seed in range(count)
    ]
    stacked = {
        name: jax.tree.map(
            lambda *leaves: jnp.asarray(np.stack(leaves)), *(getattr(one, name) for one in cases)
        )
        for name in ("data", "theta", "solution", "gradient")
    }
    return dataclasses.replace(cases[0], name=IMPLICIT[-1], **stacked)


def cases(toy: bool) -> dict[str, Callable[[], Case]]:
    """Return functions that build the problems, by the names of the targets."""
    breast_cancer, synthetic = problems.breast_cancer, problems.synthetic
    logistic, ridge, layer = problems.logistic, problems.ridge, problems.layer
    builders = (
        lambda name: logistic(name, breast_cancer(), 1e-2),
        lambda name: ridge(name, breast_cancer(), 1e-2),
        lambda name: logistic(name, synthetic("signs", 20_000, 500), 1e-3),
        lambda name: ridge(name, synthetic("ill", 500, 500), 1e-8),
        lambda name: ridge(name, synthetic("numbers", 4000, 5000), 1e-2),
        lambda _: layer(20 if toy else 1000),
        lambda _: batch(3 if toy else 1000),
    )
    made = {n: lambda n=n, build=b: build(n) for n, b in zip(IMPLICIT, builders, strict=True)}
    return {name: made[name] for name in made if not toy or name in TOY_CASES}


TOY_CASES = (IMPLICIT[0], *IMPLICIT[-2:])


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Implicit gradients at convergence")
    for name, build in cases(effort.toy).items():
        rows = compare(section, comparison(build()), effort)
        if not effort.toy:
            section.measurements += _targets(name, rows)
    return section


def _targets(name: str, rows: list[Row]) -> list[Measurement]:
    ours, fastest = named(rows, DEFAULT), best(rows, LARGEST_ERROR)
    note = f"{number(ours.ratio)} evaluations"
    peers = [row for row in rows if row.name.startswith(("jaxopt", "optimistix"))]
    worst = max(peers, key=lambda row: row.error or 0.0)
    return [
        against(f"implicit {name}", ours.ratio / fastest.ratio, fastest.name, 1.0, note),
        against(f"implicit error {name}", ours.error, worst.name, worst.error),
    ]
