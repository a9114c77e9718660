"""From a choice to a dataset: run the study, and explain what cannot run."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax

import iterdiff as itd
from iterdiff.explore.charts import Figure
from iterdiff.explore.choices import FLOAT64, LATE_START, Choice
from iterdiff.explore.figures import figures
from iterdiff.explore.words import skipped_steps, words
from iterdiff.jaxtools.jit import quickly_compiled
from iterdiff.study.catalog import load_study
from iterdiff.study.config import Study
from iterdiff.study.run import run

if TYPE_CHECKING:
    import xarray

MAX_REMEMBERED = 64
"""Number of runs that are kept: a slider that moves back shows them at once."""

_LOCK = threading.Lock()
"""One run at a time: a slider that is dragged would start many."""


class Shown(NamedTuple):
    """What a choice gives.

    Attributes
    ----------
    study : Study
        What ran.
    data : xarray.Dataset
        What it gave.
    notes : tuple of str
        What the reader should know before he reads the figures.
    """

    study: Study
    data: "xarray.Dataset"
    notes: tuple[str, ...]


def shown(choice: Choice, table: tuple[str, str] | None = None) -> Shown:
    """Run the study of a choice.

    Parameters
    ----------
    choice : Choice
        What is chosen.
    table : (str, str), optional
        The reader's table: the path of a CSV file, and the column to predict.

    Raises
    ------
    ValueError
        If the choice cannot run: the message explains why, and says what to change.
    """
    with _LOCK:
        return _shown(choice, table)


@functools.lru_cache(MAX_REMEMBERED)
def _shown(choice: Choice, table: tuple[str, str] | None) -> Shown:
    refuse_singular(choice)
    with _as_chosen(choice):
        try:
            study = load_study(choice.problem, **words(choice, table))
            data = run(study)
        except TypeError as error:
            raise ValueError(str(error)) from error
    return Shown(study, data, notes(choice, study))


def drawn(choice: Choice, found: Shown) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a choice one by one, in its precision."""
    figure = figures(found.study, found.data)
    while True:
        with _LOCK, _as_chosen(choice):
            named = next(figure, None)
        if named is None:
            return
        yield named


@contextlib.contextmanager
def _as_chosen(choice: Choice) -> Iterator[None]:
    """Compute in the chosen precision, with programs that are soon compiled."""
    with jax.enable_x64(choice["precision"] == FLOAT64), quickly_compiled(choice["steps"]):
        yield


def refuse_singular(choice: Choice) -> None:
    """Raise ValueError for a problem without a solution, with the reason.

    Raises
    ------
    ValueError
        If the problem is singular.
    """
    if "theta" in choice and not choice["theta"] > 0:
        raise ValueError(
            "With θ = 0 the problem is singular: f has no curvature, so that there is no minimum "
            "to differentiate (x* = b/θ). Move θ away from 0."
        )
    if "rate" in choice and choice["rate"] == 1:
        raise ValueError(
            "With the rate 1 the problem is singular: θx + b has no fixed point "
            "(x* = b/(1 − θ)). Move the rate away from 1."
        )


def notes(choice: Choice, study: Study) -> tuple[str, ...]:
    """Return what theory knows about a choice beforehand: instability, and lost precision."""
    found = []
    [case] = study.cases
    if isinstance(case.algorithm, itd.GradientDescent) and case.spectrum is not None:
        limit, step = 2 / case.spectrum[1], float(case.algorithm.step_size)
        if step >= limit:
            found.append(
                f"The step size {step:g} is not below the limit of stability 2/L = {limit:.4g}: "
                "every step enlarges the error along the steepest direction. Choose a smaller step."
            )
    if "rate" in choice and choice["algorithm"] == "Picard" and abs(choice["rate"]) > 1:
        found.append("The rate is above 1: every step of Picard's iteration enlarges the error.")
    if LATE_START in choice["modes"]:
        skipped = skipped_steps(choice)
        found.append(
            f"Late start: the derivative of the last {choice['steps'] - skipped} steps. At the end "
            f"the first K = {skipped} are left out."
        )
    if choice["precision"] != FLOAT64:
        found.append("In float32 errors stop falling at about 1e-7 of the size of the numbers.")
    return tuple(found)
