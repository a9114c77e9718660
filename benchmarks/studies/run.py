"""Run ``python -m benchmarks.studies.run``: faults and throughput of grids, stored as JSON."""

import argparse
import os
import time
from pathlib import Path

from benchmarks.harness import measure, report
from benchmarks.harness.results import Results
from benchmarks.harness.results import load as load_results
from benchmarks.studies import faults, throughput

KILLS, CELLS = 100, 10_000
"""The numbers of the stored run."""


PARTS = ("Throughput", "Faults", "Kills")
"""The sections of the report, in this order."""


def main(given: list[str] | None = None) -> None:
    """Measure and write. Sections that are not asked for stay as they are stored."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.run", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the files")
    parser.add_argument("--kills", type=int, default=KILLS, help="runs to kill")
    parser.add_argument("--cells", type=int, default=CELLS, help="cells of the large grid")
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="sections; by default all")
    chosen = parser.parse_args(given)
    chosen.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NPROC", "1")
    make = {
        "Throughput": lambda: throughput.run(chosen.cells),
        "Faults": faults.run,
        "Kills": lambda: faults.run_kills(chosen.kills),
    }
    for part in chosen.part or PARTS:
        start = time.perf_counter()
        section = make[part]()
        environment = measure.environment()
        minutes = (time.perf_counter() - start) / 60
        load = os.getloadavg()[1]
        section.note += f" Commit {environment['commit']}; {minutes:.0f} minutes, load {load:.0f}."
        stored = chosen.out / "studies.json"
        others = load_results(stored).sections if stored.exists() else []
        sections = {one.title: one for one in [*others, section]}
        results = Results("Grids of studies that survive", environment)
        results.sections = [sections[title] for title in PARTS if title in sections]
        print(*report.write(results, chosen.out, "studies"), sep="\n", flush=True)


if __name__ == "__main__":
    main()
