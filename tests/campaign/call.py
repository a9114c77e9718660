"""A call of the campaign, and the judgement of what comes out of it."""

import dataclasses
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import iterdiff as itd

PACKAGE = str(Path(itd.__file__).parent)

RIGHT = "right"
NOT_A_NUMBER = "NaN with a reason"
REFUSED = "refused"
THEIRS = "the caller's own error"
WRONG = "silent wrong number"
SILENT_NAN = "NaN without a reason"
UNCLEAR = "error that names nothing"
FOREIGN = "foreign traceback"
HANG = "hang"
CRASH = "crash"
GOOD = (RIGHT, NOT_A_NUMBER, REFUSED, THEIRS)
BAD = (WRONG, SILENT_NAN, UNCLEAR, FOREIGN, HANG, CRASH)

SHOWN_CHARACTERS = 300
"""Length to which values and messages are cut in the results."""


class OwnError(Exception):
    """What the campaign's own functions raise on purpose."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes
    ----------
    name : str
        What is unusual about it.
    run : callable
        Makes the call and returns a number, an array or a pytree of arrays.
    right : callable or None
        Returns the right value. None: any answer is right that is not an error of somebody else.
    rtol : float
        The relative error that counts as right, in the Euclidean norm over all leaves.
    may_be_nan : bool
        Whether NaN is an answer with a reason: the input is not finite, or the call asks for a
        status instead of an exception.
    own : bool
        Whether an error of the campaign's own function may pass through.
    """

    name: str
    run: Callable[[], Any]
    right: Callable[[], Any] | None = None
    rtol: float = 1e-5
    may_be_nan: bool = False
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out of a call: the judgement, and the value or message in short."""

    name: str
    judgement: str
    shown: str


def judged(call: Call) -> Outcome:
    """Make a call and judge what comes out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = jax.block_until_ready(call.run())
        except (Exception, SystemExit) as error:
            return Outcome(call.name, *_of_error(call, error))
    warned = any(
        issubclass(w.category, itd.DerivativeWarning) or "Unrolled or OneStep" in str(w.message)
        for w in caught
    )
    return Outcome(call.name, *_of_value(call, value, warned))


def _of_error(call: Call, error: BaseException) -> tuple[str, str]:
    text = " ".join(str(error).split())
    shown = f"{type(error).__name__}: {text}"[:SHOWN_CHARACTERS]
    if isinstance(error, itd.SolveError) or "SolveError" in text or "SolverFailed" in text:
        return REFUSED, shown
    quoted = text.rpartition("Error: ")[2]  # of a callback, whose traceback JAX quotes
    if isinstance(error, jax.errors.JaxRuntimeError) and PACKAGE in text and "`" in quoted:
        return REFUSED, f"{type(error).__name__}: {quoted}"[:SHOWN_CHARACTERS]
    if isinstance(error, OwnError) or "OwnError" in text:
        return THEIRS, shown
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if not any(frame.startswith(PACKAGE) for frame in frames):
        return THEIRS, shown  # JAX refused it before we were called
    if frames[-1].startswith(PACKAGE) and isinstance(error, TypeError | ValueError | ImportError):
        return REFUSED if "`" in text else THEIRS if call.own else UNCLEAR, shown
    if any("`" in note for note in getattr(error, "__notes__", ())):
        return REFUSED, shown
    return (THEIRS if call.own else FOREIGN), shown


def _of_value(call: Call, value: Any, warned: bool) -> tuple[str, str]:
    shown = " ".join(str(value).split())[:SHOWN_CHARACTERS]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(value) if _is_numeric(leaf)]
    floating = [leaf for leaf in leaves if leaf.dtype.kind == "f"]
    if call.may_be_nan and any(np.isinf(leaf).any() for leaf in floating):
        return NOT_A_NUMBER, shown
    if any(np.isnan(leaf).any() for leaf in floating):
        return (NOT_A_NUMBER if call.may_be_nan or warned else SILENT_NAN), shown
    if call.right is None:
        return RIGHT, shown
    expected = call.right()
    if gap(value, expected) <= call.rtol:
        return RIGHT, shown
    shown = f"{shown} right: {' '.join(str(expected).split())}"[:SHOWN_CHARACTERS]
    return (NOT_A_NUMBER if warned else WRONG), shown


def _longest(a: Any) -> np.ndarray:
    return np.asarray(a, np.clongdouble if np.iscomplexobj(a) else np.longdouble)


def gap(a: Any, b: Any) -> float:
    """Return ``|a - b| / |b|``, with leaves scaled such that nothing overflows."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    pairs = [(_longest(u), _longest(v)) for u, v in pairs if _is_numeric(u)]
    if any(u.shape != v.shape for u, v in pairs):
        return np.inf
    size = max((np.abs(v).max(initial=0.0) for _, v in pairs), default=0.0)
    size = size if size > 0 else 1.0
    above = sum(float(np.sum(np.abs((u - v) / size) ** 2)) for u, v in pairs)
    below = sum(float(np.sum(np.abs(v / size) ** 2)) for _, v in pairs)
    return (above / (below if below > 0 else 1.0)) ** 0.5


def _is_numeric(leaf: Any) -> bool:
    return isinstance(leaf, int | float | np.ndarray | np.generic) or (
        isinstance(leaf, jax.Array) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    )
