"""One cell of a grid: from its settings in words to the bytes of its file.

This module is what an executor runs. A task and its outcome are small, and are pickled by
reference to this module; the process that computes writes nothing.
"""

import dataclasses
import importlib.metadata
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray

KEPT = ("reference_norm", "steps", "every", "status")
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

    outcomes = []
    for task in tasks:
        begin = time.monotonic()
        for path in reversed(task.paths):
            if path not in sys.path:
                sys.path.insert(0, path)
        if jax.config.jax_enable_x64 != task.x64:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_enable_x64", task.x64)
        try:
            content, cause = encoded(_computed(task), task), ""
        except (Exception, SystemExit) as error:
            content, cause = None, cause_of(error)
        outcomes.append(CellOutcome(content, cause, time.monotonic() - begin))
    return outcomes


def _computed(task: CellTask) -> "xarray.Dataset":
    from iterdiff.study.catalog import make
    from iterdiff.study.run import run
    from iterdiff.study.settings import Source

    # A function of the user's own gives its name to the study.
    given = dict(task.words)
    if "function" in given["problem"]:
        given.pop("study")
    return run(make(Source(given)))


def encoded(data: "xarray.Dataset", task: CellTask) -> bytes:
    """Return a cell as a file, with its settings and where it comes from.

    The format is NetCDF 3: a small file is written and read some forty times faster than in
    NetCDF 4.
    """
    import numpy as np

    from iterdiff.study.store import UNSEALED, seal

    outputs = task.words.get("outputs")
    if outputs is not None:
        data = data[[name for name in data.data_vars if name in (*outputs, *KEPT)]]
    own = {
        "cell": task.name,
        "python_version": platform.python_version(),
        "jaxlib_version": importlib.metadata.version("jaxlib"),
        "numpy_version": np.__version__,
        **task.provenance,
    }
    # The checksum is the first attribute: nothing that a user chooses comes before it.
    data = data.drop_attrs(deep=False).assign_attrs(checksum=UNSEALED, **data.attrs, **own)
    return seal(bytes(data.to_netcdf(engine="scipy", format="NETCDF3_64BIT")))


def cause_of(error: BaseException) -> str:
    """Return the type and the message of an error, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else None
    # A line of this package says nothing to its user.
    ours = file is None or Path(__file__).parents[1] in file.parents
    place = "" if file is None or ours else f" ({file.name}, line {frames[-1].lineno})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"
