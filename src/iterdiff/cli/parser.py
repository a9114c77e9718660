"""The words of the command line.

The parser is argparse's, with completion by shtab, not that of cyclopts or typer: those load in
58 ms instead of 6, and `iterdiff diagnose`, which needs no extra, would need one. They would not
shorten this file, which holds the words; exit statuses and errors of one line are ours in any case.
"""

import argparse
from pathlib import Path
from typing import Any, NoReturn

import iterdiff as itd
from iterdiff.cli import commands
from iterdiff.jaxtools.extras import import_extra


class _Parser(argparse.ArgumentParser):
    """A parser that reports a usage error in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See `{self.prog} --help`.")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; each command sets `load`, which returns what it does."""
    parser = _Parser(
        prog="iterdiff",
        description="Measure how the derivatives of iterative algorithms converge.",
    )
    parser.add_argument("--version", action="version", version=f"iterdiff {itd.__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for bug reports"
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_study(subparsers)
    _add_diagnose(subparsers)
    _add_explore(subparsers)
    _add_report(subparsers)
    _add_folders(subparsers)
    listing = subparsers.add_parser(
        "list",
        help="list the built-in studies, one per line",
        epilog="example: iterdiff list --json",
    )
    _add_json(listing)
    listing.set_defaults(load=commands.list)
    schema = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of files of settings",
        epilog="example: iterdiff schema > study.schema.json",
    )
    schema.set_defaults(load=commands.schema)
    completion = subparsers.add_parser(
        "completion",
        help="print the completion script of a shell",
        epilog='example, in a shell\'s start file: eval "$(iterdiff completion bash)"',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(load=_completion)
    return parser


def _add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_folders(subparsers: Any) -> None:
    show = subparsers.add_parser(
        "show",
        help="print what the folder of a grid contains, lacks, and what failed",
        epilog="example: iterdiff show out/mine --json",
    )
    show.add_argument("folder", type=Path, metavar="FOLDER")
    _add_json(show)
    show.set_defaults(load=commands.show)
    consolidate = subparsers.add_parser(
        "consolidate",
        help="write the cells of a grid into one file",
        epilog="example: iterdiff consolidate out/mine --to mine.nc",
    )
    consolidate.add_argument("folder", type=Path, metavar="FOLDER")
    consolidate.add_argument(
        "--to", type=Path, required=True, metavar="FILE", help="a file .nc or .zarr"
    )
    consolidate.set_defaults(load=commands.consolidate)


def _positive_int(text: str) -> int:
    """Return the value of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _add_study(subparsers: Any) -> None:
    study = subparsers.add_parser(
        "study",
        help="run a study: print a table, write a dataset and figures",
        description=(
            "Run a study in float64: print a table of peaks and burn-ins, and write a NetCDF "
            "dataset and figures (PNG and SVG). A file with a table [grid] is a grid of studies: "
            "each cell is a file, and a second run computes the missing cells only."
        ),
        epilog=(
            "examples: iterdiff study logistic --out out/logistic | iterdiff study grid.toml "
            "--dry-run | iterdiff study grid.toml --set steps=500 --jobs 4 | iterdiff study "
            "folder/mine.py:make --steps 200"
        ),
    )
    study.add_argument(
        "name",
        nargs="?",
        default="logistic",
        metavar="NAME|FILE.toml|MODULE:NAME",
        help=(
            "a built-in study (see `iterdiff list`), a file of settings, or a problem of your own, "
            "as for `iterdiff diagnose`; default: logistic"
        ),
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
    study.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="a setting as in the file, for example problem.penalty=0.1; may be repeated",
    )
    study.add_argument(
        "--dry-run", action="store_true", help="print size and estimated cost, and run nothing"
    )
    _add_places(study)
    study.add_argument(
        "--fresh", action="store_true", help="remove the cells that are there, and start over"
    )
    study.add_argument("--quiet", action="store_true", help="show no progress")
    _add_json(study)
    study.set_defaults(load=commands.study)


def _add_places(study: Any) -> None:
    """Add the options that say where the cells of a grid are computed."""
    where = study.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs", type=_positive_int, metavar="N", help="compute the cells of a grid in N processes"
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="compute the cells of a grid on a Dask cluster"
    )


def _add_explore(subparsers: Any) -> None:
    explore = subparsers.add_parser(
        "explore",
        epilog=(
            "examples: iterdiff explore | iterdiff explore out/logistic/logistic.nc | iterdiff "
            "explore out/mine --no-browser --port 9000"
        ),
        help="play with problems, algorithms and modes in the browser",
        description=(
            "Open the explorer in the browser. Its server runs on this machine, which alone can "
            "reach it, and loads nothing from elsewhere. With FOLDER or FILE.nc it shows the "
            "results of a study. Ctrl-C ends it."
        ),
    )
    explore.add_argument("path", nargs="?", type=Path, metavar="FOLDER|FILE.nc")
    explore.add_argument(
        "--port", type=_positive_int, metavar="N", help="port of the server; default: a free one"
    )
    explore.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="open no browser; the address is printed",
    )
    explore.set_defaults(load=commands.explore)


def _add_report(subparsers: Any) -> None:
    report = subparsers.add_parser(
        "report",
        epilog="example: iterdiff report out/mine --out mine.html",
        help="write a study's results as one HTML page to hand on",
        description=(
            "Write one HTML page that needs neither server nor network: what was run, verdicts, "
            "figures, iterations to tolerance, and where the results come from."
        ),
    )
    report.add_argument("path", type=Path, metavar="FOLDER|FILE.nc")
    report.add_argument(
        "--out", type=Path, metavar="FILE.html", help="default: beside the data, named like it"
    )
    report.set_defaults(load=commands.report)


def _add_diagnose(subparsers: Any) -> None:
    diagnose = subparsers.add_parser(
        "diagnose",
        epilog="example: iterdiff diagnose folder/mine.py:make --rtol 1e-3",
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
    _add_json(diagnose)
    diagnose.set_defaults(load=commands.diagnose)


def _completion(parsed: argparse.Namespace) -> commands.Command:
    """Return the command that prints the completion script of a shell."""
    shtab = import_extra("shtab", "study")
    return lambda: print(shtab.complete(make_parser(), parsed.shell))
