"""The commands on grids of studies: run, estimate, show."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from iterdiff.cli.output import as_json, default_folder, progress
from iterdiff.jaxtools.extras import import_extra
from iterdiff.study import store
from iterdiff.study.execute import Pool, cluster, processes, this_process
from iterdiff.study.grid import Grid, in_words
from iterdiff.study.grid_run import GridResult, Watcher, run_grid

SOME_FAILED, INTERRUPTED = 1, 130

MAX_LISTED = 20
"""Upper limit of the failures that are printed; `--json` prints all of them."""


def study(grid: Grid, parsed: argparse.Namespace) -> int:
    """Run a grid into its folder; return the exit status."""
    console = import_extra("rich.console", "study").Console(stderr=True)
    out = parsed.out or default_folder(parsed.name)
    pool = _pool(parsed)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with progress(console, out.name, parsed.quiet) as report:
        watcher = Watcher(report, lambda label, cause: say(f"failed: {label}: {cause}"), say)
        try:
            result = run_grid(grid, out, pool=pool, fresh=parsed.fresh, watcher=watcher)
        except KeyboardInterrupt:
            say(f"Interrupted; finished cells are kept. {_go_on(parsed)}")
            return INTERRUPTED
        except OSError as error:
            reason = error.strerror or error
            say(f"Writing to {out} failed ({reason}); finished cells are kept. {_go_on(parsed)}")
            return SOME_FAILED
    print(as_json(result) if parsed.json else _summary(result, out))
    if result.failed:
        say(f"{len(result.failed)} cells failed: {shlex.join(['iterdiff', 'show', str(out)])}")
    return SOME_FAILED if result.failed else 0


def _pool(parsed: argparse.Namespace) -> Pool:
    if parsed.scheduler:
        return cluster(parsed.scheduler)
    return processes(parsed.jobs) if parsed.jobs else this_process()


def _go_on(parsed: argparse.Namespace) -> str:
    words = [word for word in parsed.arguments if word != "--fresh"]
    return f"Go on with: {shlex.join(['iterdiff', *words])}"


def _summary(result: GridResult, out: Path) -> str:
    there = result.found + result.computed
    return (
        f"{there} of {result.total} cells are in {out}: {result.computed} computed, "
        f"{result.found} found, {len(result.failed)} failed."
    )


def dry_run(grid: Grid, jobs: int, json: bool) -> int:
    """Print the axes of a grid, its size and what it will cost."""
    from iterdiff.study.estimate import estimate

    found = estimate(grid, jobs)
    if json:
        axes = {a.name: [row[0] if len(row) == 1 else row for row in a.values] for a in grid.axes}
        print(as_json({"axes": axes, **found._asdict()}))
        return 0
    for axis in grid.axes:
        values = ", ".join(in_words(row[0] if len(row) == 1 else list(row)) for row in axis.values)
        print(f"{axis.name} ({len(axis.values)}): {values}")
    print(f"cells          {found.cells:,}")
    print(f"first cell     {duration(found.first_seconds)}, compilation included")
    print(f"further cells  {duration(found.cell_seconds)} each; less if they run as one batch")
    print(f"all cells      about {duration(found.total_seconds)} in {jobs} process(es)")
    print(f"memory         {size(found.program_bytes)} for the program, besides JAX itself")
    print(f"files          {size(found.file_bytes)}")
    return 0


def show(folder: Path, json: bool) -> int:
    """Print what is in the folder of a grid, what is missing, and what failed and why."""
    manifest, names = store.read_manifest(folder)
    unique = list(dict.fromkeys(names))
    whole, damaged = store.present(folder, unique)
    failed = {name: cause for name, cause in store.failures(folder).items() if name not in whole}
    label = _labels(manifest, names)
    lost = [name for name in unique if name not in whole and name not in failed]
    found = {
        "folder": str(folder),
        "cells": len(unique),
        "done": len(whole),
        "failed": {label(name): cause for name, cause in failed.items() if name in set(unique)},
        "missing": [label(name) for name in lost if name not in damaged],
        "damaged": [label(name) for name in damaged],
    }
    if json:
        print(as_json({**found, "axes": manifest["axes"], "version": manifest["iterdiff_version"]}))
        return 0
    counts = {key: len(found[key]) for key in ("failed", "missing", "damaged")}
    print(f"{folder}: {found['done']} of {found['cells']} cells are there.")
    print("  ".join(f"{key} {count}" for key, count in counts.items()))
    for axis in manifest["axes"]:
        print(f"{axis['name']}: {len(axis['values'])} values")
    _print_some("failed", [f"{key}: {cause}" for key, cause in found["failed"].items()])
    _print_some("damaged", found["damaged"])
    _print_some("missing", found["missing"])
    return 0


def _print_some(kind: str, lines: list[str]) -> None:
    for line in lines[:MAX_LISTED]:
        print(f"{kind}: {line}")
    if len(lines) > MAX_LISTED:
        print(f"... and {len(lines) - MAX_LISTED} more; --json prints all of them.")


def _labels(manifest: dict[str, Any], names: list[str]) -> Any:
    """Return the function that gives the values of a cell along the axes, by its name."""
    axes = manifest["axes"]
    places = {name: index for index, name in reversed(list(enumerate(names)))}

    def label(name: str) -> str:
        index, parts = places[name], []
        for axis in reversed(axes):
            index, point = divmod(index, len(axis["values"]))
            pairs = zip(axis["keys"], axis["values"][point], strict=True)
            parts.append(", ".join(f"{'.'.join(keys)} = {in_words(v)}" for keys, v in pairs))
        return ", ".join(reversed(parts))

    return label


def duration(seconds: float) -> str:
    """Return a time in a fitting unit."""
    for unit, length in (("years", 31557600), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def size(count: int) -> str:
    """Return a number of bytes in a fitting unit."""
    left, units = float(count), ["TB", "GB", "MB", "kB", "B"]
    while left >= 1000 and len(units) > 1:
        left, _ = left / 1000, units.pop()
    return f"{left:.3g} {units[-1]}"
