"""Grids: the product of lists of settings, never held in memory as a whole."""

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from iterdiff.study.catalog import check, make, read_source, resolve
from iterdiff.study.named import RunRaised
from iterdiff.study.settings import Override, Source, dotted, parsed_keys

ZIP = "zip"
"""The table in ``[grid]`` whose lists go together, and the name of their axis."""

MAX_CHECKED_VALUES = 1000
"""Upper limit of the values that are validated before anything runs; each takes about 1 ms."""

Path = tuple[str, ...]


class Axis(NamedTuple):
    """One factor of the product.

    Attributes
    ----------
    name : str
        The key as in the file, or "zip".
    keys : tuple of paths
        The settings that change along the axis: several for the lists in ``[grid.zip]``.
    values : tuple of tuples
        At every point of the axis one value for each key.
    wheres : tuple of str
        For every key the place that messages name.
    """

    name: str
    keys: tuple[Path, ...]
    values: tuple[tuple[Any, ...], ...]
    wheres: tuple[str, ...]

    def overrides(self, point: int) -> tuple[Override, ...]:
        """Return the settings at a point of the axis."""
        parts = zip(self.keys, self.values[point], self.wheres, strict=True)
        return tuple(Override(*part) for part in parts)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A study for each point of a product.

    Attributes
    ----------
    source : Source
        The settings that all cells share.
    axes : tuple of Axis
        The factors; the last one changes fastest.
    """

    source: Source
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points along each axis."""
        return tuple(len(axis.values) for axis in self.axes)

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(self.shape)

    def points(self, index: int) -> tuple[int, ...]:
        """Return the place of a cell along each axis."""
        places = []
        for length in reversed(self.shape):
            index, place = divmod(index, length)
            places.append(place)
        return tuple(reversed(places))

    def cell(self, index: int) -> Source:
        """Return the settings of a cell."""
        return self._at(self.points(index))

    def words(self, index: int) -> dict[str, Any]:
        """Return all settings of a cell, defaults included, in words."""
        return resolve(self.cell(index))[1]

    def label(self, index: int) -> str:
        """Return the values of a cell along the axes in one line."""
        parts = []
        for axis, point in zip(self.axes, self.points(index), strict=True):
            for keys, value in zip(axis.keys, axis.values[point], strict=True):
                parts.append(f"{dotted(keys)} = {in_words(value)}")
        return ", ".join(parts)

    def _at(self, points: Sequence[int]) -> Source:
        chosen = [
            override
            for axis, point in zip(self.axes, points, strict=True)
            for override in axis.overrides(point)
        ]
        # The shorter path first: a whole table before an entry of it.
        chosen.sort(key=lambda override: len(override.keys))
        overrides = (*self.source.overrides, *chosen)
        return dataclasses.replace(self.source, overrides=overrides)

    def check(self) -> None:
        """Make the first cell, and validate every value of every axis.

        Values are validated with the first values of the other axes, so that a grid of any size is
        checked in a time that grows with the sum of the lengths of its axes.

        Raises
        ------
        ValueError
            If a setting is unknown or out of range.
        """
        first = [0] * len(self.axes)
        try:
            make(self._at(first))
        except ValueError as error:
            # That is a failure of the cell, which the run reports; other cells may work.
            if not isinstance(error.__cause__, RunRaised):
                raise
        checked = 0
        for place, axis in enumerate(self.axes):
            for point in range(1, len(axis.values)):
                checked += 1
                if checked > MAX_CHECKED_VALUES:
                    return
                check(self._at([*first[:place], point, *first[place + 1 :]]))


