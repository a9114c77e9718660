"""Write a study's files, all of them or none."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

HINT = "choose a folder that you can write to by --out"


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder whose files move to `out` when the block ends well.

    Files of the same names are replaced, others stay. When the block raises, `out` is left as
    it was.

    Parameters
    ----------
    out : Path
        Where the files are wanted; made with its parents if it does not exist.

    Yields
    ------
    Path
        A folder beside or in `out`, for the files; it vanishes in the end.

    Raises
    ------
    ValueError
        At once, if `out` is no folder or cannot be written to.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = out / f".unfinished-{uuid.uuid4().hex[:8]}"
        work.mkdir()
    except OSError as error:
        _remove_empty(made)
        reason = "it is a file" if out.is_file() else error.strerror
        raise ValueError(f"`out`: {out} cannot be written to ({reason}); {HINT}.") from error
    done = False
    try:
        yield work
        for file in sorted(work.iterdir()):
            os.replace(file, out / file.name)
        done = True
    except OSError as error:
        raise ValueError(
            f"`out`: writing to {out} failed ({error.strerror or error}); {HINT}."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not done:
            _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders, innermost first, as far as they are there and empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
