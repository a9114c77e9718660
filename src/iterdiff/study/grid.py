"""Run a study: one dataset from all of its traces."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from iterdiff.diagnostics.trace import trace
from iterdiff.study.config import Case, Study
from iterdiff.study.extras import load
from iterdiff.study.late import late_starts

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
        Called as ``progress(done, total)`` now and then.

    Returns
    -------
    xarray.Dataset
        What `iterdiff.trace` measures, along a further dimension: ``study.axis``, named by the
        attribute ``axis``. Cases that ran for fewer iterations, or were recorded less often, hold
        NaN in between; ``steps`` and ``every`` tell. The variable ``reference_norm`` is the
        Frobenius norm of the true Jacobian, and what theory says stands beside the
        measurement, for example as ``closed_form``. Where late starts were measured,
        ``late_start_error`` has dimensions ``total`` and ``start``.

    Raises
    ------
    TypeError, ValueError
        As `iterdiff.trace`, naming the case.
    ImportError
        If a library of the extra ``study`` is not installed.
    """
    xarray = load("xarray")
    total = sum(case.steps // case.every for case in study.cases)
    parts, before = [], 0
    for case in study.cases:
        count = case.steps // case.every
        parts.append(_traced(study, case, _shifted(progress, before, total)))
        before += count
        if progress is not None:
            progress(before, total)
    data = xarray.concat(
        parts,
        dim=xarray.DataArray([case.label for case in study.cases], dims=study.axis).rename(
            study.axis
        ),
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
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def _traced(study: Study, case: Case, progress: Progress | None) -> "xarray.Dataset":
    try:
        data = trace(
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
            progress=progress,
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"case {case.label!r}: {error}") from error
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
    """Yield every case of a study's dataset, with its label and its own iterations alone.

    Parameters
    ----------
    data : xarray.Dataset
        As `run` returns it.

    Yields
    ------
    label : str
        As it is to be read, for example "b = 1".
    case : xarray.Dataset
        Without the axis of cases.
    """
    axis = data.attrs["axis"]
    for value in data[axis].values:
        case = data.sel({axis: value})
        steps, every = int(case.steps), int(case.every)
        case = case.sel(iteration=np.arange(0, steps + 1, every))
        if "late_start_error" in case:  # totals and starts of longer runs
            case = case.dropna("total", how="all", subset=["late_start_error"])
            case = case.dropna("start", how="all", subset=["late_start_error"])
        label = str(value) if axis == "algorithm" else f"{axis} = {value:g}"
        yield label, case
