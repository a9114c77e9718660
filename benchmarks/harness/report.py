"""Markdown reports, drawn from stored results."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import picture
from benchmarks.harness.results import Measurement, Results, Section, Table, load
from benchmarks.harness.units import shown


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _markdown(titles: Sequence[str], texts: Sequence[bool], rows: Sequence[Sequence[str]]) -> str:
    rules = ["---" if text else "---:" for text in texts]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, rules, *rows)) + "\n"


def table(table: Table) -> str:
    """Return a table with its heading and note."""
    units = [column.unit for column in table.columns]
    cells = [[shown(*pair) for pair in zip(row, units, strict=True)] for row in table.rows]
    titles = [column.title for column in table.columns]
    body = _markdown(titles, [unit == "text" for unit in units], cells)
    return _joined([f"### {table.title}", table.note, body])


def targets(measurements: Sequence[Measurement]) -> str:
    """Return the measurements beside their targets."""
    rows = []
    for one in measurements:
        unit, other = one.target.unit, one.other
        if other and one.other_value is not None:
            other = f"{shown(one.other_value, unit)}: {other}"
        ours = shown(one.value, unit) + (f" ({one.note})" if one.note else "")
        met = "yes" if one.met else "**no**"
        rows.append([one.target.work, one.target.wording, ours, met, other or "–"])
    titles = ["work", "target", "ours", "met", "best peer or hand-written variant"]
    count = sum(one.met for one in measurements)
    body = _markdown(titles, [True, True, False, True, True], rows)
    return f"{count} of {len(rows)} targets are met.\n\n{body}"


def environment(results: Results) -> str:
    """Return machine, versions, date, commit and duration in one paragraph."""
    machine, versions = results.environment["machine"], results.environment["versions"]
    facts = [f"{name} {value}" for name, value in machine.items() if value is not None]
    parts = [", ".join(facts), ", ".join(f"{name} {value}" for name, value in versions.items())]
    for name in ("date", "commit"):
        parts.append(f"{name}: {results.environment[name] or 'not recorded'}")
    if results.minutes is not None:
        parts.append(f"duration: {results.minutes:.0f} minutes")
    return "; ".join(parts) + "."


def section(section: Section) -> str:
    """Return the tables of one benchmark."""
    tables = [table(one) for one in section.tables if one.listed]
    return _joined([f"## {section.title}", section.note, *tables])


def markdown(results: Results) -> str:
    """Return the whole report."""
    parts = [f"# {results.title}", environment(results), results.note]
    if results.measurements:
        parts.append(targets(results.measurements))
    parts += [section(one) for one in results.sections]
    return _joined(parts)


def write(results: Results, folder: Path, name: str) -> list[Path]:
    """Write ``name.json`` and draw its report and pictures; return the paths of all files."""
    path = folder / f"{name}.json"
    results.save(path)
    return [path, *draw(path)]


def draw(path: Path) -> list[Path]:
    """Draw report and pictures of stored results beside them; return the paths of the files."""
    results = load(path)
    report = path.with_suffix(".md")
    report.write_text(markdown(results), encoding="utf-8")
    return [report, *picture.draw(results, path.parent, path.stem)]
