"""The full Jacobian at every iterate of gradient descent, beside hand-written variants.

Small: ridge regression, 569 x 30, with 30 parameters. Wide: a quadratic with 2,000 unknowns and
200 parameters, each the log-penalty of a group of unknowns. The wide study also measures the peak
memory of fresh processes (``python -m benchmarks.speed.jacobian_trace NAME STEPS FILE``).
"""

import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.harness.fresh import fresh, peak_bytes
from benchmarks.harness.measure import Comparison, Effort, Row, best, compare, named
from benchmarks.harness.results import Column, Measurement, Section, Table
from benchmarks.harness.targets import against
from benchmarks.speed import problems
from benchmarks.speed.internals import trace_program

PROBES = 8


@dataclasses.dataclass(frozen=True)
class Study:
    """What is traced.

    Attributes
    ----------
    step : callable
        ``step(x, theta, data)``, the next iterate; all variants call it.
    problem, algorithm
        The same, as users of iterdiff state it.
    data, theta : arrays
        Inputs of the step.
    solution, jacobian : arrays
        The truth, of shapes (n,) and (n, p).
    recursion : callable
        ``recursion(data, theta)`` returns ``(x, J) -> (next x, next J)``; everything that does
        not depend on x is formed once, by hand.
    formula : callable
        ``formula(theta)``, the solution.
    others : callable, optional
        ``others(x, theta, data)``, what `itd.trace` records of an iterate in addition to errors.
    """

    step: Callable
    problem: itd.Problem
    algorithm: itd.Algorithm
    data: Any
    theta: jax.Array
    solution: jax.Array
    jacobian: jax.Array
    recursion: Callable
    formula: Callable
    others: Callable | None = None

    @property
    def inputs(self) -> tuple:
        """Arguments of the variants."""
        return self.theta, self.solution, self.jacobian, self.data

    def trace(self, steps: int, probes: int | None, call: Callable = itd.trace, **options) -> Any:
        """Return what `call` returns for the arguments of `itd.trace`."""
        return call(
            self.problem,
            self.algorithm,
            jnp.zeros_like(self.solution),
            self.theta,
            steps=steps,
            modes={"unrolled": itd.Unrolled()},
            probes=probes,
            **options,
        )


@functools.cache
def small() -> Study:
    """Return ridge regression on the breast-cancer data."""
    case = problems.ridge("ridge 569×30", problems.breast_cancer(), 1e-2)
    h, size = case.step_size, case.theta.size
    moment = case.data.targets @ case.data.features / case.data.features.shape[0]
    hessian = np.asarray(case.jacobian(case.solution, case.theta, case.data))
    truth = -np.linalg.solve(hessian, np.diag(np.exp(case.theta) * np.asarray(case.solution)))

    def recursion(data, theta):
        formed = jnp.eye(size) - h * problems.ridge_hessian(None, theta, data)
        shift = h * moment
        return lambda x, J: (formed @ x + shift, formed @ J - h * jnp.diag(jnp.exp(theta) * x))

    return Study(
        case.step,
        case.problem(case.data),
        itd.GradientDescent(h),
        case.data,
        case.theta,
        case.solution,
        jnp.asarray(truth),
        recursion,
        lambda theta: jnp.linalg.solve(problems.ridge_hessian(None, theta, case.data), moment),
        lambda *at: (case.objective(*at), jnp.linalg.norm(case.residual(*at))),
    )


WIDE_STEP = 1 / (1 + 1e-3)


