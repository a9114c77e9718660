"""The report of a study: one HTML file that needs neither server nor network."""

import html
import importlib.resources
import itertools
import json
import math
import string
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from iterdiff.study.run import cases
from iterdiff.study.settings import dotted
from iterdiff.study.views.advice import advice, sentence
from iterdiff.study.views.cells import Cell, cells, grid_axes, varied_settings
from iterdiff.study.views.palette import CYCLE
from iterdiff.study.views.provenance import as_toml, provenance, reproduction, settings
from iterdiff.study.views.summary import divergence, factor, jacobian_of, reached
from iterdiff.study.views.verdicts import Verdict, verdicts

if TYPE_CHECKING:
    import xarray

MAX_CASES = 48
"""Largest number of cases whose curves and verdicts are in a report; the table has all of them."""

MAX_ROWS = 2000
"""Largest number of rows of the table of all cases."""

MAX_NUMBERS = 40_000
"""Largest number of points of all curves together: about 600 kB."""

MIN_POINTS, MAX_POINTS = 40, 400
"""Smallest and largest number of points of a curve."""

LISTED = 12
"""Number of iterations in the table beside a figure."""

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-6, 1e-9)
"""Relative errors of the Jacobian in the table of iterations to tolerance."""

VARIES = "varies over the grid"
"""Stands for the value of a setting that is not the same in all cells."""

SOLID, DASHED, DOTTED = "", "7 4", "2 5"

PLAIN = "currentColor"
"""The colour of text, in light and in dark."""


class _Page(string.Template):
    """The page, in which words such as ``@TITLE`` are replaced."""

    delimiter = "@"


class _Case(NamedTuple):
    """A case, with the cell that it is in."""

    label: str
    data: "xarray.Dataset"
    said: tuple[Verdict, ...]


def report(data: "xarray.Dataset | xarray.DataTree") -> str:
    """Return the report of a study as one HTML page; `iterdiff.study.report` describes it."""
    found, shown, rows = list(cells(data)), [], []
    for case in itertools.chain.from_iterable(map(_cases_of, found)):
        if len(shown) < MAX_CASES:
            shown.append(case)
        if len(rows) < MAX_ROWS:
            rows += _rows(case)
    title = str(data.attrs.get("title") or "Grid of studies")
    parts = importlib.resources.files("iterdiff.study.views")
    template = _Page(parts.joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        TITLE=html.escape(title),
        SUMMARY=_summary(data, found),
        VERDICTS=_paragraphs(shown),
        STYLE=parts.joinpath("report.css").read_text(encoding="utf-8"),
        SCRIPT=parts.joinpath("report.js").read_text(encoding="utf-8"),
        DATA=as_script({"cases": [_drawn(case, len(shown)) for case in shown]}),
        TABLES="".join(map(_table_beside, shown)),
        TOLERANCES=_tolerances(rows),
        PROVENANCE=table(("what", "value"), provenance(data)),
        REPRODUCTION=f"<pre><code>{html.escape(reproduction(data))}</code></pre>",
    )


