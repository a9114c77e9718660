"""Write all files of a study, or none."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray

ADVICE = "Choose another folder with --out"


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder whose files move to `out` if the block succeeds.

    Files of the same name are replaced; other files stay. If the block raises, `out` is not
    changed, and is removed if it did not exist before.

    Parameters
    ----------
    out : Path
        The destination. It is created with its parents if necessary.

    Yields
    ------
    Path
        A temporary folder inside `out`. It is removed at the end.

    Raises
    ------
    ValueError
        Before the block, if `out` is not a writable folder; after it, if a file cannot be
        written.
    """
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    work = None
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
        except OSError as error:
            reason = "it is a file" if out.is_file() else error.strerror
            raise ValueError(f"`out`: {out} cannot be written to ({reason}). {ADVICE}.") from error
        yield work
        files = sorted(work.iterdir())
        for file in files:
            if (out / file.name).is_dir():
                raise ValueError(
                    f"`out`: {out / file.name} is a folder, where a file is to be written. "
                    f"{ADVICE}, or remove it."
                )
        for file in files:
            os.replace(file, out / file.name)
        created = []
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"`out`: writing to {out} failed ({reason}). {ADVICE}.") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        for folder in created:  # innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_netcdf(data: "xarray.Dataset", path: Path) -> None:
    """Write a dataset to a NetCDF file.

    The file is built in memory first: the HDF5 library can crash the process if a disk fills up
    while it writes, whereas Python raises OSError.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    buffer = io.BytesIO()
    data.to_netcdf(buffer, engine="h5netcdf")
    path.write_bytes(buffer.getvalue())
