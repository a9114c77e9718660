"""The dataset that `trace` returns, assembled from what was recorded."""

import datetime
import functools
import importlib.metadata
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float

from iterdiff.diagnostics.recorder import Record, Recorder
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.extras import import_extra
from iterdiff.jaxtools.jit import compiled
from iterdiff.jaxtools.tree import floating_part

if TYPE_CHECKING:
    import xarray


def to_dataset(recorder: Recorder, record: Record) -> "xarray.Dataset":
    """Return the records of a whole run as a dataset; `trace` describes it.

    Parameters
    ----------
    recorder : Recorder
        What was recorded.
    record : Record
        NumPy arrays of shape (records,).

    Raises
    ------
    ImportError
        If xarray is not installed.
    """
    xarray = import_extra("xarray", "study")
    iterations = np.arange(record.residual_norm.size) * recorder.every
    return xarray.Dataset(
        _iterate_variables(record) | _jacobian_variables(recorder, record),
        coords={"mode": list(recorder.tangents), "iteration": iterations},
        attrs=_attributes(recorder, record, iterations),
    )


def _iterate_variables(record: Record) -> dict[str, tuple]:
    variables: dict[str, tuple] = {
        "iterate_error": ("iteration", record.iterate_error, {"long_name": "‖x_t − x*‖"}),
        "residual_norm": ("iteration", record.residual_norm, {"long_name": "‖r(x_t, θ)‖"}),
    }
    if record.objective_error is not None:
        attributes = {"long_name": "f(x_t, θ) − f(x*, θ)"}
        variables["objective_error"] = ("iteration", record.objective_error, attributes)
    return variables


@compiled
def _reference_norm(recorder: Recorder) -> Float[Array, ""]:
    return recorder.frobenius(recorder.task.problem.answer(recorder.reference.tangents))


def _jacobian_variables(recorder: Recorder, record: Record) -> dict[str, tuple]:
    modes, dimensions = list(recorder.tangents), ("mode", "iteration")
    curves = [record.jacobian_error[mode] for mode in modes]
    errors = np.stack(curves) if curves else np.zeros((0, record.residual_norm.size))
    estimates, trusted = np.full(errors.shape, np.nan), np.zeros(errors.shape, bool)
    if record.estimated_error is not None:
        for row, mode in enumerate(modes):
            estimates[row], trusted[row] = record.estimated_error[mode]
    attributes = {
        "long_name": "‖J_t − J*‖_F (absolute)",
        "reference_norm": float(_reference_norm(recorder)),
        "directions": "all" if recorder.probes is None else f"{recorder.probes} probes",
    }
    estimate_attributes = {"long_name": "‖J_t − J(x_t⁺)‖_F (absolute)"}
    return {
        "jacobian_error": (dimensions, errors, attributes),
        "jacobian_error_estimate": (dimensions, estimates, estimate_attributes),
        "estimate_trusted": (dimensions, trusted),
    }


def _attributes(recorder: Recorder, record: Record, iterations: np.ndarray) -> dict[str, Any]:
    task = recorder.task
    not_finite = ~np.isfinite(record.residual_norm)
    status = "finite throughout"
    if not_finite.any():
        status = f"diverged: not finite from iteration {iterations[np.argmax(not_finite)]} on"
    return {
        "status": status,
        "problem": type(task.problem).__name__,
        "algorithm": type(task.algorithm).__name__,
        "unknowns": tree.size(task.x0),
        "parameters": tree.size(floating_part(task.theta)[0]),
        "dtype": str(tree.result_dtype(task.x0)),
        "device": jax.devices()[0].device_kind,
        "iterdiff_version": installed_version(),
        "jax_version": jax.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def installed_version() -> str:
    """Return the version of the installed package; read once, which takes a millisecond."""
    installed = importlib.metadata.distributions(name="iterdiff")
    return next((found.version for found in installed), "unknown")
