"""Measure outer optimisation and draw its curves: ``python -m benchmarks.bilevel --out DIR``."""

import argparse
import os
import time
from pathlib import Path

# With more threads, batched LAPACK calls of jaxlib 0.10 can wait for each other for ever.
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

STEM, TITLE = "bilevel", "Outer optimisation"


def main() -> None:
    """Measure, and write results, report and pictures."""
    import matplotlib

    matplotlib.use("Agg")
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks.bilevel.curves import draw
    from benchmarks.bilevel.problems import CASES
    from benchmarks.bilevel.run import SEEDS, run
    from benchmarks.harness import measure, report
    from benchmarks.harness.results import Results, Section, load

    parser = argparse.ArgumentParser(prog="python -m benchmarks.bilevel", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the files")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--case", action="append", choices=list(CASES), help="by default all")
    parser.add_argument("--draw", action="store_true", help="only draw what the folder holds")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.draw:
        begun = time.perf_counter()
        results = Results(TITLE, measure.environment())

        def keep(found: Section) -> None:
            results.sections = [found]
            results.minutes = (time.perf_counter() - begun) / 60
            report.write(results, chosen.out, STEM)

        found = run(measure.Effort(11), chosen.case, chosen.seeds, keep)
        print(report.section(found))
    draw(load(chosen.out / f"{STEM}.json"), chosen.out / f"{STEM}-curves.png")


if __name__ == "__main__":
    main()
