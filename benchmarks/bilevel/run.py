"""The inner work that takes outer optimisation to the optimum, and its error bars."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.bilevel import rivals
from benchmarks.bilevel.problems import CASES, Case
from benchmarks.bilevel.rivals import Visit
from benchmarks.harness.measure import Effort
from benchmarks.harness.results import OURS, Column, Section, Table
from benchmarks.harness.targets import against

TOLERANCES = tuple(10.0**-k for k in (2, 3, 4, 6, 8, 10))
"""The inner tolerances of the fixed drivers, relative to the residual at the start."""
TARGET = 1e-4
"""Outer suboptimality to reach, relative to that of the start."""
SEEDS, SEEDS_MIN_ROUNDS = 3, 5
QUICK_CASES = ["cancer", "diabetes", "wine", "cleaning"]
"""With ``--quick``: these problems, at one seed."""
MAX_OUTER, MAX_GRADIENTS = 60, 40_000
ROUNDING = 1e-9
"""Relative errors below this are at the level of rounding, where no factor of two is claimed."""
METHODS = {
    f"{OURS}, LBFGS": itd.bilevel.LBFGS(),
    f"{OURS}, Backtracking": itd.bilevel.Backtracking(),
}
OUR_BEST = f"{OURS}, LBFGS"


class Bars(NamedTuple):
    """Error bars of one run against the truth: counts."""

    trusted: int
    gradient_right: int
    value_held: int
    accepted: int
    uphill: int


def ours(case: Case, name: str) -> tuple[list[Visit], dict]:
    """Return the visits of one of our methods, and the columns of its history."""
    result = itd.bilevel.minimize(
        *case[1:6],
        method=METHODS[name],
        lower=case.bounds[0],
        upper=case.bounds[1],
        rtol=1e-6,
        max_outer=MAX_OUTER,
        budget=MAX_GRADIENTS,
        max_steps=rivals.MAX_INNER,
    )
    rows = result.log.arrays()
    gradients, products = np.cumsum(rows["gradients"]), np.cumsum(rows["products"])
    visits = [
        Visit(rows["theta"][k], int(gradients[k]), int(products[k]))
        for k in np.flatnonzero(rows["accepted"])
    ]
    return visits, rows


def judged(case: Case, truth, rows: dict) -> Bars:
    """Compare the error bars of a run with the truth."""
    found = [truth(jnp.asarray(v).reshape(jnp.shape(case.theta0))) for v in rows["theta"]]
    values = np.array([float(value) for value, _ in found])
    gradients = np.stack([np.asarray(g).reshape(-1) for _, g in found])
    error = np.linalg.norm(rows["gradient"] - gradients, axis=1)
    sizes = np.linalg.norm(gradients, axis=1)
    counted = rows["trusted"] & (np.maximum(error, rows["gradient_error"]) > ROUNDING * sizes)
    ratio = rows["gradient_error"][counted] / np.where(error[counted] > 0, error[counted], np.nan)
    held = np.abs(rows["value"] - values) <= 2 * rows["value_error"] + ROUNDING * np.abs(values)
    accepted = values[rows["accepted"]]
    return Bars(
        int(counted.sum()),
        int(np.sum((ratio >= 0.5) & (ratio <= 2))),
        int(np.sum(held[rows["trusted"]])) - int(rows["trusted"].sum()) + int(counted.sum()),
        len(accepted) - 1,
        int(np.sum(np.diff(accepted) > ROUNDING * np.abs(accepted[1:]))),
    )


def reached(visits: list[Visit], values: np.ndarray, start: float, best: float) -> list[float]:
    """Return gradients and products spent when the target was reached; infinite if it was not."""
    below = np.flatnonzero(values - best <= TARGET * (start - best))
    if not len(below):
        return [math.inf, math.inf]
    return [float(visits[below[0]].gradients), float(visits[below[0]].products)]


def measured(name: str, seed: int) -> tuple[dict[str, list[float]], dict[str, Bars]]:
    """Return what each driver spent on one case, and how our error bars were."""
    case = CASES[name](seed)
    truth = jax.jit(jax.value_and_grad(case.true_loss))
    runs: dict[str, list[Visit]] = {}
    bars = {}
    for label in METHODS:
        runs[label], rows = ours(case, label)
        bars[label] = judged(case, truth, rows)
    limits = MAX_OUTER, MAX_GRADIENTS
    engine = rivals.Engine(case)
    for tolerance in TOLERANCES:
        runs[f"tolerance {tolerance:.0e}"] = rivals.fixed(engine.anew(), tolerance, *limits)
    runs["HOAG's schedule"] = rivals.scheduled(engine.anew(), *limits)
    runs["random search"] = rivals.random(engine.anew(), seed, *limits)
    shape = jnp.shape(case.theta0)
    values = {
        label: np.array([float(truth(jnp.asarray(v.theta).reshape(shape))[0]) for v in visits])
        for label, visits in runs.items()
    }
    best = min(float(v.min()) for v in values.values())
    start = values[OUR_BEST][0]
    spent = {label: reached(visits, values[label], start, best) for label, visits in runs.items()}
    return spent, bars


def _median(values: list[float]) -> float:
    return float(np.median(values))


def work_table(spent: dict[str, list[dict[str, list[float]]]], which: int, title: str) -> Table:
    """Return the medians over the seeds of what each driver spent."""
    labels = list(next(iter(spent.values()))[0])
    rows = [
        [label, *(_median([seed[label][which] for seed in seeds]) for seeds in spent.values())]
        for label in labels
    ]
    return Table(title, [Column("driver"), *(Column(name, "count") for name in spent)], rows)


def ratios(spent: dict[str, list[dict[str, list[float]]]]) -> Table:
    """Return our work over that of the best and of the median fixed tolerance."""
    rows = []
    for name, seeds in spent.items():
        row: list = [name]
        for work in (lambda pair: pair[0], sum):
            ours = _median([work(seed[OUR_BEST]) for seed in seeds])
            fixed = sorted(
                _median([work(seed[f"tolerance {t:.0e}"]) for seed in seeds]) for t in TOLERANCES
            )
            row += [ours / fixed[0], ours / fixed[len(fixed) // 2]]
        rows.append(row)
    titles = ("gradients: best", "median", "gradients and products: best", "both: median")
    columns = [Column("problem"), *(Column(title, "×") for title in titles)]
    return Table(f"{OUR_BEST} over fixed tolerances", columns, rows)


def bar_table(bars: dict[str, list[dict[str, Bars]]]) -> Table:
    """Return how often error bars hold, and steps that go uphill."""
    rows = []
    for name, seeds in bars.items():
        for label in METHODS:
            total = [sum(column) for column in zip(*(s[label] for s in seeds), strict=True)]
            trusted, right, held, accepted, uphill = total
            rows.append([name, label, [right, trusted], [held, trusted], [uphill, accepted]])
    columns = [
        Column("problem"),
        Column("driver"),
        Column("gradient's error within a factor of 2", "share"),
        Column("value within twice its bar", "share"),
        Column("accepted steps uphill, by a direct solve", "share"),
    ]
    return Table("Error bars against the truth", columns, rows)


def run(effort: Effort) -> Section:
    """Measure."""
    quick = effort.rounds < SEEDS_MIN_ROUNDS
    seeds, names = (1, QUICK_CASES) if quick else (SEEDS, list(CASES))
    spent: dict[str, list] = {}
    bars: dict[str, list] = {}
    for name in names:
        for seed in range(seeds):
            found, held = measured(name, seed)
            spent.setdefault(name, []).append(found)
            bars.setdefault(name, []).append(held)
            print(f"{name}, seed {seed}: {found[OUR_BEST]}", flush=True)
        jax.clear_caches()
    table = ratios(spent)
    shown = bar_table(bars)
    totals = np.sum([[*row[2], *row[3], *row[4]] for row in shown.rows], axis=0)
    share = float(totals[0] / totals[1])
    missed = f"problems that miss it, of {len(table.rows)}"
    measurements = [
        against("bilevel best", sum(not row[1] <= 1.2 for row in table.rows), note=missed),
        against("bilevel median", sum(not row[2] <= 0.5 for row in table.rows), note=missed),
        against("bilevel uphill", int(totals[4]), note=f"of {int(totals[5])}"),
        against("bilevel bars", 1 - share, note=f"{int(totals[0])} of {int(totals[1])}"),
    ]
    note = (
        f"Inner work until the outer loss is within {TARGET:g} of the best that any driver found, "
        f"relative to the start: medians over {seeds} seeds (splits and simulated data). A step of "
        "the inner method is one gradient; each check of ours is four more. Forming the matrix of "
        "an adjoint system of n unknowns takes n Hessian products. Every driver starts inner runs "
        "at the last solution and uses the same implicit gradients; those with a fixed tolerance "
        "use our LBFGS on plain values. Nothing else is tuned: outer methods have no "
        "parameters, tolerances are 1e-2 ... 1e-10 relative to the residual at the start, HOAG's "
        "is 0.1 * 0.9**k. Infinity: not within "
        f"{MAX_OUTER} outer iterations and {MAX_GRADIENTS:,} gradients."
    )
    tables = [
        table,
        work_table(spent, 0, "Inner gradients to the target"),
        work_table(spent, 1, "Hessian products to the target"),
        shown,
    ]
    return Section("Outer optimisation", note, tables, measurements)
