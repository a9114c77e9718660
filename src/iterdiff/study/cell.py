"""One cell of a grid: from its settings in words to the bytes of its file.

This module is what an executor runs. A task and its outcome are small, and are pickled by
reference to this module; the process that computes writes nothing.
"""

import dataclasses
import functools
import importlib.metadata
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import xarray

    from iterdiff.study.config import Study

BATCH = 64
"""Cells of one program: beyond, the time for a cell hardly falls."""

MIN_BATCH = 8
"""Fewer cells than these run one by one: compiling a batch would take longer."""

MAX_BATCH_NUMBERS = 1_000_000
"""Upper limit of the numbers in a batch. Above, the arithmetic outweighs what a batch saves."""

FIRST_SAFE_JAX = (0, 12)
"""Earlier versions may hang in batched LAPACK calls on more than one thread (docs/faq.md)."""

KEPT = (
    "reference_norm",
    "steps",
    "every",
    "status",
    "stop_steps",
    "stop_status",
    "stop_jacobian_error",
)
"""Variables that every cell keeps, whatever `outputs` names."""


@dataclasses.dataclass(frozen=True)
class CellTask:
    """What a process needs to know to compute a cell.

    Attributes
    ----------
    name : str
        The name of the cell's file, without suffix.
    words : mapping
        All settings.
    paths : tuple of str
        Folders in which the user's modules are found.
    x64 : bool
        Whether JAX computes in float64.
    provenance : mapping of str to str
        Further attributes of the file.
    """

    name: str
    words: Mapping[str, Any]
    paths: tuple[str, ...] = ()
    x64: bool = True
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CellOutcome:
    """The file of a cell, or why there is none.

    Attributes
    ----------
    content : bytes, optional
        The file; None if the cell failed.
    cause : str
        Why it failed: the type of the error, its message, and the line that raised it.
    seconds : float
        How long it took, by a clock that does not jump.
    """

    content: bytes | None
    cause: str = ""
    seconds: float = 0.0


def compute(tasks: Sequence[CellTask]) -> list[CellOutcome]:
    """Compute cells, one after the other. An error of one does not touch the others.

    Returns
    -------
    list of CellOutcome
        One for each task.
    """
    import jax

    for task in tasks:
        for path in reversed(task.paths):
            if path not in sys.path:
                sys.path.insert(0, path)
        if jax.config.jax_enable_x64 != task.x64:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_enable_x64", task.x64)
    outcomes = [_attempt(lambda task=task: _study(task)) for task in tasks]
    studies = {i: made.value for i, made in enumerate(outcomes) if made.value is not None}
    together = _together(studies)
    for index, study in studies.items():
        shared = together.get(index, _Attempt())
        found = (
            shared if shared.value is not None else _attempt(lambda study=study: run_alone(study))
        )
        data, seconds = found.value, outcomes[index].seconds + found.seconds
        if data is not None:
            found = _attempt(lambda data=data, task=tasks[index]: encoded(data, task))
            seconds += found.seconds
        outcomes[index] = found._replace(seconds=seconds)
    return [CellOutcome(*outcome) for outcome in outcomes]


def run_alone(study: "Study") -> "xarray.Dataset":
    """Return the dataset of a cell that is in no batch."""
    from iterdiff.study.run import run

    return run(study)


class _Attempt(NamedTuple):
    """What a part of a cell's computation returned, or why it failed."""

    value: Any = None
    cause: str = ""
    seconds: float = 0.0


def _attempt(function: Callable[[], Any]) -> _Attempt:
    begin, value, cause = time.monotonic(), None, ""
    try:
        value = function()
    except (Exception, SystemExit) as error:
        cause = cause_of(error)
    return _Attempt(value, cause, time.monotonic() - begin)


def _together(studies: "Mapping[int, Study]") -> dict[int, _Attempt]:
    """Return the datasets of those studies that run as one program."""
    import jax

    from iterdiff.study.run import run_together

    found: dict[int, _Attempt] = {}
    if jax.__version_info__ < FIRST_SAFE_JAX and os.environ.get("NPROC") != "1":
        return found
    indices = list(studies)
    for start in range(0, len(indices), BATCH):
        part = indices[start : start + BATCH]
        if len(part) < MIN_BATCH or _numbers(studies[part[0]]) > MAX_BATCH_NUMBERS:
            continue
        # One size for all batches, so that one program serves them.
        filled = [studies[i] for i in part] + [studies[part[-1]]] * (BATCH - len(part))
        tried = _attempt(lambda filled=filled: run_together(filled))
        if tried.value is None:
            return found  # each on its own; that gives the cause, too
        for index, data in zip(part, tried.value, strict=False):
            found[index] = _Attempt(data, "", tried.seconds / len(part))
    return found


def _numbers(study: "Study") -> int:
    """Return how many numbers a batch of such studies holds at a time, up to a small factor."""
    import jax
    import numpy as np

    def count(value: Any) -> int:
        return sum(np.size(leaf) for leaf in jax.tree.leaves(value))

    return BATCH * max(count(c.x0) * (1 + count(c.theta)) + count(c.args) for c in study.cases)


def _study(task: CellTask) -> "Study":
    from iterdiff.study.catalog import make
    from iterdiff.study.settings import Source

    # A function of the user's own gives its name to the study.
    given = dict(task.words)
    if "function" in given["problem"]:
        given.pop("study")
    return make(Source(given))


def encoded(data: "xarray.Dataset", task: CellTask) -> bytes:
    """Return a cell as a file, with its settings and where it comes from.

    The format is NetCDF 3: a small file is written and read some forty times faster than in
    NetCDF 4.
    """
    from iterdiff.study.store import UNSEALED, seal

    outputs = task.words.get("outputs")
    if outputs is not None:
        data = data[[name for name in data.data_vars if name in (*outputs, *KEPT)]]
    own = {
        "cell": task.name,
        **versions(),
        **task.provenance,
    }
    # The checksum is the first attribute: nothing that a user chooses comes before it.
    data = data.drop_attrs(deep=False).assign_attrs(checksum=UNSEALED, **data.attrs, **own)
    return seal(bytes(data.to_netcdf(engine="scipy", format="NETCDF3_64BIT")))


def versions() -> dict[str, str]:
    """Return the versions that a dataset does not have from its trace."""
    import numpy as np

    return {
        "python_version": platform.python_version(),
        "jaxlib_version": _jaxlib_version(),
        "numpy_version": np.__version__,
    }


def cause_of(error: BaseException) -> str:
    """Return the type and the message of an error, and the line that raised it."""
    from iterdiff.study.named import RunRaised

    if isinstance(error, RunRaised):  # its message has the type and the line of the user's error
        return str(error).removeprefix("`MODULE:NAME`: ")
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else None
    # A line of this package says nothing to its user.
    ours = file is None or Path(__file__).parents[1] in file.parents
    place = "" if file is None or ours else f" ({file.name}, line {frames[-1].lineno})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"


@functools.cache
def _jaxlib_version() -> str:
    """Return the version of jaxlib; read once, which takes a millisecond."""
    return importlib.metadata.version("jaxlib")
