"""One labelled dataset from the cells of a grid, in memory or in one file."""

import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from iterdiff.jaxtools.extras import import_extra
from iterdiff.study import store
from iterdiff.study.grid import in_words
from iterdiff.study.settings import dotted

if TYPE_CHECKING:
    import xarray

OF_ONE_CELL = ("checksum", "cell", "settings", "title", "status")
"""Attributes of a cell that the dataset of all cells does not have."""

STATUS = "cell_status"
"""The variable that says of every cell whether it is there: done, failed or missing."""

MAKERS = {
    ".csv": " Run `iterdiff study ridge --data {} --target COLUMN`, and open what it writes.",
    ".toml": " Run `iterdiff study {}`, and open what it writes.",
}
"""How to make a dataset from a file that somebody opens instead."""

CAUSE = "cell_cause"
"""The variable that says why a cell failed; an empty text for the others."""


def open_study(path: "str | Path") -> "xarray.Dataset | xarray.DataTree":
    """Return the results of a study; `iterdiff.study.open` describes it."""
    path = Path(path)
    if (path / store.MANIFEST).is_file():
        return collected(path)
    if path.suffix == ".zarr":
        return _opened_zarr(path)
    if path.is_dir():
        found = sorted(path.glob("*.nc"))
        if len(found) == 1:
            return _opened_netcdf(found[0])
        raise ValueError(
            f"`path`: {path} holds no grid of studies, and {len(found)} files .nc instead of one. "
            "Give the path of a file, or of a folder that `iterdiff study` wrote."
        )
    return _opened_netcdf(path)


def _opened_netcdf(path: Path) -> "xarray.Dataset | xarray.DataTree":
    if not path.is_file():
        raise ValueError(f"`path`: there is no file or folder {path}.")
    xarray = import_extra("xarray", "study")
    content = path.read_bytes()
    if content.startswith(b"CDF"):
        return xarray.load_dataset(io.BytesIO(store.verified(path)), engine="scipy")
    try:
        tree = xarray.open_datatree(path, engine="h5netcdf")
    except (OSError, ValueError) as error:
        how = MAKERS.get(path.suffix.lower(), "")
        raise ValueError(f"`path`: {path} is not a NetCDF file.{how.format(path)}") from error
    with tree:
        tree.load()
    if "settings" not in tree.attrs:
        raise ValueError(f"`path`: {path} was not written by a study.")
    return tree if tree.children else tree.to_dataset()


def _opened_zarr(path: Path) -> "xarray.Dataset | xarray.DataTree":
    if not path.is_dir():
        raise ValueError(f"`path`: there is no folder {path}.")
    import_extra("zarr", "zarr")
    tree = import_extra("xarray", "study").open_datatree(path, engine="zarr").load()
    return tree if tree.children else tree.to_dataset()


class _Layout:
    """Cells with equal dimensions and coordinates.

    A variable may be absent from some of them, for example a bound that theory has for some
    algorithms only.
    """

    def __init__(self):
        self.cells: list[int] = []
        self.coords: dict[str, Any] = {}
        self.variables: dict[str, _Variable] = {}

    def add(self, index: int, values: Mapping[str, np.ndarray], content: bytes) -> None:
        """Add the values of a cell; a variable that is new is looked up in its file."""
        self.cells.append(index)
        if values.keys() - self.variables.keys() - self.coords.keys():
            xarray = import_extra("xarray", "study")
            data = xarray.load_dataset(io.BytesIO(content), engine="scipy").drop_encoding()
            self.coords = {str(name): _plain(found) for name, found in data.coords.items()}
            for name, found in data.data_vars.items():
                new = _Variable(found.dims, found.attrs, [], [])
                self.variables.setdefault(str(name), new)
        for name in values.keys() - self.coords.keys():
            self.variables[name].cells.append(index)
            self.variables[name].values.append(values[name])


class _Variable(NamedTuple):
    """A variable, and its values in the cells that have it."""

    dims: tuple
    attrs: Mapping[str, Any]
    cells: list[int]
    values: list[np.ndarray]

    def on(self, cells: Sequence[int]) -> np.ndarray:
        """Return the values in these cells along a first axis, filled where there are none."""
        values = np.stack(self.values)
        if len(self.cells) == len(cells):
            return values
        whole = np.full((len(cells), *values.shape[1:]), _missing(values))
        whole[np.searchsorted(cells, self.cells)] = values
        return whole


