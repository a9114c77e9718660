"""The error report of a checked derivative, returned from the backward pass as a cotangent."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from iterdiff.accuracy.estimate import ErrorEstimate, shown
from iterdiff.accuracy.reasons import NOT_REPORTED, REASONS
from iterdiff.jaxtools import manual_axes
from iterdiff.jaxtools.arguments import check_call, check_callable


class DerivativeReport(eqx.Module):
    """The error report of a checked derivative: scalars, batched by ``vmap``.

    Attributes
    ----------
    relative, absolute, uncertainty : scalar
        As in `ErrorEstimate`.
    trusted : bool
        As in `ErrorEstimate`.
    flagged : bool
        Whether the error may exceed the tolerance.
    reason_code : integer scalar
        The index of `reason`.
    """

    relative: Float[Array, ""]
    absolute: Float[Array, ""]
    uncertainty: Float[Array, ""]
    trusted: Bool[Array, ""]
    flagged: Bool[Array, ""]
    reason_code: Int[Array, ""]

    def __repr__(self) -> str:
        """Return the numbers and the verdict on one line; shapes while JAX traces."""
        return shown(self, "trusted", "flagged")

    @property
    def reason(self) -> str:
        """As `ErrorEstimate.reason`, for an unbatched report. Not available under ``jit``."""
        return REASONS[int(self.reason_code)]


REPORT_SIZE = 6


def check_report(report: Any) -> None:
    """Raise ValueError unless `report` is None or has the shape of an encoded report.

    Raises
    ------
    ValueError
        The message says where a report comes from.
    """
    if report is not None and jnp.shape(report) != (REPORT_SIZE,):
        raise ValueError(
            "`report` must be the second argument that `value_and_grad_with_report` passes to the "
            f"loss, not {report!r}."
        )


def to_report(vector: Float[Array, " 6"]) -> DerivativeReport:
    """Return the report that a cotangent encodes; a cotangent of zeros encodes none."""
    *numbers, trusted, flagged, code = vector
    missing = code == 0
    relative, absolute, uncertainty = (jnp.where(missing, jnp.nan, v) for v in numbers)
    reason = jnp.where(missing, NOT_REPORTED, code - 1).astype(int)
    return DerivativeReport(
        relative, absolute, uncertainty, trusted > 0, (flagged > 0) | missing, reason
    )


def to_vector(estimate: ErrorEstimate, flagged: Bool[Array, ""]) -> Float[Array, " 6"]:
    """Encode a report as a vector, which a cotangent can hold."""
    parts = (
        estimate.relative,
        estimate.absolute,
        estimate.uncertainty,
        estimate.trusted,
        flagged,
        estimate.reason_code + 1,  # zero, as all the others, if no derivative is checked
    )
    return jnp.stack([jnp.asarray(part, float) for part in parts])


@jax.custom_vjp
def carrying_report(
    value: Float[Array, ""],
    report: Float[Array, " 6"],
    found: Float[Array, " 6"],
) -> Float[Array, ""]:
    """Return `value`, such that the cotangent of `report` is the encoded report `found`."""
    del report, found
    return value


def _carry(value, report, found):
    return value, (jnp.zeros_like(report), found)


def _hand_over(kept, cotangent):
    zeros, found = kept
    return cotangent, found.astype(zeros.dtype), jnp.zeros_like(found)


carrying_report.defvjp(_carry, _hand_over)


def value_and_grad_with_report(
    loss: Callable[..., Float[Array, ""]],
) -> Callable[..., tuple[Float[Array, ""], PyTree, DerivativeReport]]:
    """Return a function that computes value, gradient, and the gradient's error report.

    The report is the cotangent of an additional input that is zero. It needs no host callback, so
    that it works under ``jit``, ``vmap`` and both.

    Parameters
    ----------
    loss : callable
        ``loss(theta, report, *args)`` returns a scalar. It passes `report` to one solve, as
        ``Checked(mode, report=report)``. (The reports of several solves would be added.)

    Returns
    -------
    callable
        ``(theta, *args) -> (value, gradient in theta, DerivativeReport)``. If the loss does not
        pass `report` on, the report is flagged and its numbers are NaN.

    Raises
    ------
    TypeError
        If `loss` is not callable; from the function that is returned, if it cannot be called as
        ``loss(theta, report, *args)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import iterdiff as itd
    >>> problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2 + 0.1 * x**4))
    >>> def loss(theta, report):
    ...     mode = itd.Checked(itd.Implicit(), rtol=1e-2, on_failure="nan", report=report)
    ...     stop = itd.Steps(3)  # too few
    ...     return jnp.sum(itd.solve(
    ...         problem, itd.GradientDescent(0.1), jnp.zeros(2), theta, stop=stop, mode=mode
    ...     ).x)
    >>> value, gradient, report = itd.value_and_grad_with_report(loss)(jnp.ones(2))
    >>> bool(report.flagged), bool(report.trusted)
    (True, True)
    >>> isinstance(report, itd.DerivativeReport)
    True
    """
    check_callable(loss=loss)

    def with_report(theta: PyTree, *args):
        check_call("loss(theta, report, *args)", loss, theta, None, *args)
        silent = manual_axes.aligned(jnp.zeros(REPORT_SIZE), (theta, args))
        graded = jax.value_and_grad(lambda theta, report: loss(theta, report, *args), (0, 1))
        value, (gradient, report) = graded(theta, silent)
        return value, gradient, to_report(report)

    return with_report
