"""The full Jacobian at every iterate of gradient descent: two sizes, beside hand-written variants.

Small: ridge regression, 569 x 30, 30 parameters. Wide: a quadratic with 2,000 unknowns and 200
parameters, each a log-penalty of a group of unknowns; there the peak memory of fresh processes is
measured too (``python -m benchmarks.jacobian_trace NAME STEPS FILE``).
"""

import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks import problems
from benchmarks.fresh import fresh, peak_bytes
from benchmarks.harness import Effort, Row, Table, Variant, best, duration, measure, number, row
from benchmarks.sections import Section
from benchmarks.targets import Figure
from benchmarks.traced import compiled_core

PROBES = 8


@dataclasses.dataclass(frozen=True)
class Study:
    """What is traced.

    Attributes
    ----------
    step : callable
        ``step(x, theta, data)``, the next iterate; all variants call it.
    problem, algorithm
        The same, as a user of ours would state it.
    data, theta, solution, jacobian
        Arrays: the truth is of shapes (n,) and (n, p).
    recursion : callable
        ``recursion(data, theta)`` returns ``(x, J) -> (next x, next J)``, with everything that
        does not depend on x formed once, by hand.
    formula : callable
        ``formula(theta)``, the solution.
    others : callable, optional
        ``others(x, theta, data)`` returns what `itd.trace` records of an iterate besides errors.
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
    def inputs(self) -> Any:
        """What variants are called with."""
        return self.theta, self.solution, self.jacobian, self.data

    def trace(self, steps: int, probes: int | None = None, reference: Any = None) -> Any:
        """Return our trace."""
        return itd.trace(
            self.problem,
            self.algorithm,
            jnp.zeros_like(self.solution),
            self.theta,
            steps=steps,
            modes={"unrolled": itd.Unrolled()},
            reference=reference,
            probes=probes,
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


def stated(data: Any) -> itd.Problem:
    """Return the wide study's problem as a user of ours would state it."""
    matrix, rhs, groups = data
    return itd.LinearSystem(
        lambda x, theta: matrix @ x + jnp.exp(theta)[groups] * x,
        lambda _: rhs,
        symmetric=True,
        positive_definite=True,
    )


