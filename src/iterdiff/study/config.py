"""What a study is: data, written by a recipe, by a TOML file, or by hand."""

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import PyTree

from iterdiff.algorithms.base import Algorithm
from iterdiff.modes.base import Mode
from iterdiff.problems.problem import Problem

Curve = Callable[[np.ndarray], np.ndarray]
"""Values that theory gives at the given iterations: a row of them, or one row for every mode."""

Spec = Mapping[str, Any]
"""An algorithm or a mode in words: its ``type``, and its parameters by name."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes
    ----------
    label : str or float
        Its coordinate along the study's axis.
    problem, algorithm, x0, theta
        As `iterdiff.trace` takes them.
    steps, every : int
        How many steps to take, and how many from one record to the next.
    reference : callable or pytree, optional
        The truth, as `iterdiff.trace` takes it.
    curves : mapping of str to callable
        What theory says of the Jacobian errors, by the name of the variable that it becomes in
        the dataset; drawn over the measurement.
    rate : float, optional
        The contraction rate per step that theory knows, NaN if it knows none. With it every
        late start is measured too, and the best one predicted.
    """

    label: str | float
    problem: Problem
    algorithm: Algorithm
    x0: PyTree
    theta: PyTree
    steps: int
    every: int = 1
    reference: Any = None
    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that differ in one thing, and the modes that differentiate each of them.

    Attributes
    ----------
    name : str
        One word.
    title : str
        One line for the heads of tables and figures: the problem, its size, its data.
    cases : tuple of Case
        The runs.
    modes : mapping of str to Mode
        The modes, by label.
    axis : str
        What the cases differ in; the name of a dimension of the dataset.
    probes : int, optional
        As in `iterdiff.trace`.
    estimate : bool
        As in `iterdiff.trace`; what is estimated is drawn over the measurement.
    settings : mapping
        What the study was made from, for the record; written into the dataset.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    modes: Mapping[str, Mode]
    axis: str = "algorithm"
    probes: int | None = None
    estimate: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A problem with everything that algorithms and theory want to know of it.

    Attributes
    ----------
    problem, x0, theta
        As `iterdiff.solve` takes them.
    title : str
        The problem in one line.
    spectrum : (float, float), optional
        Bounds l, L of the spectrum of ``d residual / dx``, for step sizes such as "1/L".
    label : float, optional
        What tells this setting from the others of its study.
    reference : callable or pytree, optional
        As `iterdiff.trace` takes it.
    facts : mapping of str to float
        Further numbers, for theory.
    """

    problem: Problem
    x0: PyTree
    theta: PyTree
    title: str
    spectrum: tuple[float, float] | None = None
    label: float | None = None
    reference: Any = None
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _no_curves(
    setting: Setting, algorithm: Algorithm, modes: Mapping[str, Mode]
) -> Mapping[str, Curve]:
    del setting, algorithm, modes
    return {}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A built-in study with its default settings.

    Attributes
    ----------
    name, summary : str
        One word, and one line for ``iterdiff list``.
    build : callable
        ``build(**options)`` returns the settings: one, or several along `axis`.
    options : mapping
        The options of `build` with their defaults; a file may set others.
    algorithms, modes : mapping of str to Spec
        By label.
    steps, every : int
        The default of every run.
    axis : str
        What several settings differ in.
    curves : callable
        ``curves(setting, algorithm, modes)`` returns what theory says, see `Case`.
    rate : callable, optional
        ``rate(setting, algorithm)`` returns the contraction rate, see `Case`.
    takes_data : bool
        Whether ``--data`` and ``--target`` apply.
    estimate : bool
        As in `Study`.
    """

    name: str
    summary: str
    build: Callable[..., tuple[Setting, ...]]
    options: Spec
    algorithms: Mapping[str, Spec]
    modes: Mapping[str, Spec]
    steps: int
    every: int = 1
    axis: str = "algorithm"
    curves: Callable[[Setting, Algorithm, Mapping[str, Mode]], Mapping[str, Curve]] = _no_curves
    rate: Callable[[Setting, Algorithm], float] | None = None
    takes_data: bool = False
    estimate: bool = False


@dataclasses.dataclass(frozen=True)
class Overrides:
    """What a file or the command line sets instead of a recipe's defaults; None leaves it.

    Attributes
    ----------
    title : str, optional
        Instead of the problem's.
    steps, every, probes : int, optional
        As in `iterdiff.trace`.
    problem : mapping
        Options of the recipe.
    algorithms, modes : mapping of str to Spec, optional
        Instead of the recipe's.
    origin : str
        Where these come from, for messages.
    """

    title: str | None = None
    steps: int | None = None
    every: int | None = None
    probes: int | None = None
    problem: Spec = dataclasses.field(default_factory=dict)
    algorithms: Mapping[str, Spec] | None = None
    modes: Mapping[str, Spec] | None = None
    origin: str = "the command line"


FILE_KEYS: Mapping[str, tuple[type, str]] = MappingProxyType(
    {
        "study": (str, "the name of a built-in study"),
        "title": (str, "a line of text"),
        "steps": (int, "a whole number"),
        "every": (int, "a whole number"),
        "probes": (int, "a whole number"),
        "problem": (dict, "a table of options"),
        "algorithms": (dict, "a table of tables, one an algorithm"),
        "modes": (dict, "a table of tables, one a mode"),
    }
)


def read_file(path: Path) -> tuple[str, Overrides]:
    """Return the built-in study that a TOML file starts from, and what it changes.

    Parameters
    ----------
    path : Path
        A TOML file; docs/studies.md describes its keys.

    Returns
    -------
    name : str
        Of the built-in study.
    overrides : Overrides
        What the file sets.

    Raises
    ------
    ValueError
        If the file cannot be read or is no TOML, or a key is unknown, missing or of the wrong
        type: the message names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is no TOML file: {error}.") from error
    known(content, FILE_KEYS, str(path))
    for key, value in content.items():
        kind, wanted = FILE_KEYS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"`{key}` in {path} must be {wanted}, not {value!r}.")
    if "study" not in content:
        raise ValueError(f"`study` is missing in {path}: name the built-in study to start from.")
    for key in ("algorithms", "modes"):
        for label, spec in content.get(key, {}).items():
            if not isinstance(spec, dict) or not isinstance(spec.get("type"), str):
                raise ValueError(
                    f"`{key}.{label}` in {path} must be a table with a `type`, not {spec!r}."
                )
    name = content.pop("study")
    return name, Overrides(**content, origin=str(path))


def known(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Refuse a key that is not among those allowed, suggesting the nearest.

    Raises
    ------
    ValueError
        Naming the key and `where` it stands.
    """
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            raise ValueError(f"`{key}` in {where} is not known. {suggestion(key, allowed)}")


def suggestion(word: str, allowed: Iterable[str]) -> str:
    """Return advice on what could be meant: the nearest of the words allowed, or all."""
    allowed = list(allowed)
    close = difflib.get_close_matches(word.lower(), [a.lower() for a in allowed], n=1, cutoff=0.5)
    meant = [a for a in allowed if close and a.lower() == close[0]]
    if meant:
        return f"Did you mean `{meant[0]}`?"
    return "Choose from " + ", ".join(f"`{a}`" for a in allowed) + "."