@functools.cache
def wide_arrays(size: int = 2000, count: int = 200) -> dict[str, np.ndarray]:
    """Return matrix, right-hand side, groups, parameters and truth of the wide study."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = (basis * np.logspace(-3, 0, size)) @ basis.T
    matrix = (matrix + matrix.T) / 2
    rhs, theta = rng.standard_normal(size), np.full(count, np.log(1e-3))
    groups = np.arange(size) % count
    weights = np.exp(theta)
    shifted = matrix + np.diag(weights[groups])
    x = np.linalg.solve(shifted, rhs)
    member = np.equal.outer(groups, np.arange(count))
    truth = -np.linalg.solve(shifted, member * x[:, None] * weights)
    return {"matrix": matrix, "rhs": rhs, "groups": groups, "theta": theta, "x": x, "truth": truth}


def wide(arrays: Mapping[str, np.ndarray]) -> Study:
    """Return a quadratic whose gradient is one product with a dense matrix."""
    matrix, rhs, groups, theta, x, truth = map(jnp.asarray, arrays.values())

    def step(x, theta, data):
        matrix, rhs, groups = data
        return x - WIDE_STEP * (matrix @ x + jnp.exp(theta)[groups] * x - rhs)

    def recursion(data, theta):
        matrix, _, groups = data
        column = jnp.exp(theta)[groups][:, None]
        chosen = jnp.where(groups[:, None] == jnp.arange(theta.size)[None, :], column, 0.0)

        def both(x, J):
            change = matrix @ J + column * J + chosen * x[:, None]
            return step(x, theta, data), J - WIDE_STEP * change

        return both

    problem = itd.LinearSystem(
        lambda x, theta: matrix @ x + jnp.exp(theta)[groups] * x,
        lambda _: rhs,
        symmetric=True,
        positive_definite=True,
    )
    return Study(
        step,
        problem,
        itd.Richardson(WIDE_STEP),
        (matrix, rhs, groups),
        theta,
        x,
        truth,
        recursion,
        lambda theta: jnp.linalg.solve(matrix + jnp.diag(jnp.exp(theta)[groups]), rhs),
    )


# Variants: functions of (theta, solution, truth, data). Each records the norm of the Jacobian's
# error at T iterates: ours before each step, the others after it. The answers that are compared
# are those after 1, ..., T - 1 steps.


def primal(study: Study, steps: int) -> Callable:
    """Return the errors of the iterates, without derivatives."""

    def errors(theta, solution, _, data):
        def body(x, _):
            x = study.step(x, theta, data)
            return x, jnp.linalg.norm(x - solution)

        return jax.lax.scan(body, jnp.zeros_like(solution), None, steps)[1]

    return errors


def by_history(study: Study, steps: int) -> Callable:
    """Return the errors from `jax.jacfwd` of all stored iterates."""

    def errors(theta, solution, truth, data):
        def history(theta):
            def body(x, _):
                x = study.step(x, theta, data)
                return x, x

            return jax.lax.scan(body, jnp.zeros_like(solution), None, steps)[1]

        gaps = jax.jacfwd(history)(theta) - truth[None]
        return jnp.sqrt(jnp.sum(gaps**2, axis=(1, 2)))[:-1]

    return errors


def carried(study: Study, steps: int, how: str) -> Callable:
    """Return the errors of a Jacobian that the scan carries.

    Parameters
    ----------
    how : {"products", "columns", "formed", "once"}
        "products": one product with dF/dx per parameter, batched along the first axis; "columns":
        along the last axis; "formed": dF/dx is formed at each step; "once": it is formed by hand,
        once.
    """
    last = how in ("columns", "once")

    def errors(theta, solution, truth, data):
        def body(carry, _):
            x, jacobian = advance(*carry)
            difference = jacobian - truth if last else jacobian - truth.T
            return (x, jacobian), (jnp.linalg.norm(difference), jnp.linalg.norm(x - solution))

        advance = _advance(study, theta, data, how, solution.size)
        start = jnp.zeros_like(truth if last else truth.T)
        return jax.lax.scan(body, (jnp.zeros_like(solution), start), None, steps)[1][0][:-1]

    return errors


def _advance(study: Study, theta: Any, data: Any, how: str, size: int) -> Callable:
    """Return ``(x, J) -> (next x, next J)`` as `carried` describes it."""
    if how == "once":
        return study.recursion(data, theta)
    directions, basis = jnp.eye(theta.size), jnp.eye(size)

    def advance(x, jacobian):
        def push(dx, v):
            return jax.jvp(lambda x, t: study.step(x, t, data), (x, theta), (dx, v))

        if how == "products":
            return jax.vmap(push, out_axes=(None, 0))(jacobian, directions)
        if how == "columns":
            return jax.vmap(push, in_axes=1, out_axes=(None, 1))(jacobian, directions)
        formed = jax.vmap(lambda v: push(v, jnp.zeros_like(theta))[1])(basis)
        direct = jax.vmap(lambda v: push(jnp.zeros_like(x), v)[1])(directions)
        return study.step(x, theta, data), jacobian @ formed + direct

    return advance


def recorded(study: Study, steps: int) -> Callable:
    """Return the errors by the recursion along the step's iterates, recording all of `trace`."""

    def errors(theta, solution, truth, data):
        assert study.others is not None
        update, others = study.recursion(data, theta), study.others

        def body(carry, _):
            x, jacobian = carry
            norms = jnp.linalg.norm(jacobian - truth), jnp.linalg.norm(x - solution)
            row = jnp.stack([*norms, *others(x, theta, data)])
            return (study.step(x, theta, data), update(x, jacobian)[1]), row

        start = jnp.zeros_like(solution), jnp.zeros_like(truth)
        return jax.lax.scan(body, start, None, steps)[1][1:, 0]

    return errors


def by_trace(study: Study, steps: int, probes: int | None = None) -> Callable:
    """Return the errors by the compiled program of `itd.trace`."""
    program = study.trace(steps, probes, trace_program, reference=study.formula)
    return lambda *_: program()[1:, -1]  # the last number of a record


