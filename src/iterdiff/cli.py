"""The command ``iterdiff``: run the built-in studies, or your own, from a terminal."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import iterdiff as itd
from iterdiff.jaxtools.extras import import_extra

USAGE_ERROR = 2
INTERRUPTED = 130
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default the arguments of the process.

    Returns
    -------
    int
        The exit status: 0, or 2 after wrong input, which is reported in one line.

    Notes
    -----
    Everything runs in float64: this switches on JAX's ``jax_enable_x64`` for the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        parsed = _parser().parse_args(arguments)
        import jax

        jax.config.update("jax_enable_x64", True)
        parsed.run(parsed)
    except (ImportError, OSError, TypeError, ValueError) as error:
        if "--traceback" in arguments:
            raise
        print(f"iterdiff: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("iterdiff: interrupted; no file was written.", file=sys.stderr)
        return INTERRUPTED
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that reports a usage error in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="iterdiff",
        description="Measure how the derivatives of iterative algorithms converge.",
    )
    parser.add_argument("--version", action="version", version=f"iterdiff {itd.__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for bug reports"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_study(commands)
    _add_diagnose(commands)
    _add_explore(commands)
    listing = commands.add_parser("list", help="list the built-in studies, one per line")
    listing.set_defaults(run=_list)
    return parser


def _positive_int(text: str) -> int:
    """Return the value of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


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
    study.add_argument("--out", type=Path, metavar="DIR", help="output folder; default: out/NAME")
    study.add_argument("--data", metavar="FILE.csv", help="a table of your own, for regressions")
    study.add_argument("--target", metavar="COLUMN", help="the column of --data to predict")
    counts = {
        "--steps": ("N", "number of iterations of every run"),
        "--every": ("N", "record every N-th iteration; N divides the number of iterations"),
        "--probes": ("K", "estimate Jacobian errors from K random directions"),
    }
    for option, (metavar, text) in counts.items():
        study.add_argument(option, type=_positive_int, metavar=metavar, help=text)
    study.add_argument(
        "--paper", action="store_true", help="also write PDF, as wide as a two-column page"
    )
    study.add_argument("--quiet", action="store_true", help="show no progress")
    study.set_defaults(run=_study)


def _add_explore(commands: Any) -> None:
    explore = commands.add_parser(
        "explore",
        help="write a page that shows a study with a slider",
        description=(
            "Write one HTML page that needs neither server nor network: a slider along a study's "
            "runs, their curves and verdicts. Without DATASET.nc it runs gradient descent at 25 "
            "step sizes on an ill-conditioned quadratic."
        ),
    )
    explore.add_argument("dataset", nargs="?", type=Path, metavar="DATASET.nc")
    explore.add_argument(
        "--out", type=Path, default=Path("out/explore"), metavar="DIR", help="output folder"
    )
    explore.add_argument(
        "--steps", type=_positive_int, default=600, metavar="N", help="number of iterations"
    )
    explore.add_argument("--quiet", action="store_true", help="show no progress")
    explore.set_defaults(run=_explore)


def _add_diagnose(commands: Any) -> None:
    diagnose = commands.add_parser(
        "diagnose",
        help="recommend a mode and a number of steps for a run of your own",
        description=(
            "Diagnose a run: NAME in MODULE is a tuple (problem, algorithm, x0, theta), or a "
            "function without arguments that returns one. Everything runs in float64."
        ),
    )
    diagnose.add_argument("run_of", metavar="MODULE:NAME")
    diagnose.add_argument(
        "--rtol", type=float, default=1e-3, help="tolerated relative error of the derivative"
    )
    diagnose.add_argument("--budget", type=int, help="steps of the trial run (default: 1000)")
    diagnose.set_defaults(run=_diagnose)


def _study(parsed: argparse.Namespace) -> None:
    """Run a study and write its files."""
    for library in STUDY_LIBRARIES:
        import_extra(library, "study")
    from iterdiff.study.catalog import load_study
    from iterdiff.study.files import atomic_folder, write_netcdf
    from iterdiff.study.run import run
    from iterdiff.study.views.plots import save_figures
    from iterdiff.study.views.report import plain, print_report, save_report

    study = load_study(parsed.name, **_changes(parsed))
    out = parsed.out or Path("out") / Path(parsed.name).stem
    console = import_extra("rich.console", "study").Console()
    with atomic_folder(out) as folder:
        with _progress(console, study.name, parsed.quiet) as report_progress:
            data = run(study, report_progress)
        write_netcdf(data, folder / f"{study.name}.nc")
        save_report(data, folder / "report.txt")
        figures = save_figures(data, folder, paper=parsed.paper)
    print_report(data, console)
    console.print(plain(f"Written to {out}:"), soft_wrap=True)
    console.print(plain("  " + "  ".join([f"{study.name}.nc", "report.txt", *figures])))


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


def _explore(parsed: argparse.Namespace) -> None:
    """Write the page of a dataset, or of a study of step sizes."""
    for library in STUDY_LIBRARIES:
        import_extra(library, "study")
    from iterdiff.study.files import atomic_folder
    from iterdiff.study.run import run
    from iterdiff.study.views.explorer import page, step_sizes
    from iterdiff.study.views.report import plain

    console = import_extra("rich.console", "study").Console()
    with atomic_folder(parsed.out) as folder:
        if parsed.dataset is not None:
            data = _load_dataset(parsed.dataset)
        else:
            with _progress(console, "step sizes", parsed.quiet) as report_progress:
                data = run(step_sizes(steps=parsed.steps), report_progress)
        (folder / "explore.html").write_text(page(data), encoding="utf-8")
    console.print(plain(f"Open {parsed.out / 'explore.html'}"), soft_wrap=True)


def _load_dataset(path: Path) -> Any:
    """Return a dataset that a study wrote."""
    if not path.is_file():
        raise ValueError(f"`DATASET.nc`: there is no file {path}.")
    try:
        data = import_extra("xarray", "study").load_dataset(path, engine="h5netcdf")
    except OSError as error:
        raise ValueError(f"`DATASET.nc`: {path} is not a NetCDF file: {error}.") from error
    if "axis" not in data.attrs:
        raise ValueError(f"`DATASET.nc`: {path} was not written by a study.")
    return data


def _diagnose(parsed: argparse.Namespace) -> None:
    """Print the diagnosis of a run that a module defines."""
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


def _list(parsed: argparse.Namespace) -> None:
    """Print the built-in studies."""
    del parsed
    import_extra("pydantic", "study")
    from iterdiff.study.catalog import BUILT_IN

    width = max(map(len, BUILT_IN))
    for name, built_in in BUILT_IN.items():
        print(f"{name:{width}}  {built_in.summary}")


@contextlib.contextmanager
def _progress(console: Any, label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with the time left; yield the function that updates it."""
    rich = import_extra("rich.progress", "study")
    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with rich.Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
