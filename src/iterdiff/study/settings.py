"""The settings of a study, from a TOML file or from Python, and messages about wrong ones."""

import abc
import copy
import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, Field, PositiveInt, ValidationError

from iterdiff.study.config import PosedProblem
from iterdiff.study.options import Options, any_algorithm, any_mode, any_stop
from iterdiff.study.suggestions import nearest, suggestion

Keys = Sequence[str | int]
"""A path into nested tables, such as ``("algorithms", "heavy ball", "momentum")``."""


class ProblemOptions(Options, abc.ABC):
    """The options of a built-in problem."""

    @abc.abstractmethod
    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem, or several that differ in their coordinate.

        Raises
        ------
        ValueError
            If an option does not fit, for example the path of a table.
        """


Problem = TypeVar("Problem", bound=ProblemOptions)
Model = TypeVar("Model", bound=BaseModel)

Output = Literal[
    "iterate_error",
    "objective_error",
    "residual_norm",
    "jacobian_error",
    "jacobian_error_estimate",
    "estimate_trusted",
]
"""The variables that `outputs` may name."""

EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_attributes_type": "a table",
    "model_type": "a table",
    "string_type": "a string",
}
"""The types of pydantic's errors, in the terms of TOML."""

if TYPE_CHECKING:
    from iterdiff.study.options import AlgorithmOptions as AnyAlgorithm
    from iterdiff.study.options import ModeOptions as AnyMode
    from iterdiff.study.options import StopOptions as AnyStop
else:
    AnyAlgorithm, AnyMode, AnyStop = any_algorithm(), any_mode(), any_stop()


class Settings(Options, Generic[Problem]):
    """The settings of a study; the keys of a TOML file.

    Attributes
    ----------
    study : str
        Name of the built-in study that the settings start from.
    title : str, optional
        One line for the heads of tables and figures; by default the problem's title.
    steps, every : int
        Number of steps of every run, and the number of steps between records. An algorithm may
        have its own.
    probes : int, optional
        Measure Jacobian errors in this many random directions, as `iterdiff.trace` does.
    estimate : bool
        Estimate the Jacobian errors without the solution as well, as `iterdiff.trace` does.
    problem : ProblemOptions
        The options of the problem.
    algorithms, modes : mapping of str to Options
        What runs, and how it is differentiated, by label.
    stop : StopOptions, optional
        A stopping rule: where it ends the run of each mode is recorded as well.
    outputs : list of str, optional
        The variables that the cells of a grid keep, besides counts and status; by default all.
    """

    study: str
    title: str | None = None
    steps: PositiveInt
    every: PositiveInt = 1
    probes: PositiveInt | None = None
    estimate: bool = False
    problem: Problem
    algorithms: dict[str, AnyAlgorithm] = Field(min_length=1)
    modes: dict[str, AnyMode] = Field(min_length=1)
    stop: AnyStop | None = None
    outputs: list[Output] | None = None

    def in_words(self) -> dict[str, Any]:
        """Return the settings as nested dictionaries of what was given."""
        return self.model_dump(exclude_unset=True) | {"problem": self.problem.model_dump()}


class Override(NamedTuple):
    """One setting that ``--set`` or a grid replaces.

    Attributes
    ----------
    keys : tuple of str
        The path of the setting.
    value : object
        Its value, as TOML gives it.
    where : str
        The place that messages name.
    """

    keys: tuple[str, ...]
    value: Any
    where: str


