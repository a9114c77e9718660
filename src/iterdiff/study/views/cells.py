"""The cells of a grid's dataset, each as the dataset of one study."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from iterdiff.study.collect import CAUSE, STATUS
from iterdiff.study.grid import in_words
from iterdiff.study.settings import dotted

if TYPE_CHECKING:
    import xarray

OF_A_CASE = ("mode", "iteration", "total", "start")
"""The dimensions of a case; one more is that of the study's cases."""

NEEDED = ("iterate_error", "jacobian_error", "reference_norm", "steps", "every", "status")
"""The variables that every view reads."""


class Cell(NamedTuple):
    """A cell of a grid, or the only cell of a study.

    Attributes
    ----------
    label : str
        Its values along the axes of the grid; the title of a study without a grid.
    status : str
        "done", "failed" or "missing".
    cause : str
        Why it failed; empty otherwise.
    data : xarray.Dataset or None
        What `iterdiff.study.run.run` returned; None if it is not done.
    """

    label: str
    status: str
    cause: str
    data: "xarray.Dataset | None"


class Axis(NamedTuple):
    """An axis of a grid: its name, and a label for each of its values."""

    name: str
    labels: tuple[str, ...]


def grid_axes(data: "xarray.Dataset | xarray.DataTree") -> tuple[Axis, ...]:
    """Return the axes of a grid; none for a single study."""
    return tuple(
        Axis(axis["name"], tuple(_point(axis, row) for row in axis["values"]))
        for axis in json.loads(data.attrs.get("grid", "[]"))
    )


def varied_settings(data: "xarray.Dataset | xarray.DataTree") -> frozenset[tuple[str, ...]]:
    """Return the paths of the settings that a grid varies; none for a single study."""
    axes = json.loads(data.attrs.get("grid", "[]"))
    return frozenset(tuple(keys) for axis in axes for keys in axis["keys"])


def _point(axis: Mapping, row: list) -> str:
    pairs = zip(axis["keys"], row, strict=True)
    return ", ".join(f"{dotted(keys)} = {in_words(value)}" for keys, value in pairs)


def cells(data: "xarray.Dataset | xarray.DataTree") -> Iterator[Cell]:
    """Yield the cells of a study or of a grid, the last axis of the grid changing fastest.

    Raises
    ------
    ValueError
        If the dataset is not a study's, or its cells do not keep the variables that views read.
    """
    axes = grid_axes(data)
    if not axes:
        yield Cell(str(data.attrs.get("title", "")), "done", "", _checked(data))
        return
    for place in itertools.product(*(range(len(axis.labels)) for axis in axes)):
        yield cell(data, place)


def cell(data: "xarray.Dataset | xarray.DataTree", place: tuple[int, ...]) -> Cell:
    """Return the cell at a place of a grid.

    Raises
    ------
    ValueError
        If the cell does not keep the variables that views read.
    """
    axes = grid_axes(data)
    label = ", ".join(axis.labels[i] for axis, i in zip(axes, place, strict=True))
    whole: Any = data
    grid = whole["grid"].to_dataset() if _is_tree(data) else whole
    status = str(grid[STATUS].values[place])
    cause = str(grid[CAUSE].values[place]) if CAUSE in grid else ""
    if status != "done":
        return Cell(label, status, cause, None)
    if _is_tree(data):
        group = grid["group"].values
        before = np.ravel(group)[: np.ravel_multi_index(place, group.shape)]
        node = whole[str(group[place])].to_dataset()
        found = node.isel(cell=int(np.count_nonzero(before == group[place])))
    else:
        found = whole.isel(dict(zip(grid[STATUS].dims, place, strict=True)))
    found = found.drop_vars([STATUS, CAUSE], errors="ignore")
    # What the other cells of the grid have, and this one does not.
    lacks = [n for n, v in found.data_vars.items() if v.dtype.kind == "f" and v.isnull().all()]
    found = found.drop_vars([name for name in lacks if name not in NEEDED])
    return Cell(label, status, "", _checked(found.assign_attrs(data.attrs, title=label)))


def _is_tree(data: "xarray.Dataset | xarray.DataTree") -> bool:
    return hasattr(data, "children")


def _checked(data: "xarray.Dataset | xarray.DataTree") -> "xarray.Dataset":
    """Return the dataset of a study with its axis in the attributes."""
    lacking = [name for name in NEEDED if name not in data]
    if lacking:
        names = ", ".join(f"`{name}`" for name in lacking)
        raise ValueError(
            f"`data` is no study's dataset, or lacks {names}. Leave `outputs` out of the file of "
            "settings, or add these variables."
        )
    [axis] = [str(dim) for dim in data["jacobian_error"].dims if dim not in OF_A_CASE]
    return data.assign_attrs(axis=axis)  # pyright: ignore[reportReturnType]