def collected(folder: Path) -> "xarray.Dataset | xarray.DataTree":
    """Return the cells of a folder as one dataset, or as a tree if their lengths differ.

    Raises
    ------
    ValueError
        If the folder is not a grid's, or a file is damaged. The message names the file.
    """
    xarray = import_extra("xarray", "study")
    manifest, names = store.read_manifest(folder)
    read = _read_cells(folder, names)
    grid = _GridCoords(manifest["axes"], set(read.variables))
    failed = store.failures(folder)
    status = np.array([_status(name, i in read.there, failed) for i, name in enumerate(names)])
    why = [failed[n] if s == "failed" else "" for n, s in zip(names, status, strict=True)]
    known = {STATUS: (grid.dims, status.reshape(grid.shape))}
    known[CAUSE] = grid.dims, np.array(why).reshape(grid.shape)
    attributes = _attributes(manifest, read.attributes)
    if len(read.layouts) <= 1:
        for layout in read.layouts:
            known |= {name: grid.filled(found) for name, found in layout.variables.items()}
        coords = read.layouts[0].coords if read.layouts else {}
        return xarray.Dataset(known, {**grid.coords, **coords}, attributes)
    group = np.full(len(names), "", dtype=object)
    children = {}
    for number, layout in enumerate(read.layouts):
        group[layout.cells] = f"layout_{number}"
        children[f"/layout_{number}"] = grid.listed(layout)
    known["group"] = (grid.dims, group.astype(str).reshape(grid.shape))
    root, places = xarray.Dataset(attrs=attributes), xarray.Dataset(known, grid.coords)
    return xarray.DataTree.from_dict({"/": root, "/grid": places, **children})


def _status(name: str, there: bool, failed: Mapping[str, str]) -> str:
    if there:
        return "done"
    return "failed" if name in failed else "missing"


class _Cells(NamedTuple):
    """What the files of a folder contain."""

    layouts: list[_Layout]
    there: set[int]
    attributes: dict[str, dict[Any, None]]

    @property
    def variables(self) -> Iterable[str]:
        """The names of all variables and dimensions."""
        for layout in self.layouts:
            yield from (*layout.variables, *layout.coords)


def _read_cells(folder: Path, names: Sequence[str]) -> _Cells:
    layouts: dict[Any, _Layout] = {}
    cells = _Cells([], set(), {})
    for index, name in enumerate(names):
        try:
            content = store.verified(store.cell_file(folder, name))
        except FileNotFoundError:
            continue
        except store.CorruptedCell as error:
            raise store.CorruptedCell(
                f"{error} Run the grid again: that computes the cell anew."
            ) from None
        key, variables, attributes = _parsed(content)
        if key not in layouts:
            layouts[key] = _Layout()
            cells.layouts.append(layouts[key])
        layouts[key].add(index, variables, content)
        cells.there.add(index)
        for attribute, value in attributes.items():
            if attribute not in OF_ONE_CELL:
                cells.attributes.setdefault(attribute, {})[value] = None
    return cells


def _parsed(content: bytes) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """Return the layout of a cell, its variables, and its attributes.

    Reads NetCDF 3 directly: xarray takes ten times longer for a small file.
    """
    netcdf_file = import_extra("scipy.io", "study").netcdf_file
    with netcdf_file(io.BytesIO(content), mmap=False) as file:
        variables, layout = {}, set()
        for name, variable in file.variables.items():
            values, dims = _decoded(variable), variable.dimensions
            dims = dims[: values.ndim]
            variables[name] = values
            layout |= set(zip(dims, values.shape, strict=True))
            if dims == (name,):
                layout.add((name, tuple(values.tolist())))
        attributes = {
            name: value.decode() if isinstance(value, bytes) else value.item()
            for name, value in file._attributes.items()
        }
    return frozenset(layout), variables, attributes


def _plain(coordinate: "xarray.DataArray") -> tuple:
    """Return a coordinate with texts as texts, and whole numbers as wide as in memory."""
    values = coordinate.values
    kinds = {"O": str, "i": np.int64}
    wide = values.astype(kinds[values.dtype.kind]) if values.dtype.kind in kinds else values
    return coordinate.dims, wide, coordinate.attrs


def _decoded(variable: Any) -> np.ndarray:
    """Return the values of a variable in the machine's order of bytes; texts as texts."""
    values = np.array(variable.data)
    if values.dtype.kind == "S":
        length = values.shape[-1] if values.ndim else 1
        joined = np.ascontiguousarray(values).view(f"S{length}").reshape(values.shape[:-1])
        return np.char.decode(joined, "utf-8")
    if variable._attributes.get("dtype") == b"bool":
        return values.astype(bool)
    return values.astype(np.int64 if values.dtype.kind == "i" else values.dtype.newbyteorder("="))


