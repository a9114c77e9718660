"""Run the benchmarks; write one report and two pictures: ``python -m benchmarks [NAME ...]``."""

import argparse
import importlib
import os
import time
from pathlib import Path

# Factorisations of small matrices on shared cores take ten times as long with more threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import matplotlib  # noqa: E402

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")

from benchmarks import harness, picture, stored, targets  # noqa: E402
from benchmarks.sections import Section  # noqa: E402

NAMES = (
    "scalar_trace",
    "jacobian_trace",
    "gradients",
    "implicit_gradients",
    "first_gradient",
    "growth",
)


def report(sections: list[Section], effort: harness.Effort, minutes: float) -> str:
    """Return everything that was measured, in Markdown."""
    figures = [figure for section in sections for figure in section.figures]
    threads = os.environ["OPENBLAS_NUM_THREADS"]
    parts = [
        "# How fast, beside the targets and the best of the others\n",
        f"{harness.machine()}; {threads} thread(s) for LAPACK. One run of {minutes:.0f} minutes, "
        f"at most {effort.rounds} rounds, medians; ratios are taken within a round. Measured: "
        f"{', '.join(section.title.lower() for section in sections)}.\n",
    ]
    if figures:
        parts.append(targets.table(figures))
    for section in sections:
        parts += [f"## {section.title}\n", *section.texts]
    return "\n".join(parts)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder to write to")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each variant, at most")
    parser.add_argument("--quick", action="store_true", help="few rounds: rough figures")
    parser.add_argument(
        "--draw",
        action="store_true",
        help="measure nothing: draw the pictures of the report in the folder",
    )
    parser.add_argument(
        "name",
        nargs="*",
        help=f"which benchmarks: by default all about speed ({', '.join(NAMES)}); "
        "wrong_derivatives asks whether wrong derivatives are found out",
    )
    arguments = parser.parse_args()
    for name in arguments.name:
        if name not in (*NAMES, "wrong_derivatives"):
            parser.error(f"there is no benchmark {name!r}")
    if "wrong_derivatives" in arguments.name:
        from benchmarks import wrong_derivatives

        wrong_derivatives.main()
        return
    if arguments.draw:
        stored.draw(arguments.out)
        return
    effort = harness.QUICK if arguments.quick else harness.Effort(arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    start, sections, drawn = time.perf_counter(), [], []
    for name in arguments.name or NAMES:
        sections.append(importlib.import_module(f"benchmarks.{name}").run(effort))
        minutes = (time.perf_counter() - start) / 60
        print(f"{name} done after {minutes:.1f} minutes\n", flush=True)
        # Written after each, so that a run that is broken off leaves what it has.
        text = report(sections, effort, minutes)
        (arguments.out / "speed.md").write_text(text, encoding="utf-8")
        figures = [figure for section in sections for figure in section.figures]
        curves = [curve for section in sections for curve in section.curves]
        if figures or curves:
            drawn = picture.draw(figures, curves, arguments.out)
    print(f"Written to {arguments.out}: {', '.join(['speed.md', *(file.name for file in drawn)])}")


if __name__ == "__main__":
    main()
