"""Studies: a grid of runs as one dataset, and its views (tables, figures, pages)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray


def open(path: "str | Path") -> "xarray.Dataset | xarray.DataTree":
    """Return the results of a study as one labelled dataset, in memory.

    Parameters
    ----------
    path : path
        A folder that ``iterdiff study`` wrote, or a file that it or ``iterdiff consolidate``
        wrote.

    Returns
    -------
    xarray.Dataset or xarray.DataTree
        Of a grid: one dimension for every key of ``[grid]``, named like the key, and the
        dimensions of a cell. ``cell_status`` says of every cell whether it is done, failed or
        missing. A cell that is not there holds NaN (-1 in counts, False, an empty text). Cells
        whose lengths or labels differ are not padded: they make a tree. Its groups ``layout_0``,
        ``layout_1``, ... list the cells of one layout along ``cell``; the variable ``group`` of
        the group ``grid`` says where each cell is. The attributes say where the results come
        from: versions, git commit, device, dtype, settings, seeds.

    Raises
    ------
    ValueError
        If there is no such file or folder, it is not a study's, or a file is damaged.
    ImportError
        If a library of the extra ``study`` is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import iterdiff.study
    >>> from iterdiff.study.grid import load_grid
    >>> from iterdiff.study.grid_run import run_grid
    >>> grid = load_grid("scalar-quadratic", {"steps": 3}, ['grid."problem.b"=[0.0, 1.0]'])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = run_grid(grid, Path(folder))
    ...     data = iterdiff.study.open(folder)
    >>> data.jacobian_error.sel({"problem.b": 0.0, "mode": "unrolled"}).dims
    ('algorithm', 'iteration')
    """
    from iterdiff.study.collect import open_study

    return open_study(path)


def report(data: "xarray.Dataset | xarray.DataTree") -> str:
    """Return the report of a study as one HTML page that needs neither server nor network.

    It says what was run and what came out in words, shows the errors over the iterations, lists the
    iterations to each tolerance, and says where the results come from and how to get them again.

    Parameters
    ----------
    data : xarray.Dataset or xarray.DataTree
        What `open` returns, or `iterdiff.study.run.run`.

    Returns
    -------
    str
        The page. The user's texts are escaped. It has curves and verdicts of at most 48 cases, and
        a table of up to 2,000 lines.

    Raises
    ------
    ValueError
        If `data` is not a study's, or lacks variables that the report needs.
    ImportError
        If a library of the extra ``study`` is not installed.

    Examples
    --------
    >>> import iterdiff.study
    >>> from iterdiff.study.catalog import load_study
    >>> from iterdiff.study.run import run
    >>> page = iterdiff.study.report(run(load_study("scalar-quadratic", steps=3)))
    >>> "<h2>Iterations to tolerance</h2>" in page
    True
    """
    from iterdiff.study.views.page import report

    return report(data)