def in_words(value: Any) -> str:
    """Return a value of a setting in one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def load_grid(
    name: str, changes: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> Grid:
    """Return the grid of a file, or of a built-in study; without ``[grid]`` it has no axes.

    Parameters
    ----------
    name : str
        The path of a file that ends in ``.toml``, or the name of a built-in study.
    changes : mapping, optional
        Fields of `Settings` that take precedence over everything else.
    assignments : sequence of str
        ``KEY=VALUE`` as in TOML, for example ``problem.penalty=0.1``. They take precedence over
        the file. The quotes of a string may be left out.

    Raises
    ------
    ValueError
        If there is no such file or study, a setting is unknown or out of range, or the grid is
        empty. The message names the key, the line and the nearest valid word.

    Examples
    --------
    >>> from iterdiff.study.grid import load_grid
    >>> grid = load_grid("ridge", assignments=['grid."problem.penalty"=[0.1, 1.0]', "steps=5"])
    >>> grid.size, grid.label(1), grid.words(1)["problem"]["penalty"]
    (2, 'problem.penalty = 1.0', 1.0)
    """
    overrides = tuple(_assignment(text) for text in assignments)
    plain = tuple(o for o in overrides if o.keys[0] != "grid")
    source = read_source(name, changes or {}, plain)
    content = dict(source.content)
    table = content.pop("grid", None)
    lists = {} if table is None else _lists(table, ("grid",), source.where)
    if table is not None and not lists:
        raise ValueError(
            f"{source.where(['grid'])} is empty. Give a setting a list of values there, or leave "
            "the table out."
        )
    for override in overrides:
        if override.keys[0] == "grid":
            given = _lists(_nested(override), (), lambda _, said=override.where: said)
            paths = {path for _, path in given}
            lists = {
                entry: found for entry, found in lists.items() if entry[1] not in paths
            } | given
    grid = Grid(dataclasses.replace(source, content=content), _axes(lists))
    _check_conflicts(grid)
    grid.check()
    return grid


class _List(NamedTuple):
    """The values of one setting, and the place that messages name."""

    values: list
    where: str


Lists = dict[tuple[bool, Path], _List]
"""Lists of values, by whether they are zipped and by the path that they set."""


def _lists(table: Any, place: Path, where: Callable[[Path], str]) -> Lists:
    """Return the lists in a table, whose keys may be dotted or nested.

    Parameters
    ----------
    table : mapping
        The table ``grid``, or a part of it.
    place : tuple of str
        The path to the table in the file.
    where : callable
        Returns the name of a path in messages.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{where(place)} must be a table of lists, not {table!r}.")
    found: Lists = {}
    for key, value in table.items():
        here = (*place, key)
        if isinstance(value, Mapping):
            inner = _lists(value, here, where)
            if here == ("grid", ZIP) and not inner:
                raise ValueError(f"{where(here)} is empty. Give settings lists of equal lengths.")
        else:
            inside = here[1:] if here[0] == "grid" else here
            zipped, inside = inside[0] == ZIP, inside[1:] if inside[0] == ZIP else inside
            if not inside:
                raise ValueError(f"{where(here)} must be a table of lists of equal lengths.")
            path = (*parsed_keys(inside[0], where(here)), *inside[1:])
            inner = {(zipped, path): _List(_values(value, where(here)), where(here))}
        for _, path in inner:
            if path in {other for _, other in found}:
                raise ValueError(f"{where(here)} is given twice. Leave one of them out.")
        found |= inner
    return found


def _values(value: Any, where: str) -> list:
    """Return the values of an axis; at least one, and each once."""
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of values, not {value!r}.")
    if not value:
        raise ValueError(f"{where} is an empty list. Give it a value, or leave it out.")
    return value


def _axes(lists: Lists) -> tuple[Axis, ...]:
    """Return one axis for each list, and one for all zipped lists."""
    axes = []
    for (zipped, path), found in lists.items():
        if zipped:
            continue
        _check_distinct(found.values, found.where)
        values = tuple((value,) for value in found.values)
        axes.append(Axis(dotted(path), (path,), values, (found.where,)))
    together = {path: found for (zipped, path), found in lists.items() if zipped}
    if together:
        lengths = {len(found.values) for found in together.values()}
        if len(lengths) > 1:
            said = ", ".join(f"{f.where} has {len(f.values)}" for f in together.values())
            raise ValueError(f"`grid.zip` needs lists of equal lengths: {said}.")
        rows = list(zip(*(found.values for found in together.values()), strict=True))
        _check_distinct(rows, "`grid.zip`")
        wheres = tuple(found.where for found in together.values())
        axes.append(Axis(ZIP, tuple(together), tuple(rows), wheres))
    return tuple(axes)


def _check_distinct(values: Sequence[Any], where: str) -> None:
    seen = set()
    for value in values:
        text = json.dumps(value, sort_keys=True, default=str)
        if text in seen:
            raise ValueError(f"{where} has the value {in_words(value)} twice. Leave one out.")
        seen.add(text)


def _check_conflicts(grid: Grid) -> None:
    """Raise ValueError if a setting is both in the grid and given by the caller."""
    for axis in grid.axes:
        for keys, where in zip(axis.keys, axis.wheres, strict=True):
            if keys[0] == "grid":
                raise ValueError(f"{where}: a grid cannot be in a grid.")
            for override in grid.source.overrides:
                if override.keys[: len(keys)] == keys:
                    raise ValueError(
                        f"{override.where} sets what {where} varies. Leave it out, or write "
                        f"--set 'grid.{json.dumps(dotted(keys))}=[...]'."
                    )
            if Source(grid.source.changes).sets(*keys):
                raise ValueError(f"{where} varies `{dotted(keys)}`, which an option also sets.")


def _assignment(text: str) -> Override:
    """Return the setting that ``KEY=VALUE`` makes."""
    where = f"`--set {text}`"
    found = _split(text)
    if found is None:
        raise ValueError(f"{where} must be KEY=VALUE, for example --set problem.penalty=0.1.")
    key, value = found
    keys = parsed_keys(key, where)
    try:
        return Override(keys, tomllib.loads(f"value = {value}")["value"], where)
    except tomllib.TOMLDecodeError:
        return Override(keys, value, where)


def _split(text: str) -> tuple[str, str] | None:
    """Return key and value of an assignment: a quoted part of the key may contain "="."""
    found = re.match(r"""\s*((?:"[^"]*"|'[^']*'|[^"'=])+?)\s*=\s*(.*?)\s*$""", text, re.DOTALL)
    return None if found is None or not found[2] else (found[1], found[2])


def _nested(override: Override) -> dict[str, Any]:
    """Return an assignment of a list in the grid as the table that a file would contain."""
    table: Any = override.value
    for key in reversed(override.keys[1:]):
        table = {key: table}
    return table
