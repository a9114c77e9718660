"""The command ``iterdiff``: run the built-in studies, or your own, from a terminal."""

import argparse
import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import iterdiff as itd
from iterdiff.jaxtools.extras import import_extra

USAGE_ERROR = 2
INTERRUPTED = 130
INTERRUPTED_MESSAGE = "iterdiff: interrupted; no file was written."
DEFAULT_EXPLORER_STEPS = 600
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
        The exit status: 0; 2 after an error, which is reported in one line; 130 after an interrupt.

    Notes
    -----
    Everything runs in float64: this switches on JAX's ``jax_enable_x64`` for the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _interrupts_end_the_process():
            parsed = _parser().parse_args(arguments)
            import jax

            jax.config.update("jax_enable_x64", True)
            command = parsed.load(parsed)
        command()
    except KeyboardInterrupt:
        print(INTERRUPTED_MESSAGE, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--traceback" in arguments:
            raise
        print(f"iterdiff: error: {_in_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    return 0


@contextlib.contextmanager
def _interrupts_end_the_process() -> Iterator[None]:
    """Let an interrupt end the process at once, while libraries are imported.

    The initialisation of an extension module may drop a KeyboardInterrupt, or crash. Only the main
    thread receives signals.
    """

    def end(number: int, frame: Any) -> NoReturn:
        del number, frame
        print(INTERRUPTED_MESSAGE, file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _in_one_line(error: Exception) -> str:
    """Return the message of an error; with its type, if it is none of those that explain."""
    text = " ".join(str(error).split())
    explains = isinstance(error, ImportError | OSError | TypeError | ValueError | itd.SolveError)
    if explains and text:
        return text
    kind = type(error).__name__
    return f"{kind}{f': {text}' if text else ''} (`iterdiff --traceback ...` shows where)"


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
    listing.set_defaults(load=_list)
    return parser


Command = Callable[[], None]
"""What a command does after its libraries are loaded."""


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
    study.set_defaults(load=_study)


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
        "--steps",
        type=_positive_int,
        metavar="N",
        help=f"number of iterations, without DATASET.nc; default: {DEFAULT_EXPLORER_STEPS}",
    )
    explore.add_argument("--quiet", action="store_true", help="show no progress")
    explore.set_defaults(load=_explore)


def _add_diagnose(commands: Any) -> None:
    diagnose = commands.add_parser(
        "diagnose",
        help="recommend a mode and a number of steps for a run of your own",
        description=(
            "Diagnose a run: NAME in MODULE (or FILE.py) is a tuple (problem, algorithm, x0, "
            "theta), or a function without arguments that returns one. Everything runs in float64."
        ),
    )
    diagnose.add_argument("run_of", metavar="MODULE:NAME|FILE.py:NAME")
    # Without an option, the default is that of `iterdiff.diagnose`; a test compares the help.
    diagnose.add_argument(
        "--rtol", type=float, help="tolerated relative error of the derivative (default: 0.01)"
    )
    diagnose.add_argument("--budget", type=int, help="steps of the trial run (default: 1000)")
    diagnose.set_defaults(load=_diagnose)


def _study(parsed: argparse.Namespace) -> Command:
    """Return the command that runs a study and writes its files."""
    _load_study_libraries()
    from iterdiff.study.catalog import load_study
    from iterdiff.study.files import atomic_folder, write_netcdf
    from iterdiff.study.run import run
    from iterdiff.study.views.plots import save_figures
    from iterdiff.study.views.report import plain, print_report, save_report

    console = import_extra("rich.console", "study").Console()

    def command() -> None:
        study = load_study(parsed.name, **_changes(parsed))
        out = parsed.out or Path("out") / Path(parsed.name).stem
        with atomic_folder(out) as folder:
            with _progress(console, study.name, parsed.quiet) as report_progress:
                data = run(study, report_progress)
            write_netcdf(data, folder / f"{study.name}.nc")
            save_report(data, folder / "report.txt")
            figures = save_figures(data, folder, paper=parsed.paper)
        print_report(data, console)
        console.print(plain(f"Written to {out}:"), soft_wrap=True)
        console.print(plain("  " + "  ".join([f"{study.name}.nc", "report.txt", *figures])))

    return command


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


def _explore(parsed: argparse.Namespace) -> Command:
    """Return the command that writes the page of a dataset, or of a study of step sizes."""
    _load_study_libraries()
    from iterdiff.study.files import atomic_folder, load_dataset
    from iterdiff.study.run import run
    from iterdiff.study.views.explorer import page, step_sizes
    from iterdiff.study.views.report import plain

    console = import_extra("rich.console", "study").Console()

    def command() -> None:
        if parsed.dataset is not None and parsed.steps is not None:
            raise ValueError(
                "`--steps` does not apply to a dataset, whose runs are over; leave it out."
            )
        with atomic_folder(parsed.out) as folder:
            if parsed.dataset is not None:
                data = load_dataset(parsed.dataset)
            else:
                study = step_sizes(steps=parsed.steps or DEFAULT_EXPLORER_STEPS)
                with _progress(console, "step sizes", parsed.quiet) as report_progress:
                    data = run(study, report_progress)
            (folder / "explore.html").write_text(page(data), encoding="utf-8")
        console.print(plain(f"Open {parsed.out / 'explore.html'}"), soft_wrap=True)

    return command


def _diagnose(parsed: argparse.Namespace) -> Command:
    """Return the command that prints the diagnosis of a run that a module defines."""
    given = {"rtol": parsed.rtol, "budget": parsed.budget}
    options = {name: value for name, value in given.items() if value is not None}

    def command() -> None:
        print(itd.diagnose(*_run_of(parsed.run_of), **options))

    return command


def _run_of(place: str) -> tuple[Any, ...]:
    """Return the run that ``MODULE:NAME`` or ``FILE.py:NAME`` holds."""
    module, _, name = place.rpartition(":")
    if not module or not name:
        raise ValueError(
            f"`MODULE:NAME` must be like package.module:run or folder/file.py:run, not {place!r}."
        )
    loaded = _executed(lambda: _imported(module), module)
    if not hasattr(loaded, name):
        raise ValueError(f"`MODULE:NAME`: {module} defines no `{name}`.")
    found = getattr(loaded, name)
    run = _executed(found, f"{name}()") if callable(found) else found
    if not isinstance(run, tuple) or len(run) != 4:
        raise TypeError(f"`{place}` must be a tuple (problem, algorithm, x0, theta).")
    return run


def _imported(module: str) -> Any:
    """Return a module by its dotted name, found from the working folder, or by its path."""
    path = Path(module)
    if path.suffix != ".py":
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(module)
    if not path.is_file():
        raise ValueError(f"`FILE.py:NAME`: there is no file {path}.")
    sys.path.insert(0, str(path.resolve().parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _executed(function: Callable[[], Any], what: str) -> Any:
    """Run a user's code; report its errors with the line that raised them.

    Raises
    ------
    ValueError
        If the code raises anything.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith("`FILE.py:NAME`"):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name == what:
            raise ValueError(
                f"`MODULE:NAME`: there is no module {what}; a file is given as folder/file.py:run."
            ) from error
        raise ValueError(
            f"`MODULE:NAME`: {what} raised {said} ({Path(last.filename).name}, line {last.lineno})."
        ) from error


def _list(parsed: argparse.Namespace) -> Command:
    """Return the command that prints the built-in studies."""
    del parsed
    import_extra("pydantic", "study")
    from iterdiff.study.catalog import BUILT_IN

    def command() -> None:
        width = max(map(len, BUILT_IN))
        for name, built_in in BUILT_IN.items():
            print(f"{name:{width}}  {built_in.summary}")

    return command


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
