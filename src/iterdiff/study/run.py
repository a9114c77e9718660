"""Run a study: one dataset from the traces of all of its cases."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import iterdiff as itd
from iterdiff.diagnostics.trace_batch import Run, trace_batch
from iterdiff.jaxtools.extras import import_extra
from iterdiff.study.config import Case, Study
from iterdiff.study.late_starts import late_starts
from iterdiff.study.sampled import sampled

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
        ``late_start_error`` with the dimensions ``total`` and ``start``. With ``study.stop``,
        ``stop_steps`` and ``stop_status`` of each mode are where `solve` ends with that rule, and
        ``stop_jacobian_error`` is the error there, NaN if that iteration is not recorded.

    Raises
    ------
    TypeError, ValueError
        As `iterdiff.trace`; the message names the case.
    ImportError
        If a library of the extra ``study`` is not installed.
    """
    counts = [case.steps // case.every + 1 for case in study.cases]  # the start is one of them
    parts, before, total = [], 0, sum(counts)
    for case, count in zip(study.cases, counts, strict=True):
        parts.append(_traced(study, case, _shifted(progress, before, total)))
        before += count
        if progress is not None:
            progress(before, total)
    return _joined(study, parts)


def _joined(study: Study, parts: "list[xarray.Dataset]") -> "xarray.Dataset":
    """Return the datasets of all cases as one."""
    xarray = import_extra("xarray", "study")
    if len(parts) == 1:  # as below, in a fifth of the time
        data = parts[0].expand_dims({study.axis: [study.cases[0].label]})
    else:
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


def trace_arguments(study: Study, case: Case) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of `trace` for a case, by position and by name."""
    return (case.problem, case.algorithm, case.x0, case.theta), {
        "steps": case.steps,
        "modes": study.modes,
        "reference": case.reference,
        "probes": study.probes,
        "every": case.every,
        "estimate": study.estimate,
        "args": case.args,
    }


def _traced(study: Study, case: Case, progress: Progress | None) -> "xarray.Dataset":
    try:
        if case.sampling is None:
            run, options = trace_arguments(study, case)
            data = itd.trace(*run, **options, progress=progress)
        else:
            data = sampled(case)
    except TypeError as error:
        raise TypeError(f"case {case.label!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"case {case.label!r}: {error}") from error
    data = _completed(case, data)
    return data if study.stop is None else data.assign(_stopped(study, case, data))


def _stopped(study: Study, case: Case, data: "xarray.Dataset") -> dict[str, tuple]:
    """Return where the study's stopping rule ends the run of each mode, and the error there."""
    assert study.stop is not None
    run = case.problem, case.algorithm, case.x0, case.theta
    steps, statuses, errors = [], [], []
    for label, mode in study.modes.items():
        found = itd.solve(*run, stop=study.stop, mode=mode, args=case.args, throw=False)
        steps.append(int(found.steps))
        statuses.append(itd.Status(int(found.status)).name)
        recorded = steps[-1] in data.iteration.values
        curve = data.jacobian_error.sel(mode=label)
        errors.append(float(curve.sel(iteration=steps[-1])) if recorded else np.nan)
    return {
        "stop_steps": ("mode", np.array(steps)),
        "stop_status": ("mode", np.array(statuses)),
        "stop_jacobian_error": ("mode", np.array(errors)),
    }


def run_together(studies: Sequence[Study]) -> "list[xarray.Dataset | None]":
    """Trace studies that differ in numbers only, each of their cases in one program.

    Returns
    -------
    list of (xarray.Dataset or None)
        What `run` returns, up to rounding; None for a study that has to run on its own.
    """
    alone: list[xarray.Dataset | None] = [None] * len(studies)
    first = studies[0]
    if first.stop is not None or any(_shape(study) != _shape(first) for study in studies):
        return alone
    columns = []
    for cases in zip(*(study.cases for study in studies), strict=True):
        if any(
            c.sampling or c.reference is not None or c.curves or c.rate is not None for c in cases
        ):
            return alone
        runs = [Run(c.problem, c.algorithm, c.x0, c.theta, c.args) for c in cases]
        found = trace_batch(
            runs,
            steps=cases[0].steps,
            modes=first.modes,
            probes=first.probes,
            every=cases[0].every,
            estimate=first.estimate,
        )
        if found is None:
            return alone
        columns.append(
            [None if d is None else _completed(c, d) for c, d in zip(cases, found, strict=True)]
        )
    rows = zip(studies, zip(*columns, strict=True), strict=True)
    whole = [(study, [part for part in row if part is not None]) for study, row in rows]
    return [_joined(s, parts) if len(parts) == len(s.cases) else None for s, parts in whole]


def _shape(study: Study) -> Any:
    """Return what has to be equal in studies that run together, apart from their arrays."""
    counts = [(case.label, case.steps, case.every) for case in study.cases]
    modes = jax.tree.flatten(study.modes)
    return counts, modes, study.axis, study.probes, study.estimate, study.stop


def _completed(case: Case, data: "xarray.Dataset") -> "xarray.Dataset":
    """Return the dataset of a trace with what a study adds to it."""
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