CARRIED = {
    "by hand: carry p products with dF/dx": "products",
    "by hand: the same, parameters last": "columns",
    "by hand: recursion, dF/dx formed at each step": "formed",
    "by hand: recursion, dF/dx formed once": "once",
}
PRODUCTS = next(iter(CARRIED))
PRIMAL = "primal: errors of the iterates"
RECORDED = "by hand: the same along the step's iterates, recording all that trace does"
FULL = "iterdiff trace"
PROBED = f"iterdiff trace, probes={PROBES}"


def variants(study: Study, steps: int, probed: bool) -> dict[str, Callable]:
    """Return all ways to trace, the primal first."""
    made = {
        PRIMAL: primal(study, steps),
        "jacfwd of the stored history": by_history(study, steps),
        **{name: carried(study, steps, how) for name, how in CARRIED.items()},
        FULL: by_trace(study, steps),
    }
    if study.others is not None:
        made[RECORDED] = recorded(study, steps)
    if probed:
        made[PROBED] = by_trace(study, steps, PROBES)
    return made


def comparison(study: Study, steps: int) -> Comparison:
    """Compare all ways to trace; the truth is the recursion, step by step."""
    n, p = study.jacobian.shape
    step = jax.jit(lambda pair, theta, data: study.recursion(data, theta)(*pair))
    pair, truth = (jnp.zeros_like(study.solution), jnp.zeros_like(study.jacobian)), []
    for _ in range(steps - 1):
        pair = step(pair, study.theta, study.data)
        truth.append(float(jnp.linalg.norm(pair[1] - study.jacobian)))
    title = f"Jacobian trace: {n:,} unknowns, {p} parameters, {steps:,} steps"
    made = variants(study, steps, probed=n != p)
    return Comparison(title, made, study.inputs, np.asarray(truth), timed_only=(PRIMAL, PROBED))


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Jacobian trace")
    if effort.toy:
        compare(section, comparison(wide(wide_arrays(12, 3)), 6), effort)
        return section
    rows = compare(section, comparison(small(), 2000), effort)
    effort = dataclasses.replace(effort, rounds=5)
    wide_rows = compare(section, comparison(wide(wide_arrays()), 40), effort)
    section.measurements += _targets(rows, wide_rows)
    peaks = peak_table(500)
    section.tables.append(peaks)
    ours, other = (
        dict(zip(peaks.column("variant"), peaks.column("peak"), strict=True))[name]
        for name in (FULL, PRODUCTS)
    )
    section.measurements.append(against("trace wide peak", ours, PRODUCTS, other))
    return section


def _targets(rows: list[Row], wide_rows: list[Row]) -> list[Measurement]:
    ours, fastest = named(rows, FULL).ratio, best(rows)
    wide_ours, wide_best = named(wide_rows, FULL).ratio, best(wide_rows)
    wide_carried = best([row for row in wide_rows if row.name in CARRIED])
    probed = named(wide_rows, PROBED).ratio
    return [
        against("trace small", ours, fastest.name, fastest.ratio),
        against("trace small best", ours / fastest.ratio, fastest.name, 1.0),
        against("trace wide time", wide_ours / wide_carried.ratio, wide_carried.name, 1.0),
        against("trace wide best", wide_ours / wide_best.ratio, wide_best.name, 1.0),
        against("trace probes", probed, "the primal", 1.0),
    ]


# Peak memory of fresh processes


def peak_table(steps: int) -> Table:
    """Measure time and peak memory of fresh processes that run one variant each."""
    arrays = wide_arrays()
    n, p = arrays["truth"].shape
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "wide.npz"
        np.savez(file, **arrays)
        for name in (PRIMAL, PRODUCTS, FULL, PROBED):
            found = fresh("benchmarks.speed.jacobian_trace", name, str(steps), str(file))
            rows.append([name, found["seconds"], found["peak"] / 1e6])
    return Table(
        f"Peak memory of a fresh process: {n:,} unknowns, {p} parameters, {steps} steps",
        [Column("variant"), Column("time", "s"), Column("peak", "MB")],
        rows,
        "One run each, including compilation; of ours the whole call of `trace`, including the "
        "true Jacobian. The peak includes Python, the libraries and the data.",
    )


def run_alone(name: str, steps: int, file: str) -> dict[str, float]:
    """Run one variant of the wide study once in this process, including compilation."""
    study = wide(np.load(file))
    start = time.perf_counter()
    if name in (FULL, PROBED):
        study.trace(steps, PROBES if name == PROBED else None)
    else:
        function = primal(study, steps)
        if name in CARRIED:
            function = carried(study, steps, CARRIED[name])
        jax.block_until_ready(jax.jit(function)(*study.inputs))
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes()}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps(run_alone(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
