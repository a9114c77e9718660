"""Run ``python -m benchmarks.studies.run``: faults and throughput of grids, stored as JSON."""

import argparse
import os
import time
from pathlib import Path

from benchmarks.harness import measure, report
from benchmarks.harness.results import Results
from benchmarks.studies import faults, throughput

KILLS, CELLS = 100, 10_000
"""The numbers of the stored run."""


def main(given: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.run", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the files")
    parser.add_argument("--kills", type=int, default=KILLS, help="runs to kill")
    parser.add_argument("--cells", type=int, default=CELLS, help="cells of the large grid")
    chosen = parser.parse_args(given)
    chosen.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NPROC", "1")
    start = time.perf_counter()
    results = Results("Grids of studies that survive", measure.environment())
    for section in (lambda: throughput.run(chosen.cells), lambda: faults.run(chosen.kills)):
        results.sections.append(section())
        results.minutes = (time.perf_counter() - start) / 60
        print(*report.write(results, chosen.out, "studies"), sep="\n", flush=True)


if __name__ == "__main__":
    main()
