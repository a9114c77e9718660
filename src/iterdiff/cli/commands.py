"""What the commands do, each in two parts: load its libraries, then run."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iterdiff as itd
import iterdiff.study
from iterdiff.cli.output import as_json, default_folder, progress
from iterdiff.jaxtools.extras import import_extra

STUDY_LIBRARIES = (
    "pydantic",
    "pandas",
    "sklearn",
    "xarray",
    "h5netcdf",
    "h5py",
    "matplotlib",
    "rich",
)


Command = Callable[[], int | None]
"""What a command does after its libraries are loaded; returns the exit status, None for 0."""


def study(parsed: argparse.Namespace) -> Command:
    """Return the command that runs a study, or a grid of studies."""
    _load_study_libraries()
    from iterdiff.cli import grids
    from iterdiff.study.execute import use_one_thread
    from iterdiff.study.grid import load_grid

    if _names_grid(parsed):
        use_one_thread()

    def command() -> int | None:
        grid = load_grid(parsed.name, _changes(parsed), parsed.assignments)
        if parsed.dry_run:
            return grids.dry_run(grid, parsed.jobs or 1, parsed.json)
        if grid.axes:
            return grids.study(grid, parsed)
        for option in ("jobs", "scheduler", "fresh"):
            if getattr(parsed, option):
                raise ValueError(
                    f"`--{option}` applies to a grid of studies, and this is one study. Leave it "
                    "out, or add a table [grid] to the file."
                )
        if grid.words(0).get("outputs") is not None:
            raise ValueError(
                "`outputs` applies to a grid of studies; one study keeps all variables, for its "
                "figures. Leave it out."
            )
        return _one_study(grid.source, parsed)

    return command


def _names_grid(parsed: argparse.Namespace) -> bool:
    """Return whether the words or the file of a study seem to contain a grid."""
    if any(text.lstrip().startswith("grid") for text in parsed.assignments):
        return True
    path = Path(parsed.name)
    return path.is_file() and "[grid" in path.read_text(encoding="utf-8", errors="ignore")


def _one_study(source: Any, parsed: argparse.Namespace) -> None:
    """Run a study and write its files."""
    from iterdiff.study.catalog import make
    from iterdiff.study.cell import versions
    from iterdiff.study.files import atomic_folder, write_netcdf
    from iterdiff.study.grid_run import git_commit
    from iterdiff.study.run import run
    from iterdiff.study.views.plots import save_figures
    from iterdiff.study.views.report import numbers, plain, print_report, save_report

    console = import_extra("rich.console", "study").Console(stderr=parsed.json)
    study = make(source)
    out = parsed.out or default_folder(parsed.name)
    with atomic_folder(out) as folder:
        with progress(console, study.name, parsed.quiet) as report_progress:
            data = run(study, report_progress)
        data = data.assign_attrs(git_commit=git_commit(), **versions())
        write_netcdf(data, folder / f"{study.name}.nc")
        save_report(data, folder / "report.txt")
        figures = save_figures(data, folder, paper=parsed.paper)
    if parsed.json:
        print(as_json(numbers(data)))
        return
    print_report(data, console)
    console.print(plain(f"Written to {out}:"), soft_wrap=True)
    console.print(plain("  " + "  ".join([f"{study.name}.nc", "report.txt", *figures])))


def _load_study_libraries() -> None:
    """Import what studies need, so that a missing one is reported at once."""
    for library in STUDY_LIBRARIES:
        import_extra(library, "study")


def _changes(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line gives."""
    if (parsed.data is None) != (parsed.target is None):
        missing = "target" if parsed.target is None else "data"
        raise ValueError(f"`--{missing}` is missing: --data and --target belong together.")
    counts = {name: getattr(parsed, name) for name in ("steps", "every", "probes")}
    changes: dict[str, Any] = {name: value for name, value in counts.items() if value is not None}
    if parsed.data is not None:
        changes["problem"] = {"data": parsed.data, "target": parsed.target}
    return changes


def explore(parsed: argparse.Namespace) -> Command:
    """Return the command that serves the explorer on this machine."""
    _load_study_libraries()
    from iterdiff.explore.server import command, serve

    def run() -> int:
        if parsed.path is not None:
            iterdiff.study.open(parsed.path)  # what is wrong with it is said here
        return serve(command(parsed.path, parsed.port, parsed.browser))

    return run


def report(parsed: argparse.Namespace) -> Command:
    """Return the command that writes the report of a folder or a file."""
    _load_study_libraries()
    from iterdiff.study.store import write_whole

    path = parsed.path
    beside = path / "report.html" if path.is_dir() else path.with_suffix(".html")
    out = parsed.out or beside

    def run() -> None:
        content = iterdiff.study.report(iterdiff.study.open(path)).encode()
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(out, content)
        except OSError as error:
            raise ValueError(
                f"`--out`: {out} cannot be written ({error.strerror or error}). Choose another "
                "place."
            ) from error
        print(f"Written: {out}")

    return run


def diagnose(parsed: argparse.Namespace) -> Command:
    """Return the command that prints the diagnosis of a run that a module defines."""
    given = {"rtol": parsed.rtol, "budget": parsed.budget}
    options = {name: value for name, value in given.items() if value is not None}

    from iterdiff.study.named import load_run

    def command() -> None:
        run = load_run(parsed.run_of)
        if run.algorithm is None:
            raise TypeError(
                f"`{parsed.run_of}` must give an algorithm: a tuple (problem, algorithm, x0, "
                "theta)."
            )
        given = options if run.args is None else {**options, "args": run.args}
        found = itd.diagnose(run.problem, run.algorithm, run.x0, run.theta, **given)
        print(as_json(found) if parsed.json else found)

    return command


def list(parsed: argparse.Namespace) -> Command:
    """Return the command that prints the built-in studies."""
    import_extra("pydantic", "study")
    from iterdiff.study.catalog import BUILT_IN

    def command() -> None:
        if parsed.json:
            print(as_json({name: built_in.summary for name, built_in in BUILT_IN.items()}))
            return
        width = max(map(len, BUILT_IN))
        for name, built_in in BUILT_IN.items():
            print(f"{name:{width}}  {built_in.summary}")

    return command


def show(parsed: argparse.Namespace) -> Command:
    """Return the command that prints what a folder contains."""
    _load_study_libraries()
    from iterdiff.cli.grids import show

    return lambda: show(parsed.folder, parsed.json)


def consolidate(parsed: argparse.Namespace) -> Command:
    """Return the command that writes the cells of a folder into one file."""
    _load_study_libraries()
    from iterdiff.study.collect import consolidate

    def command() -> None:
        consolidate(parsed.folder, parsed.to)
        print(f"Written: {parsed.to}")

    return command


def schema(parsed: argparse.Namespace) -> Command:
    """Return the command that prints the schema of files of settings."""
    del parsed
    import_extra("pydantic", "study")
    from iterdiff.study.schema import schema

    return lambda: print(as_json(schema()))
