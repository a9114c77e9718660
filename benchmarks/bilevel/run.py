"""The inner work that takes outer optimisation to the optimum, and its error bars."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import iterdiff as itd
from benchmarks.bilevel import rivals, sparho_rival
from benchmarks.bilevel.engines import MAX_INNER, Engine, Visit
from benchmarks.bilevel.problems import CASES, Case
from benchmarks.harness.measure import Effort
from benchmarks.harness.results import OURS, Column, Measurement, Section, Table
from benchmarks.harness.targets import against

TOLERANCES = tuple(10.0**-k for k in (2, 3, 4, 6, 8, 10))
"""The inner tolerances of the fixed drivers, relative to the residual at the start."""
FOREIGN_TOLERANCES, FOREIGN_SEEDS = (1e-3, 1e-6, 1e-9), 2
"""The same of other libraries, and for how many seeds."""
TARGET = 1e-4
"""Outer suboptimality to reach, relative to that of the start."""
SEEDS, SEEDS_MIN_ROUNDS = 5, 5
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
OUR_REFINED = f"{OURS}, LBFGS, refined"
METHODS[OUR_REFINED] = itd.bilevel.LBFGS()
"""The same with ``mode=Implicit(refine=1)``, the counterpart of the refined tolerances."""
LABELS = {
    "plain": "tolerance {:.0e}",
    "refined": "tolerance {:.0e}, refined",
    "jaxopt": "jaxopt {:.0e}",
    "optimistix": "optimistix {:.0e}",
}

Spent = dict[str, list[float]]
"""Gradients, products and seconds to the target, by driver."""


class Bars(NamedTuple):
    """Error bars of one run against the truth: counts."""

    trusted: int
    gradient_right: int
    value_held: int
    accepted: int
    uphill: int


class Outcome(NamedTuple):
    """What came of one case at one seed: work to the target, error bars, curves."""

    spent: Spent
    bars: dict[str, Bars]
    curves: list[list]


def ours(case: Case, name: str, *, max_outer: int = MAX_OUTER) -> tuple[list[Visit], dict]:
    """Return the visits of one of our methods, and the columns of its history."""
    family = case.family
    result = itd.bilevel.minimize(
        family.loss,
        family.problem,
        family.algorithm,
        case.x0,
        case.theta0,
        args=case.args,
        method=METHODS[name],
        mode=itd.Implicit(refine=1) if name == OUR_REFINED else None,
        lower=family.bounds[0],
        upper=family.bounds[1],
        rtol=1e-6,
        max_outer=max_outer,
        budget=MAX_GRADIENTS,
        max_steps=MAX_INNER,
    )
    rows = result.log.arrays()
    gradients, products = np.cumsum(rows["gradients"]), np.cumsum(rows["products"])
    if name == OUR_REFINED:  # a correction more in every check
        checks = np.cumsum(rows["checks"])
        gradients, products = gradients + checks, products + checks * case.unknowns
    visits = [
        Visit(rows["theta"][k], int(gradients[k]), int(products[k]), float(rows["seconds"][k]))
        for k in np.flatnonzero(rows["accepted"])
    ]
    return visits, rows


def judged(truth: Callable, rows: dict) -> Bars:
    """Compare the error bars of a run with the truth, ``truth(theta) -> (value, gradient)``."""
    found = [truth(v) for v in rows["theta"]]
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
    """Return gradients, products and seconds at the target; infinite if it was not reached."""
    below = np.flatnonzero(values - best <= TARGET * (start - best))
    if not len(below):
        return [math.inf] * 3
    first = visits[below[0]]
    return [float(first.gradients), float(first.products), first.seconds]


def rival_runs(case: Case, seed: int) -> dict[str, list[Visit]]:
    """Return the visits of all other drivers."""
    runs: dict[str, list[Visit]] = {}
    limits = MAX_OUTER, MAX_GRADIENTS
    kinds = ["plain", "refined"]
    if seed < FOREIGN_SEEDS:
        kinds += ["jaxopt", "optimistix"] if case.family.smooth else ["jaxopt"]
    for kind in kinds:
        engine = Engine(case, kind)
        rivals.fixed(engine, TOLERANCES[0], 2, MAX_GRADIENTS)  # compile before the clock starts
        tolerances = TOLERANCES if kind in ("plain", "refined") else FOREIGN_TOLERANCES
        for tolerance in tolerances:
            label = LABELS[kind].format(tolerance)
            runs[label] = rivals.fixed(engine.anew(), tolerance, *limits)
        if kind == "plain":
            runs["HOAG's schedule"] = rivals.scheduled(engine.anew(), *limits)
            runs["random search"] = rivals.random(engine.anew(), seed, *limits)
            if importlib.util.find_spec("optuna"):
                runs["Optuna"] = rivals.optuna(engine.anew(), seed, *limits)
    if not case.family.smooth and importlib.util.find_spec("sparho"):
        runs["sparho"] = sparho_rival.search(case, MAX_OUTER)
    return runs


def measured(name: str, seed: int) -> Outcome:
    """Return what each driver spent on one case, and how our error bars were."""
    case = CASES[name](seed)
    known: dict[bytes, tuple[float, np.ndarray]] = {}

    def truth(theta: Any) -> tuple[float, np.ndarray]:
        key = np.asarray(theta, float).tobytes()
        if key not in known:
            known[key] = case.truth(theta)
        return known[key]

    runs: dict[str, list[Visit]] = {}
    bars = {}
    for label in METHODS:
        ours(case, label, max_outer=1)  # compile before the clock starts
        runs[label], rows = ours(case, label)
        bars[label] = judged(truth, rows)
    runs |= rival_runs(case, seed)
    values = {
        label: np.array([truth(v.theta)[0] for v in visits]) for label, visits in runs.items()
    }
    best = min(float(np.nanmin(v)) for v in values.values())
    start = values[OUR_BEST][0]
    spent = {label: reached(visits, values[label], start, best) for label, visits in runs.items()}
    curves = [
        [
            name,
            seed,
            label,
            [v.gradients for v in visits],
            [v.products for v in visits],
            [round(v.seconds, 4) for v in visits],
            [float(value) for value in (values[label] - best) / (start - best)],
        ]
        for label, visits in runs.items()
    ]
    return Outcome(spent, bars, curves)


def median(seeds: list[Spent], label: str, work: Callable[[list[float]], float]) -> float | None:
    """Return the median over the seeds that ran this driver."""
    found = [work(seed[label]) for seed in seeds if label in seed]
    return float(np.median(found)) if found else None


def work_table(spent: dict[str, list[Spent]], which: int, title: str, unit: str) -> Table:
    """Return the medians over the seeds of what each driver spent."""
    labels = list(dict.fromkeys(label for seeds in spent.values() for s in seeds for label in s))
    rows = [
        [label, *(median(seeds, label, lambda work: work[which]) for seeds in spent.values())]
        for label in labels
    ]
    return Table(title, [Column("driver"), *(Column(name, unit) for name in spent)], rows)


def ratios(spent: dict[str, list[Spent]], kind: str, ours: str) -> Table:
    """Return our work over that of the best and of the median tolerance of one kind."""
    title = f"{ours} over fixed tolerances" + (" with refine=1" if kind == "refined" else "")
    rows = []
    for name, seeds in spent.items():
        row: list = [name]
        for work in (lambda found: found[0], lambda found: found[0] + found[1]):
            mine = median(seeds, ours, work)
            fixed = sorted(
                found
                for t in TOLERANCES
                if (found := median(seeds, LABELS[kind].format(t), work)) is not None
            )
            row += [_ratio(mine, fixed[0]), _ratio(mine, fixed[len(fixed) // 2])]
        rows.append(row)
    titles = ("gradients: best", "median", "gradients and products: best", "both: median")
    columns = [Column("problem"), *(Column(title, "×") for title in titles)]
    return Table(title, columns, rows)


def _ratio(mine: float | None, other: float) -> float:
    if mine is None or not math.isfinite(mine):
        return math.inf
    return mine / other


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


def run(
    effort: Effort,
    names: list[str] | None = None,
    seeds: int | None = None,
    keep: Callable[[Section], None] = lambda _: None,
) -> Section:
    """Measure; `keep` receives what is there after every case."""
    quick = effort.rounds < SEEDS_MIN_ROUNDS
    names = names or (QUICK_CASES if quick else list(CASES))
    seeds = seeds or (1 if quick else SEEDS)
    spent: dict[str, list] = {}
    bars: dict[str, list] = {}
    curves: list[list] = []
    for name in names:
        for seed in range(seeds):
            outcome = measured(name, seed)
            spent.setdefault(name, []).append(outcome.spent)
            bars.setdefault(name, []).append(outcome.bars)
            curves += outcome.curves
            print(f"{name}, seed {seed}: {outcome.spent[OUR_BEST]}", flush=True)
        jax.clear_caches()
        keep(section(spent, bars, curves, seeds))
    return section(spent, bars, curves, seeds)


def section(
    spent: dict[str, list], bars: dict[str, list], curves: list[list], seeds: int
) -> Section:
    """Return tables and measurements."""
    plain = ratios(spent, "plain", OUR_BEST)
    refined = ratios(spent, "refined", OUR_REFINED)
    units = [Column("problem"), Column("seed", "count"), Column("driver")]
    units += [Column(t, "count") for t in ("gradients", "products")]
    units += [Column("seconds", "s"), Column("suboptimality", "error")]
    shown = bar_table(bars)
    tables = [
        plain,
        refined,
        work_table(spent, 0, "Inner gradients to the target", "count"),
        work_table(spent, 1, "Hessian products to the target", "count"),
        work_table(spent, 2, "Seconds to the target, without compiling", "s"),
        shown,
        Table("Curves", units, curves, listed=False),
    ]
    return Section("Outer optimisation", note(seeds), tables, measurements(plain, shown))


def measurements(table: Table, shown: Table) -> list[Measurement]:
    """Return the measurements that have targets."""
    totals = np.sum([[*row[2], *row[3], *row[4]] for row in shown.rows], axis=0)
    share = float(totals[0] / totals[1])
    missed = f"problems that miss it, of {len(table.rows)}"
    return [
        against("bilevel best", sum(not row[1] <= 1.2 for row in table.rows), note=missed),
        against("bilevel median", sum(not row[2] <= 0.5 for row in table.rows), note=missed),
        against("bilevel uphill", int(totals[4]), note=f"of {int(totals[5])}"),
        against("bilevel bars", 1 - share, note=f"{int(totals[0])} of {int(totals[1])}"),
    ]


def note(seeds: int) -> str:
    """Return how it was measured."""
    return (
        f"Inner work until the outer loss is within {TARGET:g} of the best that any driver found, "
        f"relative to the start: medians over {seeds} seeds (splits and simulated data). A step of "
        "the inner method is one gradient; each check of ours is four more. Forming the matrix of "
        "an adjoint system, or of a Newton correction, of n unknowns takes n Hessian products; "
        "the other libraries' iterative adjoint solves are not counted. Every driver starts inner "
        "runs at the last solution. Those with a fixed tolerance use our LBFGS on plain values, or "
        "with refine=1 on values and gradients after one Newton correction; ours with refine=1 is "
        "their counterpart. Nothing else is tuned: "
        "outer methods have no parameters; tolerances are 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10 "
        "relative to the residual at the start (of jaxopt and optimistix 1e-3, 1e-6, 1e-9, at "
        f"{FOREIGN_SEEDS} seeds); HOAG's schedule is 0.1 * 0.9**k; random search and Optuna solve "
        f"to {rivals.SEARCH_TOLERANCE:g}; sparho has its defaults, and an epoch of its descent "
        f"counts as a gradient. Infinity: not within {MAX_OUTER} outer iterations and "
        f"{MAX_GRADIENTS:,} gradients."
    )
