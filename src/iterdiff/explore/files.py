"""Files behind the page: readers' tables, and results that were opened.

Streamlit runs `app` anew for every change, so that what has to last is here.
"""

import atexit
import csv
import functools
import hashlib
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from iterdiff.study import open as open_study
from iterdiff.study import store

if TYPE_CHECKING:
    import xarray

MAX_OPENED = 4
"""Number of results that are kept in memory."""


@functools.cache
def _folder() -> Path:
    """Return the folder of readers' tables; it goes with the server."""
    made = tempfile.mkdtemp(prefix="iterdiff-explore-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def column_names(content: bytes, name: str) -> list[str]:
    """Return the names in the first line of a table.

    Raises
    ------
    ValueError
        If that line cannot be read.
    """
    try:
        header = next(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise ValueError(
            f"The table {name} has no header line in UTF-8. Save it as CSV in UTF-8."
        ) from error
    return [column.strip() for column in header]


def stored(content: bytes, name: str) -> Path:
    """Return the path of a file with this content, which has the name that its reader gave it."""
    folder = _folder() / hashlib.sha256(content).hexdigest()[:16]
    path = folder / Path(name).name
    if not path.exists():
        folder.mkdir(exist_ok=True)
        path.write_bytes(content)
    return path


def without_folder(text: str) -> str:
    """Return a message that names a reader's table as he does: without our folder."""
    return re.sub(re.escape(str(_folder())) + r"[/\\]\w+[/\\]", "", text)


def opened(path: Path) -> "xarray.Dataset | xarray.DataTree":
    """Return the results of a study, read again only after they have changed."""
    cells = path / store.CELLS
    place = cells if cells.is_dir() else path
    return _read(path, place.stat().st_mtime_ns if place.exists() else 0)


@functools.lru_cache(MAX_OPENED)
def _read(path: Path, changed: int) -> "xarray.Dataset | xarray.DataTree":
    del changed  # tells earlier results apart
    return open_study(path)