def as_script(content: Any) -> str:
    """Return JSON in which no text can end a script or begin a tag."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", numbers: int = 99
) -> str:
    """Return a table; columns from `numbers` on are right-aligned. All texts are escaped."""

    def line(kind: str, cells: Sequence[str]) -> str:
        marks = [' class="n"' if place >= numbers else "" for place in range(len(cells))]
        inner = zip(marks, cells, strict=True)
        return "".join(f"<{kind}{mark}>{html.escape(text)}</{kind}>" for mark, text in inner)

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<tr>{line("th", head)}</tr>{body}</table></div>'


def _cases_of(cell: Cell) -> Iterator[_Case]:
    if cell.data is None:
        return
    several = cell.data.sizes[cell.data.attrs["axis"]] > 1
    judged = verdicts(cell.data)
    for (label, case), found in zip(cases(cell.data), judged, strict=True):
        of_cell = cell.label if cell.data.attrs.get("grid") else ""
        whole = "; ".join(
            part for part in (of_cell, label if several or not of_cell else "") if part
        )
        yield _Case(whole, case, advice(case) + found.verdicts)


def _summary(data: Any, found: Sequence[Cell]) -> str:
    """Return what was run: the axes of the grid, and how many cells are there."""
    axes = [(axis.name, str(len(axis.labels)), "; ".join(axis.labels)) for axis in grid_axes(data)]
    counts = {kind: sum(c.status == kind for c in found) for kind in ("done", "failed", "missing")}
    parts = []
    if axes:
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        parts.append(f"<p>{len(found)} cells: {said}.</p>")
        parts.append(table(("axis of the grid", "values", "which"), axes))
    failed = [(cell.label, cell.cause) for cell in found if cell.status == "failed"]
    if failed:
        parts.append(table(("failed cell", "cause"), failed[:MAX_ROWS]))
    varied = varied_settings(data)
    given = {key: value for key, value in settings(data).items() if value != {}}
    lines = [(key, _in_words(value, (key,), varied)) for key, value in given.items()]
    return "".join([*parts, table(("setting", "value"), lines)])


def _in_words(value: Any, place: tuple[str, ...], varied: Container[tuple[str, ...]]) -> str:
    """Return a setting as text, without the first cell's value of what the grid varies.

    The entries of a table are below each other, those of a table inside it in one line.
    """
    if place in varied:
        return VARIES
    if not isinstance(value, Mapping):
        return as_toml(value)
    pairs = []
    for key, inner in value.items():
        here = (*place, key)
        between = " " if here in varied else " = "
        if inner is not None or here in varied:
            pairs.append(f"{dotted([key])}{between}{_in_words(inner, here, varied)}")
    return "\n".join(pairs) if len(place) == 1 else "{" + ", ".join(pairs) + "}"


def _paragraphs(shown: Sequence[_Case]) -> str:
    """Return the verdicts in words: the first case open, the others to be opened."""
    parts = []
    for number, case in enumerate(shown):
        items = "".join(f"<li>{html.escape(sentence(verdict))}</li>" for verdict in case.said)
        state = " open" if number == 0 or len(shown) <= 3 else ""
        label = html.escape(case.label)
        parts.append(f"<details{state}><summary>{label}</summary><ul>{items}</ul></details>")
    if len(shown) == MAX_CASES:
        parts.append(f"<p>The first {MAX_CASES} cases; the table below has all of them.</p>")
    return "".join(parts)


def _curves(case: "xarray.Dataset") -> Iterator[tuple[int, str, str, str, Any]]:
    """Yield panel, name, colour, dashes and values of every curve of a case."""
    if "closed_form" in case:
        yield 0, "closed form, unrolled", PLAIN, DOTTED, case.closed_form
    for i, mode in enumerate(map(str, case["mode"].values)):
        colour = CYCLE[i % len(CYCLE)]
        yield 0, mode, colour, (SOLID, DASHED)[i % 2], case.jacobian_error.sel(mode=mode)
        if "bound" in case and np.isfinite(case.bound.sel(mode=mode)).any():
            yield 0, f"bound, {mode}", colour, DOTTED, case.bound.sel(mode=mode)
    yield 1, "iterate", PLAIN, SOLID, case.iterate_error
    if "objective_error" in case:
        yield 1, "objective", CYCLE[4], DASHED, case.objective_error


def _drawn(case: _Case, count: int) -> dict[str, Any]:
    """Return what the page draws of a case: points are (iteration, log10 of the error)."""
    curves = list(_curves(case.data))
    room = MAX_NUMBERS // (count * len(curves))
    t = case.data.iteration.values
    keep = np.linspace(0, len(t) - 1, min(max(MIN_POINTS, min(MAX_POINTS, room)), len(t)))
    keep = np.unique(keep.astype(int))
    drawn = []
    for panel, name, colour, dash, values in curves:
        heights = np.asarray(values, float)
        points = [
            [int(t[i]), round(math.log10(heights[i]), 3)]
            for i in keep
            if np.isfinite(heights[i]) and heights[i] > 0
        ]
        drawn.append(
            {"panel": panel, "name": name, "colour": colour, "dash": dash, "points": points}
        )
    return {
        "label": case.label,
        "curves": drawn,
        "last": int(t[-1]),
        "burn": _burn_in(case.data),
        "alt": _alt(case),
    }


def _burn_in(case: "xarray.Dataset") -> list[int | float] | None:
    """Return end, place and log10 height of the unrolled derivative's burn-in."""
    if "unrolled" not in case["mode"].values:
        return None
    found = jacobian_of(case, "unrolled")
    if not found.has_burn_in or not 0 < found.peak < math.inf:
        return None
    end = int(case.iteration[-1]) if found.burn_in_end is None else found.burn_in_end
    return [end, found.peak_iteration, round(math.log10(found.peak), 3)]


def _alt(case: _Case) -> str:
    """Return the words that stand for the figure of a case."""
    said = " ".join(map(sentence, case.said))
    return f"Absolute errors over {int(case.data.steps)} iterations of {case.label}: {said}"


def _table_beside(case: _Case) -> str:
    """Return the numbers of a figure, at some of its iterations."""
    t = case.data.iteration.values
    keep = np.unique(np.linspace(0, len(t) - 1, min(LISTED, len(t))).astype(int))
    curves = list(_curves(case.data))
    columns = [np.asarray(values, float)[keep] for *_, values in curves]
    rows = [
        [str(t[i]), *(f"{column[place]:.3g}" for column in columns)] for place, i in enumerate(keep)
    ]
    head = ["iteration", *(name for _, name, *_ in curves)]
    made = table(head, rows, f"Absolute errors, {case.label}", numbers=0)
    return f'<details class="beside"><summary>The numbers of the figures</summary>{made}</details>'


def _rows(case: _Case) -> list[list[str]]:
    """Return the lines of a case in the table of iterations to tolerance: one for each mode."""
    said = "" if divergence(case.data) is None else " (diverges)"
    rows = []
    for mode in map(str, case.data["mode"].values):
        found = jacobian_of(case.data, mode)
        peak = f"{factor(found.growth)} at {found.peak_iteration}" if found.has_burn_in else "–"
        firsts = [reached(case.data, mode, tolerance) for tolerance in TOLERANCES]
        counts = ["never" if first is None else str(first) for first in firsts]
        rows.append([f"{case.label}{said}", mode, *counts, peak, f"{found.final:.2g}"])
    return rows


def _tolerances(rows: Sequence[Sequence[str]]) -> str:
    head = ["case", "mode", *(f"{tolerance:g}" for tolerance in TOLERANCES), "peak", "final error"]
    caption = (
        "The iteration from which the error of the Jacobian, relative to the true Jacobian, stays "
        "within the tolerance; the peak of the burn-in; the absolute error at the end."
    )
    made = table(head, rows, caption, numbers=2)
    if len(rows) >= MAX_ROWS:
        made += f"<p>The first {MAX_ROWS} lines.</p>"
    return made