@functools.cache
def wide(size: int = 2000, count: int = 200) -> Study:
    """Return a quadratic whose gradient is one product with a dense matrix."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = (basis * np.logspace(-3, 0, size)) @ basis.T
    matrix = (matrix + matrix.T) / 2
    rhs, theta = rng.standard_normal(size), np.full(count, np.log(1e-3))
    groups = np.arange(size) % count
    member = np.zeros((size, count))
    member[np.arange(size), groups] = 1
    weights = np.exp(theta)
    shifted = matrix + np.diag(weights[groups])
    x = np.linalg.solve(shifted, rhs)
    truth = -np.linalg.solve(shifted, member * x[:, None] * weights)
    h = 1 / (1 + 1e-3)
    data = tuple(map(jnp.asarray, (matrix, rhs, groups)))

    step = functools.partial(_wide_step, h)

    def recursion(data, theta):
        matrix, _, groups = data
        column = jnp.exp(theta)[groups][:, None]
        chosen = jnp.where(groups[:, None] == jnp.arange(count)[None, :], column, 0.0)

        def both(x, J):
            change = matrix @ J + column * J + chosen * x[:, None]
            return step(x, theta, data), J - h * change

        return both

    return Study(
        step,
        stated(data),
        itd.Richardson(h),
        data,
        jnp.asarray(theta),
        jnp.asarray(x),
        jnp.asarray(truth),
        recursion,
        lambda theta: jnp.linalg.solve(data[0] + jnp.diag(jnp.exp(theta)[groups]), data[1]),
    )


# Variants. Each records the norm of the Jacobian's error after as many steps as it takes: ours
# before each step, the others after it. What is compared is what both have: after 1, ..., T - 1.


def primal(study: Study, steps: int, inputs: Any) -> Any:
    """Return the errors of the iterates alone."""
    theta, solution, _, data = inputs

    def body(x, _):
        x = study.step(x, theta, data)
        return x, jnp.linalg.norm(x - solution)

    return jax.lax.scan(body, jnp.zeros_like(solution), None, steps)[1]


def by_history(study: Study, steps: int, inputs: Any) -> Any:
    """Return the errors from ``jacfwd`` of all iterates, stored."""
    theta, solution, truth, data = inputs

    def history(theta):
        def body(x, _):
            x = study.step(x, theta, data)
            return x, x

        return jax.lax.scan(body, jnp.zeros_like(solution), None, steps)[1]

    return jnp.sqrt(jnp.sum((jax.jacfwd(history)(theta) - truth[None]) ** 2, axis=(1, 2)))[:-1]


def carried(study: Study, steps: int, inputs: Any, how: str) -> Any:
    """Return the errors of a Jacobian that is carried along, its parameters first.

    Parameters
    ----------
    how : {"products", "columns", "formed", "once"}
        One product with dF/dx for each parameter, batched along the first or the last axis;
        dF/dx formed anew at each step; or formed by hand, once.
    """
    theta, solution, truth, data = inputs
    directions = jnp.eye(theta.size)
    basis = jnp.eye(solution.size)
    last = how in ("columns", "once")
    update = study.recursion(data, theta) if how == "once" else None

    def next_jacobian(x, jacobian):
        def push(dx, v):
            return jax.jvp(lambda x, t: study.step(x, t, data), (x, theta), (dx, v))

        if how == "products":
            return jax.vmap(push, out_axes=(None, 0))(jacobian, directions)
        if how == "columns":
            return jax.vmap(push, in_axes=1, out_axes=(None, 1))(jacobian, directions)
        if update is not None:
            return update(x, jacobian)
        formed = jax.vmap(lambda v: push(v, jnp.zeros_like(theta))[1])(basis)
        direct = jax.vmap(lambda v: push(jnp.zeros_like(x), v)[1])(directions)
        return study.step(x, theta, data), jacobian @ formed + direct

    def body(carry, _):
        x, jacobian = next_jacobian(*carry)
        difference = jacobian - truth if last else jacobian - truth.T
        return (x, jacobian), (jnp.linalg.norm(difference), jnp.linalg.norm(x - solution))

    start = jnp.zeros_like(truth if last else truth.T)
    return jax.lax.scan(body, (jnp.zeros_like(solution), start), None, steps)[1][0][:-1]


def followed(study: Study, steps: int, inputs: Any) -> Any:
    """Return the errors by the recursion, along the iterates that the step itself makes.

    All that `itd.trace` records is recorded.
    """
    theta, solution, truth, data = inputs
    assert study.others is not None
    update, others = study.recursion(data, theta), study.others

    def body(carry, _):
        x, jacobian = carry
        recorded = jnp.linalg.norm(jacobian - truth), jnp.linalg.norm(x - solution)
        recorded = jnp.stack([*recorded, *others(x, theta, data)])
        return (study.step(x, theta, data), update(x, jacobian)[1]), recorded

    start = jnp.zeros_like(solution), jnp.zeros_like(truth)
    return jax.lax.scan(body, start, None, steps)[1][1:, 0]


CARRIED = {
    "by hand: carry p products with dF/dx": "products",
    "by hand: the same, parameters last": "columns",
    "by hand: recursion, dF/dx formed at each step": "formed",
    "by hand: recursion, dF/dx formed once": "once",
}
FOLLOWED = "by hand: the same along the step's iterates, recording all that trace does"
FULL = "iterdiff trace"
PROBED = f"iterdiff trace, probes={PROBES}"


def variants(study: Study, steps: int, probed: bool) -> tuple[Variant, ...]:
    """Return all ways to trace, the primal first."""
    made = [
        Variant("primal: errors of the iterates", functools.partial(primal, study, steps), False),
        Variant("jacfwd of the stored history", functools.partial(by_history, study, steps)),
        *(
            Variant(name, functools.partial(carried, study, steps, how=how))
            for name, how in CARRIED.items()
        ),
        Variant(FULL, _ours(study, steps, None)),
    ]
    if study.others is not None:
        made.append(Variant(FOLLOWED, functools.partial(followed, study, steps)))
    if probed:
        made.append(Variant(PROBED, _ours(study, steps, PROBES), answers=False))
    return tuple(made)


def _ours(study: Study, steps: int, probes: int | None) -> Callable:
    core = compiled_core(lambda: study.trace(steps, probes, study.formula))
    return lambda inputs: core(inputs)[1:, -1]  # the last number of a record


def alone(name: str, steps: int, file: str) -> dict[str, Any]:
    """Run one variant of the wide study once in this process, compiling included.

    Ours is the whole call of `iterdiff.trace`, which computes the true Jacobian itself.
    """
    stored = np.load(file)
    data = tuple(jnp.asarray(stored[key]) for key in ("matrix", "rhs", "groups"))
    theta, x, truth = (jnp.asarray(stored[key]) for key in ("theta", "x", "truth"))
    h = float(stored["h"])
    study = Study(
        functools.partial(_wide_step, h),
        stated(data),
        itd.Richardson(h),
        data,
        theta,
        x,
        truth,
        lambda *_: None,
        lambda _: x,
    )
    start = time.perf_counter()
    if name in (FULL, PROBED):
        study.trace(steps, PROBES if name == PROBED else None)
    elif name in CARRIED:
        function = functools.partial(carried, study, steps, how=CARRIED[name])
        jax.block_until_ready(jax.jit(function)(study.inputs))
    else:
        jax.block_until_ready(jax.jit(functools.partial(primal, study, steps))(study.inputs))
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes()}


def _wide_step(h: float, x: jax.Array, theta: jax.Array, data: Any) -> jax.Array:
    matrix, rhs, groups = data
    return x - h * (matrix @ x + jnp.exp(theta)[groups] * x - rhs)


def _peaks(section: Section, steps: int) -> None:
    other = "by hand: carry p products with dF/dx"
    names = ("primal: errors of the iterates", other, FULL, PROBED)
    study = wide()
    n, p = study.jacobian.shape
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "wide.npz")
        arrays = dict(zip(("matrix", "rhs", "groups"), study.data, strict=True))
        np.savez(
            file,
            **arrays,
            theta=study.theta,
            x=study.solution,
            truth=study.jacobian,
            h=study.step.args[0],
        )
        module = "benchmarks.jacobian_trace"
        found = {name: fresh(module, name, str(steps), file) for name in names}
    lines = [
        f"### Peak memory of a fresh process: {n:,} unknowns, {p} parameters, {steps} steps",
        "",
        "One run each, compiling included; of ours the whole call, true Jacobian included. The "
        "peak contains Python, the libraries and the data.",
        "",
        "| variant | time | peak |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {duration(one['seconds'])} | {number(one['peak'] / 1e6)} MB |"
        for name, one in found.items()
    ]
    section.say("\n".join(lines) + "\n")
    peaks = found[FULL]["peak"] / 1e6, found[other]["peak"] / 1e6
    section.figures.append(Figure("trace wide peak", peaks[0], other, peaks[1]))


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Jacobian trace")
    if effort.toy:
        section.add(*_measured(wide(12, 3), 6, effort))
        return section
    rows = section.add(*_measured(small(), 2000, effort))
    wide_rows = section.add(*_measured(wide(), 40, dataclasses.replace(effort, rounds=5)))
    section.figures += _figures(rows, wide_rows)
    _peaks(section, 500)
    return section


def _measured(study: Study, steps: int, effort: Effort) -> tuple[Table, list[Row]]:
    n, p = study.jacobian.shape
    title = f"Jacobian trace: {n:,} unknowns, {p} parameters, {steps:,} steps"
    made = variants(study, steps, probed=n != p)
    table = Table(title, made, study.inputs, _truth(study, steps))
    return table, measure(table, effort)


def _truth(study: Study, steps: int) -> np.ndarray:
    """Return the errors of the Jacobian by the recursion, one step after the other."""
    step = jax.jit(lambda pair, inputs: study.recursion(inputs[3], inputs[0])(*pair))
    pair, errors = (jnp.zeros_like(study.solution), jnp.zeros_like(study.jacobian)), []
    for _ in range(steps):
        pair = step(pair, study.inputs)
        errors.append(float(jnp.linalg.norm(pair[1] - study.jacobian)))
    return np.asarray(errors[:-1])


def _best_carried(rows: list[Row]) -> Row:
    return best([one for one in rows if one.name in CARRIED])


def _figures(rows: list[Row], wide_rows: list[Row]) -> list[Figure]:
    ours, fastest = row(rows, FULL), best(rows)
    wide_ours, wide_carried = row(wide_rows, FULL), _best_carried(wide_rows)
    wide_best, probed = best(wide_rows), row(wide_rows, PROBED)
    return [
        Figure("trace small", ours.ratio, fastest.name, fastest.ratio),
        Figure("trace small best", ours.ratio / fastest.ratio, fastest.name, 1.0),
        Figure("trace wide time", wide_ours.ratio / wide_carried.ratio, wide_carried.name, 1.0),
        Figure("trace wide best", wide_ours.ratio / wide_best.ratio, wide_best.name, 1.0),
        Figure("trace probes", probed.ratio, "the primal", 1.0),
    ]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps(alone(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
