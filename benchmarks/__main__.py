"""Run benchmarks; write results as JSON, a report and pictures: ``python -m benchmarks``."""

import argparse
import importlib
import os
import time
from pathlib import Path

# On busy cores, LAPACK with more threads factors small matrices ten times more slowly.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

SPEED = (
    "scalar_trace",
    "jacobian_trace",
    "gradients",
    "implicit_gradients",
    "first_gradient",
    "growth",
)
WRONG, SOLVES, BILEVEL, DEVICES = "wrong_derivatives", "linear_solves", "bilevel", "devices"
PROGRAMS, BUNDLES = "quadratic_programs", "bundle_adjustment"
CALLS = "first_calls"
REPORTS = {
    "speed": ("Speed against targets, other libraries and hand-written JAX", SPEED),
    CALLS: ("First calls of tools", (CALLS,)),
    WRONG: ("Wrong derivatives", (WRONG,)),
    "constraints": ("Problems with constraints beside other libraries", (PROGRAMS,)),
    "least_squares": ("Least squares with independent blocks", (BUNDLES,)),
    SOLVES: ("Large adjoint solves", (SOLVES,)),
    BILEVEL: ("Outer optimisation", (BILEVEL,)),
    DEVICES: ("Several devices", (DEVICES,)),
}
"""Title and benchmarks of each report, by the name of its files."""
MODULES = {name: f"benchmarks.speed.{name}" for name in (*SPEED, CALLS)}
MODULES |= {name: f"benchmarks.{name}.run" for name in (WRONG, SOLVES, BILEVEL, DEVICES)}
MODULES |= {name: f"benchmarks.constraints.{name}" for name in (PROGRAMS, BUNDLES)}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the files")
    parser.add_argument("--rounds", type=int, default=11, help="most turns of each variant")
    parser.add_argument("--quick", action="store_true", help="few rounds: rough values")
    parser.add_argument(
        "--draw",
        action="store_true",
        help="measure nothing; draw report and pictures of all results in the folder",
    )
    names = f"benchmarks to run: {', '.join(MODULES)}; by default those of speed"
    parser.add_argument("name", nargs="*", help=names)
    chosen = parser.parse_args(given)
    for name in chosen.name:
        if name not in MODULES:
            parser.error(f"`name`: no benchmark is called {name!r}. Use one of {list(MODULES)}.")
    return chosen


def main(given: list[str] | None = None) -> None:
    """Measure, print and write; or draw."""
    import matplotlib

    matplotlib.use("Agg")
    chosen = arguments(given)
    if {WRONG, BILEVEL, PROGRAMS, BUNDLES}.intersection(chosen.name):
        # With more threads, batched LAPACK calls of jaxlib 0.10 can wait for each other for ever.
        os.environ.setdefault("NPROC", "1")
    if chosen.draw:
        from benchmarks.harness import report

        for path in sorted(chosen.out.glob("*.json")):
            print("\n".join(map(str, report.draw(path))))
        return
    wanted = chosen.name or SPEED
    chosen.out.mkdir(parents=True, exist_ok=True)
    for stem, (title, names) in REPORTS.items():
        names = [name for name in names if name in wanted]
        if names:
            run(stem, title, names, chosen)


def run(stem: str, title: str, names: list[str], chosen: argparse.Namespace) -> None:
    """Run the benchmarks of one report, and write it after each of them."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks.harness import measure, report
    from benchmarks.harness.results import Results

    effort = measure.QUICK if chosen.quick else measure.Effort(chosen.rounds)
    results = Results(title, measure.environment())
    results.note = f"At most {effort.rounds} rounds; ratios are taken within a round."
    start = time.perf_counter()
    for name in names:
        section = importlib.import_module(MODULES[name]).run(effort)
        results.sections.append(section)
        results.minutes = (time.perf_counter() - start) / 60
        paths = report.write(results, chosen.out, stem)
        print("\n".join([report.section(section), *map(str, paths)]), flush=True)


if __name__ == "__main__":
    main()
