"""The format of stored results: JSON in which every number has its unit and its target."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Version of the format."""

OURS = "iterdiff"
"""Prefix of the names of our variants."""


@dataclasses.dataclass(frozen=True)
class Target:
    """An upper limit for one of our measurements.

    Attributes
    ----------
    work : str
        The work that is measured.
    wording : str
        The target in words.
    limit : float
        The largest value that meets the target.
    unit : str
        Unit of the limit and of the value: see `units.FORMATS`.
    """

    work: str
    wording: str
    limit: float
    unit: str = "×"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measured value and its target.

    Attributes
    ----------
    target : Target
        The target at the time of the run.
    value : float or None
        Our value in the target's unit; None if it could not be measured.
    other : str
        The best peer or hand-written variant.
    other_value : float or None
        Its value in the same unit.
    note : str
        Further information.
    """

    target: Target
    value: float | None
    other: str = ""
    other_value: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the value meets the target; a missing value or a NaN does not."""
        return self.value is not None and self.value <= self.target.limit


@dataclasses.dataclass(frozen=True)
class Column:
    """Title and unit of a column: see `units.FORMATS`."""

    title: str
    unit: str = "text"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes
    ----------
    title : str
        The heading.
    columns : list of Column
        One for each cell of a row.
    rows : list of list
        Cells are numbers in the column's unit, lists of them, text, or None for a missing value.
        Infinity is the text "inf".
    note : str
        A paragraph above the table.
    axis : str
        In a table of growth, the size that varies. The cells of the second column are then lists
        with one number for each of `sizes`, and those of the third are exponents.
    sizes : list of int
        The values of `axis`.
    listed : bool
        Whether reports show the table; otherwise only the JSON file holds it.
    """

    title: str
    columns: list[Column]
    rows: list[list[Any]]
    note: str = ""
    axis: str = ""
    sizes: list[int] = dataclasses.field(default_factory=list)
    listed: bool = True

    def column(self, title: str) -> list[Any]:
        """Return the cells of a column."""
        place = [column.title for column in self.columns].index(title)
        return [row[place] for row in self.rows]


@dataclasses.dataclass
class Section:
    """Everything that one benchmark measured."""

    title: str
    note: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    measurements: list[Measurement] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Results:
    """The results of one run.

    Attributes
    ----------
    title : str
        The heading of the report.
    environment : dict
        ``machine`` and ``versions`` (dicts), ``date`` and git ``commit`` (None if unknown).
    sections : list of Section
        One for each benchmark.
    minutes : float or None
        Duration of the run.
    note : str
        A paragraph for the head of the report.
    """

    title: str
    environment: dict[str, Any]
    sections: list[Section] = dataclasses.field(default_factory=list)
    minutes: float | None = None
    note: str = ""

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements of all sections."""
        return [one for section in self.sections for one in section.measurements]

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections."""
        return [table for section in self.sections for table in section.tables]

    def save(self, path: Path) -> None:
        """Write the results as JSON; NaN becomes null, infinity the text "inf"."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        path.write_text(_json(_plain(content)) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read results that `Results.save` wrote.

    Raises
    ------
    ValueError
        If the file has another version of the format.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("schema", None) != SCHEMA:
        raise ValueError(f"`path`: {path} is not a result in version {SCHEMA} of the format.")
    return Results(**{**content, "sections": [_section(**one) for one in content["sections"]]})


def _section(tables: list[dict], measurements: list[dict], **others: Any) -> Section:
    return Section(
        **others,
        tables=[Table(**{**t, "columns": [Column(**c) for c in t["columns"]]}) for t in tables],
        measurements=[Measurement(**{**m, "target": Target(**m["target"])}) for m in measurements],
    )


def _plain(value: Any) -> Any:
    """Return the value without floats that JSON lacks: NaN is None, infinity is text."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _json(value: Any, indent: str = "") -> str:
    """Return indented JSON with one line for each row of a table."""
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_json(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        nested = [
            json.dumps(o, ensure_ascii=False) if isinstance(o, list) else _json(o, inner)
            for o in value
        ]
        return "[\n" + ",\n".join(inner + one for one in nested) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
