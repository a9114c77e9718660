"""Processor time of the first call of each tool, in fresh processes: see `fresh_call`."""

import statistics

from benchmarks.harness.fresh import fresh
from benchmarks.harness.measure import Effort
from benchmarks.harness.results import Column, Section, Table
from benchmarks.harness.targets import against
from benchmarks.speed.fresh_call import (
    CHECK,
    CHECKED,
    COLUMNS,
    DIAGNOSE,
    ESTIMATE,
    GRADIENT,
    NAMES,
    ROWS,
    TRACE,
    TRACED_STEPS,
)


def run(effort: Effort) -> Section:
    """Measure."""
    turns = max(3, min(7, effort.rounds))
    found = {name: [] for name in NAMES}
    for turn in range(turns + 1):
        for name in NAMES:
            one = fresh("benchmarks.speed.fresh_call", name)
            if turn > 0:  # the first turn fills the caches of the file system
                found[name].append(one)

    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in found[name])

    rows = [[name, median(name, "first"), median(name, "second")] for name in NAMES]
    columns = [Column("call"), Column("first", "s"), Column("second", "s")]
    note = (
        f"Processor time, medians of {turns} fresh processes each, in turns, without imports. "
        f"Ridge regression, {ROWS}×{COLUMNS}, by gradient descent; `trace` of {TRACED_STEPS} steps "
        "in two modes; the gradients under `jit`."
    )
    ratio = statistics.median(
        one["first"] / other["first"]
        for one, other in zip(found[CHECKED], found[GRADIENT], strict=True)
    )
    targets = [
        against(f"first {key}", median(name, "first"))
        for key, name in (
            ("estimate", ESTIMATE),
            ("trace", TRACE),
            ("check", CHECK),
            ("diagnosis", DIAGNOSE),
        )
    ]
    return Section(
        "First calls, in fresh processes",
        tables=[Table("First and second call", columns, rows, note)],
        measurements=[*targets, against("first checked", ratio, GRADIENT, 1.0)],
    )
