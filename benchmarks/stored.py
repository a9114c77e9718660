"""Read a stored report again, so that its pictures can be drawn without measuring."""

import math
import re
from pathlib import Path

from benchmarks import picture
from benchmarks.growth import AXES
from benchmarks.sections import Curve
from benchmarks.targets import TARGETS, Figure

UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def draw(folder: Path) -> list[Path]:
    """Draw the pictures of the report ``speed.md`` in a folder, beside it."""
    report = (folder / "speed.md").read_text(encoding="utf-8")
    return picture.draw(figures(report), curves(report), folder)


def figures(report: str) -> list[Figure]:
    """Return the figures beside their targets, as the report's first table has them.

    A row whose target is no longer in `TARGETS`, word for word, is left out.
    """
    keys = {(target.work, target.wording): key for key, target in TARGETS.items()}
    found = []
    for work, wording, ours, _, best in _rows(report, 5):
        key = keys.get((work, wording))
        if key is None:
            continue
        measured = re.fullmatch(r"(\S+)(?: (?:×|MB))?(?: \((.*)\))?", ours)
        other = re.fullmatch(r"(\S+)(?: (?:×|MB))?: (.*)", best)
        if measured is None:
            raise ValueError(f"this is no figure: {ours}")
        name, value = (other[2], _number(other[1])) if other else ("", math.nan)
        found.append(Figure(key, _number(measured[1]), name, value, measured[2] or ""))
    return found


def curves(report: str) -> list[Curve]:
    """Return how times grow, from the report's tables of growth."""
    found = []
    for axis in AXES:
        part = re.search(rf"### Growth with {re.escape(axis)}: .*?(?=\n#|\Z)", report, re.DOTALL)
        shown = part and re.search(rf"^At {re.escape(axis)} = (.*?): time", part[0], re.MULTILINE)
        if not part or not shown:
            continue
        sizes = [_number(size) for size in shown[1].split(", ")]
        for name, costs, exponent, _ in _rows(part[0], 4):
            seconds = [_seconds(cost) for cost in costs.split(", ")]
            found.append(Curve(axis, name, sizes, seconds, _number(exponent)))
    return found


def _rows(text: str, columns: int) -> list[list[str]]:
    """Return the rows of all tables with so many columns, without their headings."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [
        row
        for row, following in zip(cells, [*cells, [""]][1:], strict=True)
        if len(row) == columns and not row[0].startswith("---") and "---" not in following[0]
    ]


def _number(text: str) -> float:
    return math.nan if text == "–" else float(text.replace(",", ""))


def _seconds(text: str) -> float:
    value, _, unit = text.partition(" ")
    return _number(value) * UNITS.get(unit, 1.0)