class _GridCoords:
    """The dimensions and coordinates that the axes of a grid give."""

    def __init__(self, axes: Sequence[Mapping[str, Any]], taken: set[str]):
        self.dims, self.coords = [], {}
        self.shape = tuple(len(axis["values"]) for axis in axes)
        for axis in axes:
            dim = _free(axis["name"], taken)
            self.dims.append(dim)
            for place, keys in enumerate(axis["keys"]):
                label = _free(dotted(keys), taken)
                values = _labels([row[place] for row in axis["values"]])
                self.coords[label] = (dim, values)

    def filled(self, variable: _Variable) -> tuple:
        """Return a variable on the whole grid."""
        values = variable.on(range(math.prod(self.shape)))
        shape = (*self.shape, *values.shape[1:])
        return (*self.dims, *variable.dims), values.reshape(shape), variable.attrs

    def listed(self, layout: _Layout) -> "xarray.Dataset":
        """Return the cells of one layout along the dimension ``cell``."""
        points = list(np.unravel_index(layout.cells, self.shape))
        coords = dict(layout.coords)
        for label, (dim, values) in self.coords.items():
            coords[label] = ("cell", values[points[self.dims.index(dim)]])
        known = {
            name: (("cell", *found.dims), found.on(layout.cells), found.attrs)
            for name, found in layout.variables.items()
        }
        return import_extra("xarray", "study").Dataset(known, coords)


def _missing(values: np.ndarray) -> Any:
    """Return what stands for a missing cell: NaN, False, an empty text, or -1 for counts."""
    return {"f": np.nan, "b": False, "U": "", "i": -1}[values.dtype.kind]


def _free(name: str, taken: set[str]) -> str:
    """Return a key as the name of a dimension; NetCDF has no "/" in names."""
    name = name.replace("/", "∕")
    return f"grid.{name}" if name in taken else name


def _labels(values: list) -> np.ndarray:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return np.array(values if numbers else [in_words(v) for v in values])


def _attributes(
    manifest: Mapping[str, Any], found: Mapping[str, Mapping[Any, None]]
) -> dict[str, Any]:
    """Return where the results come from: a value that all cells share, or the list of values."""
    attributes: dict[str, Any] = {"grid": json.dumps(manifest["axes"], ensure_ascii=False)}
    attributes["settings"] = json.dumps(manifest["settings"], ensure_ascii=False)
    attributes["seeds"] = json.dumps(_seeds(manifest))
    for name, values in found.items():
        distinct = list(values)
        if name == "created":
            attributes["created"], attributes["last_created"] = min(distinct), max(distinct)
        elif len(distinct) == 1:
            attributes[name] = distinct[0]
        else:
            attributes[name] = json.dumps(distinct, ensure_ascii=False)
    return attributes


def _seeds(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting that is named seed."""

    def walk(value: Any, keys: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
        for key, inner in value.items():
            if isinstance(inner, Mapping):
                yield from walk(inner, (*keys, key))
            elif key == "seed":
                yield dotted((*keys, key)), inner

    seeds = dict(walk(manifest["settings"], ()))
    for axis in manifest["axes"]:
        for place, keys in enumerate(axis["keys"]):
            if keys[-1] == "seed":
                seeds[dotted(keys)] = [row[place] for row in axis["values"]]
    return seeds


def consolidate(folder: "str | Path", to: "str | Path") -> None:
    """Write the cells of a folder into one file.

    Parameters
    ----------
    folder : path
        The folder of a grid.
    to : path
        A file that ends in ``.nc`` (NetCDF 4) or ``.zarr``. An earlier one is replaced when the
        new one is complete.

    Raises
    ------
    ValueError
        If the folder is not a grid's, a file is damaged, or `to` has another suffix or cannot be
        written.
    """
    folder, to = Path(folder), Path(to)
    if to.suffix not in (".nc", ".zarr"):
        raise ValueError(f"`to` must end in .nc or .zarr, not {to.name!r}.")
    data = collected(folder)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".nc":
            # In memory first: the HDF5 library can crash the process on a full disk.
            store.write_whole(to, bytes(data.to_netcdf(engine="h5netcdf")))
        else:
            _write_zarr(data, to)
    except OSError as error:
        raise ValueError(
            f"`to`: {to} cannot be written ({error.strerror or error}). Choose another place."
        ) from error


def _write_zarr(data: "xarray.Dataset | xarray.DataTree", to: Path) -> None:
    import_extra("zarr", "zarr")
    work = Path(tempfile.mkdtemp(prefix=store.UNFINISHED, dir=to.parent))
    try:
        # Version 2 of the format has a settled form of texts; version 3 does not yet.
        data.to_zarr(work / to.name, zarr_format=2, consolidated=True)
        if to.exists():
            os.replace(to, work / "earlier")
        os.replace(work / to.name, to)
    finally:
        shutil.rmtree(work, ignore_errors=True)
