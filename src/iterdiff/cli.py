"""The command ``iterdiff``: run the built-in studies, or one's own, from a terminal."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iterdiff as itd

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit status: 0, or 2 after bad input, which is reported in one line.

    Notes
    -----
    Everything runs in float64: JAX's ``jax_enable_x64`` is switched on for this process.
    """
    parsed = _parser().parse_args(arguments)
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        return parsed.run(parsed)
    except (ImportError, OSError, TypeError, ValueError) as error:
        if parsed.traceback:
            raise
        print(f"iterdiff: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("iterdiff: interrupted; nothing was written.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iterdiff",
        description="Measure how the derivatives of iterative algorithms converge.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for bug reports"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_study(commands)
    _add_diagnose(commands)
    _add_explore(commands)
    listing = commands.add_parser("list", help="list the built-in studies, a line each")
    listing.set_defaults(run=_list)
    return parser


def _add_study(commands: Any) -> None:
    study = commands.add_parser(
        "study",
        help="run a study: print a table, write a dataset and figures",
        description=(
            "Run a study in float64: print a table of peaks and burn-ins, and write a NetCDF "
            "dataset and figures (PNG and SVG)."
        ),
    )
    study.add_argument(
        "name",
        nargs="?",
        default="logistic",
        metavar="NAME|FILE.toml",
        help="a built-in study (see `iterdiff list`) or a file of settings; default: logistic",
    )
    study.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write to; default: out/NAME"
    )
    study.add_argument("--data", metavar="FILE.csv", help="a table of your own, for regressions")
    study.add_argument("--target", metavar="COLUMN", help="the column of --data to predict")
    study.add_argument("--steps", type=int, metavar="N", help="iterations of every run")
    study.add_argument("--every", type=int, metavar="N", help="record every so many iterations")
    study.add_argument(
        "--probes", type=int, metavar="K", help="estimate Jacobian errors from K random directions"
    )
    study.add_argument(
        "--paper", action="store_true", help="write PDF too, in the width of a two-column page"
    )
    study.add_argument("--quiet", action="store_true", help="show no progress")
    study.set_defaults(run=_study)


def _add_explore(commands: Any) -> None:
    explore = commands.add_parser(
        "explore",
        help="write a page that shows a study with a slider",
        description=(
            "Write one HTML page, which needs no server and no network: a slider along a study's "
            "runs, their curves and verdicts. Without DATASET.nc it runs gradient descent at 25 "
            "step sizes on an ill-conditioned quadratic."
        ),
    )
    explore.add_argument("dataset", nargs="?", type=Path, metavar="DATASET.nc")
    explore.add_argument(
        "--out", type=Path, default=Path("out/explore"), metavar="DIR", help="where to write to"
    )
    explore.add_argument("--steps", type=int, default=600, metavar="N", help="iterations")
    explore.add_argument("--quiet", action="store_true", help="show no progress")
    explore.set_defaults(run=_explore)


def _explore(parsed: argparse.Namespace) -> int:
    from iterdiff.study.explorer import page, step_sizes
    from iterdiff.study.extras import load
    from iterdiff.study.grid import run
    from iterdiff.study.store import fresh_folder

    xarray, _ = load("xarray"), load("h5py")
    console = load("rich.console").Console()
    with fresh_folder(parsed.out) as folder:
        if parsed.dataset is not None:
            if not parsed.dataset.is_file():
                raise ValueError(f"`DATASET.nc`: there is no file {parsed.dataset}.")
            data = xarray.load_dataset(parsed.dataset, engine="h5netcdf")
            if "axis" not in data.attrs:
                raise ValueError(f"`DATASET.nc`: {parsed.dataset} was not written by a study.")
        else:
            with _progress(console, "step sizes", parsed.quiet) as progress:
                data = run(step_sizes(steps=parsed.steps), progress)
        (folder / "explore.html").write_text(page(data), encoding="utf-8")
    console.print(f"Open {parsed.out / 'explore.html'}", highlight=False, markup=False)
    return 0


def _add_diagnose(commands: Any) -> None:
    diagnose = commands.add_parser(
        "diagnose",
        help="say which mode to use for a run of your own, and when to stop",
        description=(
            "Diagnose a run: NAME in MODULE is a tuple (problem, algorithm, x0, theta), or a "
            "function without arguments that returns one. Everything runs in float64."
        ),
    )
    diagnose.add_argument("run_of", metavar="MODULE:NAME")
    diagnose.add_argument(
        "--rtol", type=float, default=1e-3, help="relative error of the derivative that is wanted"
    )
    diagnose.add_argument("--budget", type=int, help="steps of the trial run (default: 1000)")
    diagnose.set_defaults(run=_diagnose)


def _diagnose(parsed: argparse.Namespace) -> int:
    module, _, name = parsed.run_of.partition(":")
    if not module or not name:
        raise ValueError(f"`MODULE:NAME` must be like package.module:run, not {parsed.run_of!r}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"`MODULE:NAME`: {error}.") from error
    run = found() if callable(found) else found
    if not isinstance(run, tuple) or len(run) != 4:
        raise TypeError(f"`{parsed.run_of}` must be a tuple (problem, algorithm, x0, theta).")
    print(itd.diagnose(*run, rtol=parsed.rtol, budget=parsed.budget))
    return 0


def _list(parsed: argparse.Namespace) -> int:
    del parsed
    from iterdiff.study.catalog import RECIPES

    width = max(len(name) for name in RECIPES)
    for name, recipe in RECIPES.items():
        print(f"{name:{width}}  {recipe.summary}")
    return 0


def _study(parsed: argparse.Namespace) -> int:
    from iterdiff.study.catalog import load_study
    from iterdiff.study.extras import load
    from iterdiff.study.grid import run
    from iterdiff.study.plots import save_figures
    from iterdiff.study.report import print_report, save_report
    from iterdiff.study.store import fresh_folder

    for library in ("xarray", "h5netcdf", "h5py", "matplotlib", "rich"):
        load(library)
    study = load_study(parsed.name, _overrides(parsed))
    out = parsed.out or Path("out") / Path(parsed.name).stem
    console = load("rich.console").Console()
    with fresh_folder(out) as folder:
        with _progress(console, study.name, parsed.quiet) as progress:
            data = run(study, progress)
        data.to_netcdf(folder / f"{study.name}.nc", engine="h5netcdf")
        save_report(data, folder / "report.txt")
        figures = save_figures(data, folder, paper=parsed.paper)
    print_report(data, console)
    console.print(f"Written to {out}:", highlight=False, markup=False, soft_wrap=True)
    names = [f"{study.name}.nc", "report.txt", *figures]
    console.print("  " + "  ".join(names), highlight=False, markup=False)
    return 0


def _overrides(parsed: argparse.Namespace) -> Any:
    from iterdiff.study.config import Overrides

    problem = {}
    if (parsed.data is None) != (parsed.target is None):
        missing = "target" if parsed.target is None else "data"
        raise ValueError(f"`--{missing}` is missing: --data and --target belong together.")
    if parsed.data is not None:
        problem = {"data": parsed.data, "target": parsed.target}
    return Overrides(steps=parsed.steps, every=parsed.every, probes=parsed.probes, problem=problem)


class _progress:
    """A progress bar with the time left, as the callable that a study reports to."""

    def __init__(self, console: Any, label: str, quiet: bool):
        from iterdiff.study.extras import load

        rich = load("rich.progress")
        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.bar.add_task(label, total=None)

    def __enter__(self) -> Any:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
