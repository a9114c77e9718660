"""Write all files of a study, or none; read its dataset."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from iterdiff.jaxtools.extras import import_extra

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


def load_dataset(path: Path) -> "xarray.Dataset":
    """Return the dataset that a study wrote.

    Raises
    ------
    ValueError
        If the file is missing, or is no such dataset. The message says how to make one.
    """
    if not path.is_file():
        raise ValueError(f"`DATASET.nc`: there is no file {path}.")
    makers = {".csv": f"ridge --data {path} --target COLUMN", ".toml": str(path)}
    maker = makers.get(path.suffix.lower())
    if maker is not None:
        raise ValueError(
            f"`DATASET.nc`: {path} is no dataset. Run `iterdiff study {maker}` first, and explore "
            "the file .nc that it writes."
        )
    try:
        data = import_extra("xarray", "study").load_dataset(path, engine="h5netcdf")
    except OSError as error:
        raise ValueError(f"`DATASET.nc`: {path} is not a NetCDF file: {error}.") from error
    if "axis" not in data.attrs:
        raise ValueError(f"`DATASET.nc`: {path} was not written by a study.")
    return data
