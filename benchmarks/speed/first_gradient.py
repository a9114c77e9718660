"""Time to the first gradient and of imports, each in a fresh process: see `fresh_gradient`."""

import statistics

from benchmarks.harness.fresh import fresh
from benchmarks.harness.measure import Effort
from benchmarks.harness.results import OURS, Column, Measurement, Section, Table
from benchmarks.harness.targets import against
from benchmarks.speed.fresh_gradient import FIRST, IMPLICIT, IMPORTS, STEPS, TOLERANCE, UNROLLED


class Measured:
    """What fresh processes print, by kind (`FIRST` or "import") and name; all take turns."""

    def __init__(self, turns: int):
        calls = [(FIRST, name, name) for name in UNROLLED | IMPLICIT]
        calls += [("import", *item) for item in IMPORTS.items()]
        self.turns = turns
        self.all: dict[tuple[str, str], list[dict[str, float]]] = {call[:2]: [] for call in calls}
        for turn in range(turns + 1):
            for kind, name, argument in calls:
                one = fresh("benchmarks.speed.fresh_gradient", kind, argument)
                if turn > 0:  # the first turn fills the caches of the file system
                    self.all[kind, name].append(one)

    def median(self, kind: str, name: str, key: str) -> float:
        """Return the median of a number."""
        return statistics.median(one[key] for one in self.all[kind, name])

    def ratio(self, kind: str, name: str, unit: str) -> float:
        """Return the median ratio of times to those of another one, turn by turn."""
        pairs = zip(self.all[kind, name], self.all[kind, unit], strict=True)
        return statistics.median(one[kind] / other[kind] for one, other in pairs)


def run(effort: Effort) -> Section:
    """Measure."""
    found = Measured(max(3, min(7, effort.rounds)))
    firsts = [
        first_table(found, *kind) for kind in (("unrolled", UNROLLED), ("implicit", IMPLICIT))
    ]
    return Section(
        "First gradient and imports, in fresh processes",
        tables=[*firsts, import_table(found)],
        measurements=_targets(found),
    )


def first_table(found: Measured, title: str, variants: dict) -> Table:
    """Return the table of first gradients."""
    times, others = ("import", "tracing", "compiling", FIRST), ("program", "gradient")
    columns = [Column("variant"), *(Column(name, "s") for name in times)]
    columns += [Column("ratio", "×"), Column("program", "count"), Column("gradient", "gradient")]
    unit, rows = next(iter(variants)), []
    for name in variants:
        before, after = (
            [found.median(FIRST, name, key) for key in keys] for keys in (times, others)
        )
        rows.append([name, *before, found.ratio(FIRST, name, unit), *after])
    title = f"First gradient, {title}: ridge 20×5, {STEPS} gradient steps or to {TOLERANCE:.0e}"
    note = (
        f"Medians of {found.turns} fresh processes each, in turns. The ratio compares first "
        "gradients: tracing and compiling, including the only run, without imports. The length of "
        "the program is in lines of StableHLO."
    )
    return Table(title, columns, rows, note)


def import_table(found: Measured) -> Table:
    """Return the table of imports."""
    unit = next(iter(IMPORTS))
    rows = [
        [name, found.median("import", name, "import"), found.ratio("import", name, unit)]
        for name in IMPORTS
    ]
    columns = [Column("what"), Column("time", "s"), Column("ratio", "×")]
    note = "iterdiff loads its names on first use; the time includes those that a gradient needs."
    return Table("Imports", columns, rows, note)


def _targets(found: Measured) -> list[Measurement]:
    made = []
    for key, variants, ours in (
        ("first unrolled", UNROLLED, "iterdiff Unrolled()"),
        ("first implicit", IMPLICIT, "iterdiff Implicit()"),
    ):
        unit = next(iter(variants))
        ratios = {name: found.ratio(FIRST, name, unit) for name in variants}
        others = [name for name in ratios if not name.startswith(OURS)]
        fastest = min(others, key=ratios.__getitem__)
        made.append(against(key, ratios[ours], fastest, ratios[fastest]))
    unit = next(iter(IMPORTS))
    return [*made, against("import", found.ratio("import", "iterdiff", unit), unit, 1.0)]