@dataclasses.dataclass(frozen=True)
class Source:
    """What a file and a caller set, and where: the place that a message names.

    Attributes
    ----------
    changes : mapping
        What the caller set, as nested dictionaries. It takes precedence over everything else.
    overrides : tuple of Override
        Single settings that take precedence over the file, in this order.
    content : mapping
        The content of the file, as nested dictionaries.
    file : Path, optional
        The file.
    text : str
        The text of the file.
    """

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: Path | None = None
    text: str = ""

    def sets(self, *keys: str) -> bool:
        """Whether the caller, an override or the file sets the value at a path."""
        overridden = any(keys[: len(o.keys)] == o.keys for o in self.overrides)
        return overridden or _holds(self.changes, keys) or _holds(self.content, keys)

    def where(self, keys: Keys) -> str:
        """Return the name of a setting, with the line of the file that sets it."""
        name = f"`{dotted(keys)}`"
        if _holds(self.changes, keys):
            return name
        for override in reversed(self.overrides):
            if tuple(keys[: len(override.keys)]) == override.keys:
                same = len(keys) == len(override.keys)
                return override.where if same else f"{name}, from {override.where}"
        if self.file is None:
            return name
        line = line_of(self.text, keys)
        return f"{name} in {self.file}" + (f", line {line}," if line else "")

    def merged(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults with what the file, the overrides and then the caller set.

        Options of the problem are merged one by one; a table of algorithms or modes replaces
        the previous one. `steps` and `every` take precedence over those that a previous layer
        gave to single algorithms.

        Raises
        ------
        ValueError
            If an override is inside a value that is no table, or names an algorithm or a mode that
            is not there.
        """
        merged = copy.deepcopy(dict(defaults))
        single = {o.keys[0]: o.value for o in self.overrides if len(o.keys) == 1}
        counts = {key: single[key] for key in ("steps", "every") if key in single}
        for layer in ({**self.content, **counts}, None, self.changes):
            if layer is None:
                for change in self.overrides:
                    apply(change, merged)
                continue
            for key in {"steps", "every"} & layer.keys():
                for options in _tables(merged["algorithms"]):
                    options.pop(key, None)
            problem = layer.get("problem")
            if isinstance(problem, Mapping) and isinstance(merged["problem"], Mapping):
                layer = {**layer, "problem": {**merged["problem"], **problem}}
            merged.update(copy.deepcopy(layer))
        return merged


LABELLED = ("algorithms", "modes")
"""Tables whose keys are labels that a study chooses."""


def apply(change: Override, content: dict[str, Any]) -> None:
    """Set one value in nested dictionaries, in place.

    Raises
    ------
    ValueError
        If the path leads into a value that is no table, or through a label that is not there.
    """
    here = content
    for depth, key in enumerate(change.keys[:-1], 1):
        inside = dotted(change.keys[:depth])
        if key not in here and depth == 2 and change.keys[0] in LABELLED:
            raise ValueError(
                f"{change.where} names no entry of `{change.keys[0]}`. {suggestion(key, here)}"
            )
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise ValueError(f"{change.where} leads into `{inside}`, which is not a table.")
    here[change.keys[-1]] = copy.deepcopy(change.value)


def dotted(keys: Keys) -> str:
    """Return a path as TOML writes it."""
    return ".".join(_quoted(str(key)) for key in keys)


def parsed_keys(text: str, where: str) -> tuple[str, ...]:
    """Return the path that a dotted key of TOML denotes.

    Raises
    ------
    ValueError
        If the text is no dotted key.
    """
    try:
        found, keys = tomllib.loads(f"{text} = 0"), []
    except tomllib.TOMLDecodeError:
        found, keys = {}, []
    while isinstance(found, dict) and len(found) == 1:
        [(key, found)] = found.items()
        keys.append(key)
    if not keys or found != 0 or "\n" in text:
        raise ValueError(
            f"{where} is not a dotted key. Quote a label that is more than one word, for example "
            """'algorithms."heavy ball".step_size'."""
        )
    return tuple(keys)


def read_file(path: Path, changes: Mapping[str, Any]) -> Source:
    """Read a TOML file of settings.

    Parameters
    ----------
    path : Path
        The file; docs/studies.md describes its keys.
    changes : mapping
        What the caller sets instead of the file.

    Returns
    -------
    Source
        What the file and the caller set.

    Raises
    ------
    ValueError
        If the file cannot be read or parsed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return Source(changes, (), tomllib.loads(text), path, text)
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is not a TOML file: {error}.") from error


def validated(model: type[Model], content: Mapping[str, Any], source: Source) -> Model:
    """Return `content` as a model.

    Raises
    ------
    ValueError
        If a key is unknown or missing, or a value has the wrong type or is out of range. The
        message names the key path, the line of the file, and the nearest allowed word.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # One mistake is reported; pydantic lists every alternative of a union on its own.
        errors = [(_path(content, e), e) for e in error.errors(include_url=False)]
        first = errors[0][0]
        raise ValueError(
            f"{source.where(first)} {_described([e for path, e in errors if path == first])}"
        ) from None


def line_of(text: str, keys: Keys) -> int | None:
    """Return the line of a TOML text at which the value at a path begins, or None.

    The TOML parser of Python gives no positions. We parse growing parts of the text until the
    path appears; the statement that sets it begins after the previous part that can be parsed.
    """
    lines, first = text.split("\n"), 1
    for number in range(1, len(lines) + 1):
        try:
            content = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        if _holds(content, keys):
            return first
        first = number + 1
    return line_of(text, keys[:-1]) if len(keys) > 1 else None


def _holds(content: Any, keys: Keys) -> bool:
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            return False
        content = content[key]
    return True


def _quoted(key: str) -> str:
    """Return a key as TOML writes it."""
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)


def _tables(value: Any) -> list[dict[str, Any]]:
    """Return the tables in a table of tables; other entries are reported by the validation."""
    entries = value.values() if isinstance(value, dict) else ()
    return [entry for entry in entries if isinstance(entry, dict)]


def _path(content: Any, error: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Return the path of an error; pydantic adds the names of a union's members to it."""
    path = []
    for key in error["loc"]:
        if isinstance(content, Mapping) and key in content:
            path.append(key)
            content = content[key]
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("type")
    if error["type"] == "unknown_key":
        path.append(error["ctx"]["key"])
    return tuple(path)


def _described(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with one value, and what to do; more than one error for a union."""
    error = errors[0]
    context = error.get("ctx", {})
    if error["type"] == "unknown_key":
        return context["text"]
    if error["type"] in ("missing", "union_tag_not_found"):
        return "is missing."
    if error["type"] == "union_tag_invalid":
        known = re.findall(r"'(\w+)'", context["expected_tags"])
        return f"must not be {context['tag']!r}. {suggestion(context['tag'], known)}"
    if error["type"] == "value_error":
        return f"is not valid: {context['error']}"
    if error["type"] == "too_short":
        return f"must have at least {context['min_length']} entry."
    allowed = " or ".join(
        EXPECTED.get(e["type"]) or e["msg"].removeprefix("Input should be ") for e in errors
    )
    text = f"must be {allowed}, not {error['input']!r}."
    words = re.findall(r"'(\w+)'", allowed)
    meant = nearest(error["input"], words) if isinstance(error["input"], str) else None
    return f"{text} Did you mean {meant!r}?" if meant else text
