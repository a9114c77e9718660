"""The report of a study: a table and verdicts, on a terminal or in a file."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.run import cases
from iterdiff.study.views.summary import (
    SMALL_MAX_RELATIVE_ERROR,
    Convergence,
    divergence,
    factor,
    iterate_of,
    jacobian_of,
)
from iterdiff.study.views.verdicts import verdicts

if TYPE_CHECKING:
    import xarray

WIDTH = 100
"""Width of the report in a file, in characters."""


def save_report(data: "xarray.Dataset", path: Path) -> None:
    """Write table and verdicts to a text file.

    Parameters
    ----------
    data : xarray.Dataset
        The dataset that `iterdiff.study.run.run` returns.
    path : Path
        The file.
    """
    text = io.StringIO()
    print_report(data, import_extra("rich.console", "study").Console(file=text, width=WIDTH))
    path.write_text(text.getvalue(), encoding="utf-8")


def print_report(data: "xarray.Dataset", console: Any) -> None:
    """Print table and verdicts.

    Parameters
    ----------
    data : xarray.Dataset
        The dataset that `iterdiff.study.run.run` returns.
    console : rich.console.Console
        The destination.
    """
    console.print(table(data))
    for case in verdicts(data):
        console.print(plain(str(case)))


def plain(text: str, style: str = "") -> Any:
    """Return a text (rich's) that is printed literally: brackets are not markup."""
    return import_extra("rich.text", "study").Text(text, style)


def table(data: "xarray.Dataset") -> Any:
    """Return the numbers of a study as a table (rich's), at most 100 columns wide."""
    made = import_extra("rich.table", "study").Table(
        title=plain(data.attrs["title"], "table.title"),
        caption=(
            "Rows: the iterate, then its Jacobian in each mode. start, final: absolute errors "
            "(Euclidean, Frobenius norm); peak: times the start; small: below "
            f"{SMALL_MAX_RELATIVE_ERROR:g} of the iterate's start, or of the norm of the true "
            "Jacobian."
        ),
        title_justify="left",
        caption_justify="left",
    )
    made.add_column(data.attrs["axis"])
    made.add_column("error of")
    for name in ("start", "peak", "at", "burn-in\nuntil", "small\nfrom", "final"):
        made.add_column(name, justify="right", no_wrap=True)
    for label, case in cases(data):
        made.add_section()
        said = "" if divergence(case) is None else " (diverges)"
        made.add_row(plain(f"{label}{said}"), "iterate", *_cells(iterate_of(case)))
        for mode in map(str, case["mode"].values):
            made.add_row("", plain(mode), *_cells(jacobian_of(case, mode)))
    return made


def numbers(data: "xarray.Dataset") -> list[dict[str, Any]]:
    """Return the numbers behind the table and the verdicts, a mapping for each case."""
    said = {case.label: [str(verdict) for verdict in case.verdicts] for case in verdicts(data)}
    return [
        {
            "case": label,
            "iterate": iterate_of(case)._asdict(),
            "modes": {
                mode: jacobian_of(case, mode)._asdict() for mode in map(str, case["mode"].values)
            },
            "verdicts": said[label],
        }
        for label, case in cases(data)
    ]


def _cells(found: Convergence) -> tuple[str, ...]:
    peak = factor(found.growth) if found.has_burn_in else "-"
    at = str(found.peak_iteration) if found.has_burn_in else "-"
    end = "never" if found.burn_in_end is None else str(found.burn_in_end or "-")
    small = "never" if found.small_from is None else str(found.small_from)
    return f"{found.start:.2e}", peak, at, end, small, f"{found.final:.2e}"
