"""What can be taken away: pictures, tables, datasets."""

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.views.plots import STYLE, convergence

if TYPE_CHECKING:
    import xarray

PICTURE_DPI = 200
"""Resolution of a picture in points."""


def picture(data: "xarray.Dataset", kind: str) -> bytes:
    """Return the figure of convergence, drawn by Matplotlib.

    Parameters
    ----------
    data : xarray.Dataset
        The dataset of a study.
    kind : {"png", "svg"}
        The format.
    """
    buffer = io.BytesIO()
    with import_extra("matplotlib", "study").rc_context(dict(STYLE)):
        convergence(data).savefig(buffer, format=kind, dpi=PICTURE_DPI)
    return buffer.getvalue()


def table(data: "xarray.Dataset") -> bytes:
    """Return the errors at every iteration as CSV: a row for each case, mode and iteration."""
    names = ("iterate_error", "objective_error", "jacobian_error", "closed_form", "bound")
    kept = data[[name for name in names if name in data]]
    return kept.to_dataframe().reset_index().to_csv(index=False).encode()


def netcdf(data: "xarray.Dataset") -> bytes:
    """Return the dataset as NetCDF."""
    return bytes(data.to_netcdf(engine="h5netcdf"))


DOWNLOADS: Mapping[str, tuple[str, Callable[["xarray.Dataset"], bytes]]] = {
    "PNG": ("image/png", lambda data: picture(data, "png")),
    "SVG": ("image/svg+xml", lambda data: picture(data, "svg")),
    "CSV": ("text/csv", table),
    "NetCDF": ("application/x-netcdf", netcdf),
}
"""The formats: their type, and the function that makes one."""

SUFFIXES = {"PNG": "png", "SVG": "svg", "CSV": "csv", "NetCDF": "nc"}
