"""Run a study: one dataset from the traces of all of its cases."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

import iterdiff as itd
from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.config import Case, Study
from iterdiff.study.late_starts import late_starts

if TYPE_CHECKING:
    import xarray

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` with numbers of records, over all cases."""


def run(study: Study, progress: Progress | None = None) -> "xarray.Dataset":
    """Trace every case of a study.

    Parameters
    ----------
    study : Study
        What to run.
    progress : callable, optional
        Called as ``progress(done, total)`` from time to time.

    Returns
    -------
    xarray.Dataset
        The variables of `iterdiff.trace` along one more dimension, ``study.axis``; the attribute
        ``axis`` holds its name. Cases with fewer iterations or records than others contain NaN in
        their place; ``steps`` and ``every`` give the extent of each. The variable
        ``reference_norm`` is the Frobenius norm of the true Jacobian. Theoretical curves are
        further variables, for example ``closed_form``. Late starts, if measured, are in
        ``late_start_error`` with the dimensions ``total`` and ``start``.

    Raises
    ------
    TypeError, ValueError
        As `iterdiff.trace`; the message names the case.
    ImportError
        If a library of the extra ``study`` is not installed.
    """
    xarray = import_extra("xarray", "study")
    total = sum(case.steps // case.every for case in study.cases)
    parts, before = [], 0
    for case in study.cases:
        parts.append(_traced(study, case, _shifted(progress, before, total)))
        before += case.steps // case.every
        if progress is not None:
            progress(before, total)
    labels = xarray.DataArray([case.label for case in study.cases], dims=study.axis)
    data = xarray.concat(
        parts,
        dim=labels.rename(study.axis),
        data_vars="all",
        coords="different",
        compat="equals",
        join="outer",
        fill_value={"estimate_trusted": False},
        combine_attrs="drop_conflicts",
    )
    return data.assign_attrs(
        study=study.name,
        title=study.title,
        axis=study.axis,
        settings=json.dumps(study.settings, default=str),
        created=parts[-1].attrs["created"],
    )


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return a callback for one case that reports its records after `before` others."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def _traced(study: Study, case: Case, progress: Progress | None) -> "xarray.Dataset":
    try:
        data = itd.trace(
            case.problem,
            case.algorithm,
            case.x0,
            case.theta,
            steps=case.steps,
            modes=study.modes,
            reference=case.reference,
            probes=study.probes,
            every=case.every,
            estimate=study.estimate,
            args=case.args,
            progress=progress,
        )
    except TypeError as error:
        raise TypeError(f"case {case.label!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"case {case.label!r}: {error}") from error
    norm = data.jacobian_error.attrs.pop("reference_norm")
    iterations = data.iteration.values
    data = data.assign(
        reference_norm=((), norm, {"long_name": "‖J*‖_F"}),
        steps=((), case.steps),
        every=((), case.every),
        status=((), data.attrs.pop("status")),
    )
    for name, curve in case.curves.items():
        values = np.asarray(curve(iterations), float)
        data[name] = ("iteration" if values.ndim == 1 else ("mode", "iteration"), values)
    if case.rate is not None:
        late = late_starts(case)
        data = data.assign(
            late_start_error=(("total", "start"), late.errors, {"long_name": "‖J_T,K − J*‖_F"}),
            late_start_predicted=((), late.predicted),
        ).assign_coords(total=late.totals, start=np.arange(case.steps + 1))
    return data


def cases(data: "xarray.Dataset") -> "Iterator[tuple[str, xarray.Dataset]]":
    """Yield every case of a study's dataset with its label.

    Parameters
    ----------
    data : xarray.Dataset
        The dataset that `run` returns.

    Yields
    ------
    label : str
        A readable label, for example "b = 1".
    case : xarray.Dataset
        The case without the axis of cases, restricted to its own iterations.
    """
    axis = data.attrs["axis"]
    for value in data[axis].values:
        case = data.sel({axis: value})
        steps, every = int(case.steps), int(case.every)
        case = case.sel(iteration=np.arange(0, steps + 1, every))
        if "late_start_error" in case:  # drop the totals and starts of longer runs
            case = case.dropna("total", how="all", subset=["late_start_error"])
            case = case.dropna("start", how="all", subset=["late_start_error"])
        label = str(value) if axis == "algorithm" else f"{axis} = {value:g}"
        yield label, case
