"""What a benchmark returns: measured tables, figures beside their targets, growth curves."""

import dataclasses

from benchmarks.harness import Row, Table, markdown
from benchmarks.targets import Figure


@dataclasses.dataclass(frozen=True)
class Curve:
    """How a cost grows with a size.

    Attributes
    ----------
    axis : str
        What grows.
    name : str
        Of the variant.
    sizes, costs : list of float
        The curve: seconds, or bytes.
    exponent : float
        The slope of a straight line through the logarithms.
    """

    axis: str
    name: str
    sizes: list[float]
    costs: list[float]
    exponent: float


@dataclasses.dataclass
class Section:
    """Everything that one benchmark measured.

    Attributes
    ----------
    title : str
        The heading.
    texts : list of str
        Tables in Markdown.
    rows : dict
        The rows of each table, by its title: for tests.
    figures : list of Figure
        Beside their targets.
    curves : list of Curve
        For the picture.
    """

    title: str
    texts: list[str] = dataclasses.field(default_factory=list)
    rows: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    figures: list[Figure] = dataclasses.field(default_factory=list)
    curves: list[Curve] = dataclasses.field(default_factory=list)

    def add(self, table: Table, rows: list[Row]) -> list[Row]:
        """Take in a measured table, and return its rows."""
        self.rows[table.title] = rows
        self.say(markdown(table, rows).replace("## ", "### ", 1))
        return rows

    def say(self, text: str) -> None:
        """Take in a text, and print it."""
        self.texts.append(text)
        print(text, flush=True)
