"""Tables of numbers: scikit-learn's, or a user's CSV file."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float

from iterdiff.study.config import suggestion
from iterdiff.study.extras import load

BUNDLED = ("breast-cancer", "diabetes")
"""The tables that need no file; scikit-learn brings them."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Features and a target, as they came.

    Attributes
    ----------
    name : str
        For titles.
    features : float64 array of shape (rows, columns)
        Finite numbers.
    columns : tuple of str
        Names of the features.
    target : array of shape (rows,)
        Numbers, or the words of a class.
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
        spread = self.features.std(axis=0)
        flat = spread <= 1e-12 * (1 + np.abs(self.features).max(axis=0))
        if flat.any():
            names = ", ".join(f"`{c}`" for c, f in zip(self.columns, flat, strict=True) if f)
            raise ValueError(
                f"{self.name}: {names} never changes and cannot be standardised; leave it out."
            )
        return (self.features - self.features.mean(axis=0)) / spread

    def numbers(self) -> Float[np.ndarray, " rows"]:
        """Return the target with mean 0 and standard deviation 1.

        Raises
        ------
        ValueError
            If it is no number or constant.
        """
        try:
            values = self.target.astype(float)
        except ValueError as error:
            raise ValueError(
                f"{self.name}: the target holds text ({error}); a regression needs numbers."
            ) from error
        spread = values.std()
        if not spread > 0:
            raise ValueError(f"{self.name}: the target never changes; nothing is to be learned.")
        return (values - values.mean()) / spread

    def signs(self) -> Float[np.ndarray, " rows"]:
        """Return the target's two classes as -1 and 1, in sorted order.

        Raises
        ------
        ValueError
            If there are not exactly two.
        """
        classes, index = np.unique(self.target, return_inverse=True)
        if classes.size != 2:
            raise ValueError(
                f"{self.name}: the target has {classes.size} different values; logistic regression "
                "needs two classes (for numbers, use the study `ridge`)."
            )
        return np.where(index == 1, 1.0, -1.0)


def bundled(name: str) -> Table:
    """Return one of scikit-learn's tables.

    Raises
    ------
    ValueError
        If there is none of that name.
    ImportError
        If scikit-learn is not installed.
    """
    if name not in BUNDLED:
        raise ValueError(f"`data`: there is no table {name!r}. {suggestion(name, BUNDLED)}")
    datasets = load("sklearn.datasets")
    raw = datasets.load_breast_cancer() if name == "breast-cancer" else datasets.load_diabetes()
    columns = tuple(str(c) for c in raw.feature_names)
    return Table(name.replace("-", " "), np.asarray(raw.data, float), columns, raw.target)


def read_csv(path: Path, target: str) -> Table:
    """Return a user's table: a header line, commas, a number in every cell.

    The target's column alone may hold words (two classes).

    Parameters
    ----------
    path : Path
        A CSV file in UTF-8.
    target : str
        The name of the column to predict; the others are the features.

    Raises
    ------
    ValueError
        If the file cannot be read, has no column `target`, fewer than two rows or no other
        column, or if a cell is empty or holds no finite number: the message names line and
        column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(i, row) for i, row in enumerate(csv.reader(file), start=1) if row]
    except OSError as error:
        raise ValueError(f"`data`: {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`data`: {path} is no CSV file in UTF-8: {error}.") from error
    if not lines:
        raise ValueError(f"`data`: {path} is empty; it needs a header line and two rows or more.")
    header = [name.strip() for name in lines[0][1]]
    _check_header(path, header, target)
    rows = lines[1:]
    if len(rows) < 2:
        raise ValueError(
            f"`data`: {path} has {len(rows)} row{'' if len(rows) == 1 else 's'} of numbers; a fit "
            "needs two or more."
        )
    place = header.index(target)
    features = np.empty((len(rows), len(header) - 1))
    answers = []
    for i, (line, cells) in enumerate(rows):
        if len(cells) != len(header):
            raise ValueError(
                f"`data`: {path}, line {line} has {len(cells)} cells, but the header has "
                f"{len(header)}."
            )
        where = [f"`data`: {path}, line {line}, column `{name}`" for name in header]
        numbers = [_number(cells[j], where[j]) for j in range(len(header)) if j != place]
        features[i] = numbers
        answers.append(_word(cells[place], where[place]))
    columns = tuple(name for j, name in enumerate(header) if j != place)
    return Table(path.name, features, columns, _answers(answers))


def _check_header(path: Path, header: list[str], target: str) -> None:
    if target not in header:
        hint = suggestion(target, header)
        if len(header) == 1 and ";" in header[0]:
            hint = "The columns seem to be separated by `;`; separate them by commas."
        raise ValueError(f"`target`: {path} has no column {target!r}. {hint}")
    if len(header) == 1:
        raise ValueError(f"`data`: {path} has no column but the target; it needs features.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"`data`: {path} has two columns named {twice[0]!r}; rename one.")


def _word(cell: str, where: str) -> str:
    if not cell.strip():
        raise ValueError(f"{where}: the cell is empty; fill it, or delete the line.")
    return cell.strip()


def _number(cell: str, where: str) -> float:
    word = _word(cell, where)
    try:
        value = float(word)
    except ValueError:
        raise ValueError(
            f"{where}: {word!r} is no number; encode it, or delete the column."
        ) from None
    if not np.isfinite(value):
        raise ValueError(f"{where}: {word} is not finite; fill it, or delete the line.")
    return value


def _answers(words: list[str]) -> np.ndarray:
    """Return numbers where all are (finite), else the words."""
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        return np.array(words)
    if not np.isfinite(values).all():
        raise ValueError("`data`: the target holds a value that is not finite.")
    return values
