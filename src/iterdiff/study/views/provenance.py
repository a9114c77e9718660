"""Where the results of a study come from, and how to get them again."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iterdiff.study.settings import dotted

if TYPE_CHECKING:
    import xarray

NOT_PROVENANCE = ("title", "axis", "grid", "settings", "checksum", "study", "status")
"""Attributes that a report shows elsewhere."""

EMPTY = ("", "{}", "[]")
"""Values of attributes that say nothing."""


def provenance(
    data: "xarray.Dataset | xarray.DataTree", names: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    """Return name and value of the attributes that say where the results come from.

    Without those that are empty, such as the commit of a folder that git does not know.
    """
    chosen = names or [str(name) for name in data.attrs if name not in NOT_PROVENANCE]
    found = [(name, str(data.attrs[name])) for name in chosen if name in data.attrs]
    return [(name, value) for name, value in found if value not in EMPTY]


def settings(data: "xarray.Dataset | xarray.DataTree") -> dict[str, Any]:
    """Return the settings that the dataset was made from, as a file would give them."""
    given = json.loads(data.attrs.get("settings", "{}"))
    if "function" in given.get("problem", {}):  # it gives its name to the study
        given.pop("study", None)
    return {key: value for key, value in given.items() if value is not None}


def reproduction(data: "xarray.Dataset | xarray.DataTree") -> str:
    """Return the file of settings that gives the dataset again, and the command to run it."""
    version = data.attrs.get("iterdiff_version", "")
    lines = [f"# study.toml, for iterdiff {version}; run: iterdiff study study.toml"]
    given = settings(data)
    tables = {key: value for key, value in given.items() if isinstance(value, Mapping)}
    lines += [f"{dotted([k])} = {as_toml(v)}" for k, v in given.items() if k not in tables]
    for key, table in tables.items():
        inside = [f"{dotted([k])} = {as_toml(v)}" for k, v in table.items() if v is not None]
        lines += [f"[{dotted([key])}]", *inside]
    together = []
    for axis in json.loads(data.attrs.get("grid", "[]")):
        columns = zip(*axis["values"], strict=True)
        pairs = [(dotted(k), as_toml(list(c))) for k, c in zip(axis["keys"], columns, strict=True)]
        if len(pairs) > 1:
            together += pairs
        else:
            lines += [] if "[grid]" in lines else ["[grid]"]
            lines += [f"{key} = {values}" for key, values in pairs]
    if together:
        lines += ["[grid.zip]", *(f"{key} = {values}" for key, values in together)]
    return "\n".join(lines) + "\n"


def as_toml(value: Any) -> str:
    """Return a value as TOML writes it in one line."""
    if isinstance(value, Mapping):
        pairs = [f"{dotted([k])} = {as_toml(v)}" for k, v in value.items() if v is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    # JSON and TOML write texts and numbers alike; TOML also reads a text without a character
    # of DEL, which JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
