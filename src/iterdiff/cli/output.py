"""What commands print, and where they write: JSON, bars that show the progress, folders."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from iterdiff.jaxtools.extras import import_extra


def as_json(value: Any) -> str:
    """Return a value as JSON; a number that is not finite is null."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=1)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _plain(fields)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if getattr(value, "ndim", None) == 0:
        return _plain(value.item())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def default_folder(name: str) -> Path:
    """Return where the results of a study go: named like the study, its file or its function."""
    return Path("out") / Path(name if name.endswith(".toml") else name.rpartition(":")[2]).stem


@contextlib.contextmanager
def progress(console: Any, label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with the time left; yield the function that updates it."""
    rich = import_extra("rich.progress", "study")
    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with rich.Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
