"""Tables of numbers: scikit-learn's, or a user's CSV file."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.suggestions import suggestion

if TYPE_CHECKING:
    import pandas

BUNDLED = ("breast-cancer", "diabetes")
"""The tables that scikit-learn ships."""

CONSTANT_MAX_SPREAD = 1e-12
"""Standard deviation, relative to the largest entry, up to which a column is constant."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Raw features and a target.

    Attributes
    ----------
    name : str
        For titles.
    features : float64 array of shape (rows, columns)
        Finite numbers.
    columns : tuple of str
        Names of the features.
    target : array of shape (rows,)
        Finite numbers, or words.
    """

    name: str
    features: Float[np.ndarray, "rows columns"]
    columns: tuple[str, ...]
    target: np.ndarray

    def standardised(self) -> Float[np.ndarray, "rows columns"]:
        """Return the features with mean 0 and standard deviation 1, dimensionless.

        Raises
        ------
        ValueError
            If a column is constant.
        """
        constant = [c for c, v in zip(self.columns, self.features.T, strict=True) if _constant(v)]
        if constant:
            names = ", ".join(f"`{name}`" for name in constant)
            raise ValueError(
                f"{self.name}: {names} is constant and cannot be standardised. Leave it out."
            )
        return _standard(self.features)

    def numbers(self) -> Float[np.ndarray, " rows"]:
        """Return the target with mean 0 and standard deviation 1.

        Raises
        ------
        ValueError
            If the target holds text or is constant.
        """
        try:
            values = self.target.astype(float)
        except ValueError as error:
            raise ValueError(
                f"{self.name}: the target holds text ({error}). A regression needs numbers; for "
                "two classes use the study `logistic`."
            ) from error
        if _constant(values):
            raise ValueError(
                f"{self.name}: the target is constant, so there is nothing to learn. Choose "
                "another column."
            )
        return _standard(values)

    def signs(self) -> Float[np.ndarray, " rows"]:
        """Return the target's two classes as -1 and 1, in sorted order.

        Raises
        ------
        ValueError
            If there are not exactly two classes.
        """
        encoder = import_extra("sklearn.preprocessing", "study").LabelEncoder()
        index = encoder.fit_transform(self.target)
        if encoder.classes_.size != 2:
            raise ValueError(
                f"{self.name}: the target has {encoder.classes_.size} different values, but "
                "logistic regression needs two classes. For numbers use the study `ridge`."
            )
        return np.where(index == 1, 1.0, -1.0)


def _constant(values: Float[np.ndarray, " rows"]) -> bool:
    return bool(_relative(values).std() <= CONSTANT_MAX_SPREAD)


def _relative(values: np.ndarray) -> np.ndarray:
    """Return numbers, column by column, in units of the largest, whose squares do not overflow."""
    largest = np.abs(values).max(axis=0)
    exponent = np.frexp(np.where(largest > 0, largest, 1.0))[1]
    # In two factors: a power of two alone may be beyond the largest number.
    return np.ldexp(np.ldexp(values, -(exponent // 2)), exponent // 2 - exponent)


def _standard(values: np.ndarray) -> np.ndarray:
    return import_extra("sklearn.preprocessing", "study").scale(_relative(values))


def load_table(data: str, target: str) -> Table:
    """Return a bundled table, or a user's table.

    Parameters
    ----------
    data : str
        The name of a bundled table, or the path of a CSV file.
    target : str
        The column of a CSV file to predict; empty for a bundled table.

    Raises
    ------
    ValueError
        If there is no such table, the file is not suitable, or `target` is missing.
    """
    if target:
        return read_csv(Path(data), target)
    if data.endswith(".csv"):
        raise ValueError(f"`target` is missing: name the column of {data} to predict.")
    return bundled(data)


def bundled(name: str) -> Table:
    """Return one of scikit-learn's tables.

    Raises
    ------
    ValueError
        If there is no table of this name.
    ImportError
        If scikit-learn is not installed.
    """
    if name not in BUNDLED:
        raise ValueError(f"`data`: there is no table {name!r}. {suggestion(name, BUNDLED)}")
    datasets = import_extra("sklearn.datasets", "study")
    raw = datasets.load_breast_cancer() if name == "breast-cancer" else datasets.load_diabetes()
    columns = tuple(str(c) for c in raw.feature_names)
    return Table(name.replace("-", " "), np.asarray(raw.data, float), columns, raw.target)


def read_csv(path: Path, target: str) -> Table:
    """Return a user's table: a header line, commas, and a number in every cell.

    The target's column may hold words instead.

    Parameters
    ----------
    path : Path
        A CSV file in UTF-8.
    target : str
        The name of the column to predict; the other columns are the features.

    Raises
    ------
    ValueError
        If the file cannot be read, has no column `target`, fewer than two rows or no other
        column, or if a cell is empty or not a finite number. The message names line and column.
    """
    frame = _cells(path)
    header = [str(name) for name in frame.iloc[0]]
    _check_header(path, header, target)
    frame = frame.iloc[1:].set_axis(header, axis="columns")
    if len(frame) < 2:
        raise ValueError(
            f"`data`: {path} has too few rows below the header: {len(frame)}. A fit needs at least "
            "two."
        )
    columns = tuple(name for name in header if name != target)
    features = np.stack([_numbers(frame[name], path) for name in columns], axis=1)
    return Table(path.name, features, columns, _numbers(frame[target], path, words=True))


def _cells(path: Path) -> "pandas.DataFrame":
    """Return the cells of a CSV file as text, the header among them, indexed by line."""
    pandas = import_extra("pandas", "study")
    try:
        frame = pandas.read_csv(
            path,
            header=None,
            dtype=object,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except OSError as error:
        raise ValueError(f"`data`: {path} cannot be read: {error.strerror}.") from error
    except pandas.errors.EmptyDataError as error:
        raise ValueError(
            f"`data`: {path} is empty. It needs a header line and at least two rows."
        ) from error
    except (UnicodeDecodeError, pandas.errors.ParserError) as error:
        raise ValueError(
            f"`data`: {path} is not a CSV file in UTF-8 with equally many cells in every line: "
            f"{str(error).strip()}."
        ) from error
    frame.index += 1
    frame = frame.map(str.strip)
    return frame[(frame != "").any(axis="columns")]


def _check_header(path: Path, header: list[str], target: str) -> None:
    if target not in header:
        advice = suggestion(target, header)
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            advice = "The header has no comma; separate the columns by commas."
        raise ValueError(f"`target`: {path} has no column {target!r}. {advice}")
    if len(header) == 1:
        raise ValueError(f"`data`: {path} has only the target's column. Add at least one feature.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"`data`: {path} has two columns named {twice[0]!r}. Rename one.")


def _numbers(cells: "pandas.Series", path: Path, *, words: bool = False) -> np.ndarray:
    """Return a column as finite numbers; with `words`, as text if a cell is not a number."""
    values = import_extra("pandas", "study").to_numeric(cells, errors="coerce").to_numpy(float)
    empty, finite = (cells == "").to_numpy(), np.isfinite(values)
    is_text = np.isnan(values) & ~cells.str.lower().isin(["nan", "+nan", "-nan"]).to_numpy()
    wrong = empty | (~finite & ~is_text if words else ~finite)
    if wrong.any():
        first = int(np.argmax(wrong))
        where = f"`data`: {path}, line {cells.index[first]}, column `{cells.name}`"
        if empty[first]:
            raise ValueError(f"{where}: the cell is empty. Fill it, or delete the line.")
        raise ValueError(
            f"{where}: {cells.iloc[first]!r} is not a finite number. Replace it, or delete the "
            f"{'column' if is_text[first] else 'line'}."
        )
    return cells.to_numpy(str) if is_text.any() else cells.to_numpy(object).astype(float)
