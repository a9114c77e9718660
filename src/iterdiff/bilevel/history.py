"""What an outer run did: one row for each inner run, as an xarray Dataset on request."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from iterdiff.jaxtools.extras import import_extra

if TYPE_CHECKING:
    import xarray

MAX_RECORDED_PARAMETERS = 1000
"""Up to this many numbers in theta, the rows hold theta and the gradient."""

COLUMNS: dict[str, tuple[type, str]] = {
    "iteration": (int, "outer iteration"),
    "verdict": (str, "what came of the evaluation"),
    "accepted": (bool, "whether theta moved there"),
    "value": (float, "outer loss, Newton-corrected"),
    "value_error": (float, "its error bar (absolute)"),
    "gradient_norm": (float, "‖projected gradient‖, Newton-corrected"),
    "gradient_error": (float, "‖estimated error of the gradient at the iterate‖ (absolute)"),
    "gradient_uncertainty": (float, "how wrong the corrected gradient may be (absolute)"),
    "trusted": (bool, "whether the estimate is trusted"),
    "accuracy": (float, "relative accuracy that was asked for"),
    "step": (float, "‖step in theta‖"),
    "steps": (int, "inner steps"),
    "checks": (int, "examinations of the gradient"),
    "gradients": (int, "inner residuals evaluated"),
    "products": (float, "Hessian products; NaN if not counted"),
    "seconds": (float, "seconds since the start"),
}
"""Type and meaning of each column."""

STOCHASTIC_COLUMNS: dict[str, tuple[type, str]] = {
    "iteration": (int, "round"),
    "verdict": (str, "what came of the round"),
    "accepted": (bool, "whether loss and gradient are finite"),
    "value": (float, "outer loss"),
    "value_half_width": (float, "half of its confidence interval"),
    "gradient_norm": (float, "‖projected gradient‖"),
    "radius": (float, "‖half widths of the intervals of the gradient‖"),
    "settled": (bool, "whether the chains had forgotten their start"),
    "batch": (int, "samples in a minibatch"),
    "samples": (int, "inner gradients of single samples, all chains"),
    "seconds": (float, "seconds since the start"),
}
"""The same of a stochastic run."""

VECTORS = "theta", "gradient", "half_width"
"""Columns with one number for each parameter, where they are recorded."""


class Log:
    """The rows of a run.

    Attributes
    ----------
    rows : list of dict
        One for each inner run, by the names of `columns`.
    columns : dict
        Type and meaning of each column.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]] | None = None,
        columns: dict[str, tuple[type, str]] = COLUMNS,
    ):
        self.rows: list[dict[str, Any]] = [] if rows is None else rows
        self.columns = columns

    def add(self, **row: Any) -> None:
        """Append a row; its verdict comes later."""
        self.rows.append({"verdict": "", "accepted": False, **row})

    def judge(self, row: int, verdict: str, *, accepted: bool = False) -> None:
        """Write what came of a row."""
        self.rows[row]["verdict"], self.rows[row]["accepted"] = verdict, accepted

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the columns as arrays."""
        found = {
            name: np.array([row[name] for row in self.rows], kind)
            for name, (kind, _) in self.columns.items()
        }
        for name in VECTORS:
            if self.rows and name in self.rows[0]:
                found[name] = np.stack([row[name] for row in self.rows])
        return found

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Log":
        """Return the log whose `arrays` were stored."""
        if not arrays:
            return cls()
        count = len(arrays["value"])
        return cls(
            [
                {
                    name: COLUMNS[name][0](v[k]) if name in COLUMNS else v[k]
                    for name, v in arrays.items()
                }
                for k in range(count)
            ]
        )


def to_dataset(log: Log, attributes: dict[str, Any]) -> "xarray.Dataset":
    """Return the rows as a dataset over ``evaluation``; `Minimized.history` describes it.

    Raises
    ------
    ImportError
        If xarray is not installed; the message names the extra.
    """
    xarray = import_extra("xarray", "bilevel")
    arrays = log.arrays()
    variables = {}
    for name, values in arrays.items():
        dimensions = ("evaluation", "parameter")[: values.ndim]
        if name in log.columns:
            variables[name] = (dimensions, values, {"long_name": log.columns[name][1]})
        else:
            variables[name] = (dimensions, values)
    installed = importlib.metadata.distributions(name="iterdiff")
    return xarray.Dataset(
        variables,
        coords={"evaluation": np.arange(len(log.rows))},
        attrs={
            **attributes,
            "iterdiff_version": next((d.version for d in installed), "unknown"),
            "jax_version": jax.__version__,
        },
    )
