"""Trace many runs that differ in numbers only, as one program."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.algorithms.base import Algorithm, traceable_step
from iterdiff.diagnostics.dataset import to_dataset
from iterdiff.diagnostics.recorder import Record, Recorder, record_rows, unstacked
from iterdiff.diagnostics.reference import Reference, implicit_tangents, polish
from iterdiff.diagnostics.trace import build_recorder
from iterdiff.jaxtools.arguments import is_number
from iterdiff.jaxtools.jit import compiled
from iterdiff.loop.run import run_loop
from iterdiff.loop.stopping import Steps
from iterdiff.loop.task import Task
from iterdiff.modes.base import Mode
from iterdiff.problems.inputs import with_data
from iterdiff.problems.problem import Problem

if TYPE_CHECKING:
    import xarray


class Run(NamedTuple):
    """The inputs of one run, as `trace` takes them."""

    problem: Problem
    algorithm: Algorithm
    x0: PyTree
    theta: PyTree
    args: PyTree = None


class _Numbers(NamedTuple):
    """What the program returns of each run; every array has a first axis of runs."""

    rows: Float[Array, "..."]
    reference: Reference
    found: Bool[Array, "..."]


def trace_batch(
    runs: Sequence[Run],
    *,
    steps: int,
    modes: Mapping[str, Mode],
    probes: int | None = None,
    every: int = 1,
    estimate: bool = False,
) -> "list[xarray.Dataset | None] | None":
    """Trace runs that have the same functions, and arrays of the same shapes, in one program.

    One run is checked as `trace` does. The numbers are those of `trace` up to rounding. The
    program takes as many steps of Newton's method as the slowest run needs, and its memory is that
    of all runs.

    Parameters
    ----------
    runs : sequence of Run
        At least one.
    steps, modes, probes, every, estimate
        As in `trace`.

    Returns
    -------
    list of (xarray.Dataset or None), or None
        The datasets of `trace`. None for a run whose reference cannot be computed: `trace` gives
        the reason. None instead of the list if the runs do not fit together.

    Raises
    ------
    TypeError, ValueError
        As `trace`, for the first run.
    """
    stacked = _stacked([Run(*_as_arrays(run)) for run in runs])
    if stacked is None:
        return None
    problem, algorithm, x0, theta, args = runs[0]
    options: dict[str, Any] = {"probes": probes, "every": every, "estimate": estimate}
    recorder = build_recorder(
        problem, algorithm, x0, theta, steps=steps, modes=modes, args=args, **options
    )
    if recorder.task.problem.layout is not None:
        return None
    given = stacked, dict(modes), recorder.directions
    with traceable_step(algorithm):
        found, layout = _run_all(*given, probes, steps, every, estimate)
    found = jax.device_get(found)
    each = [jax.tree.map(lambda v, i=i: v[i], found) for i in range(len(runs))]
    return [_dataset(recorder, numbers, layout) for numbers in each]


def _as_arrays(run: Run) -> tuple:
    # `jnp.asarray` as in `check_inputs`: Python numbers are arrays, too.
    arrays = jax.tree.map(lambda v: jnp.asarray(v) if is_number(v) else v, tuple(run[2:]))
    return (run.problem, run.algorithm, *arrays)


def _stacked(runs: Sequence[Run]) -> Run | None:
    """Return the runs as one, whose arrays have a first axis of runs; None if they do not fit."""
    parts = [eqx.partition(run, eqx.is_array) for run in runs]
    first_arrays, first_static = parts[0]
    static_leaves, static_places = jax.tree.flatten(first_static)
    leaves, places = jax.tree.flatten(first_arrays)
    columns = [[leaf] for leaf in leaves]
    for arrays, static in parts[1:]:
        other, structure = jax.tree.flatten(static)
        if structure != static_places or not all(
            a is b or (type(a) is type(b) and not callable(a) and a == b)
            for a, b in zip(static_leaves, other, strict=True)
        ):
            return None
        own, structure = jax.tree.flatten(arrays)
        if structure != places:
            return None
        for column, leaf in zip(columns, own, strict=True):
            if (leaf.shape, leaf.dtype) != (column[0].shape, column[0].dtype):
                return None
            column.append(leaf)
    joined = [np.stack([np.asarray(leaf) for leaf in column]) for column in columns]
    return eqx.combine(jax.tree.unflatten(places, joined), first_static)


@compiled
def _run_all(
    runs: Run,
    modes: dict[str, Mode],
    directions: PyTree,
    probes: int | None,
    steps: int,
    every: int,
    estimate: bool,
) -> tuple[_Numbers, Record]:
    arrays, static = eqx.partition(runs, eqx.is_array)
    layout: Any = None

    def one(arrays: Run) -> _Numbers:
        nonlocal layout
        problem, algorithm, x0, theta, args = eqx.combine(arrays, static)
        task = Task(with_data(problem, args), algorithm, x0, theta, Steps(steps))
        guess = run_loop(task.loop(), task.state()).state.x
        x, converged, _ = polish(task.problem, guess, theta)
        tangents, regular = implicit_tangents(task.problem, x, theta, directions)
        followers = {label: mode.tangents(task, directions) for label, mode in modes.items()}
        truth = Reference(x, tangents)
        recorder = Recorder(task, followers, truth, directions, probes, every, estimate)
        records = recorder.count + 1
        _, rows, layout = record_rows(recorder, recorder.begin(), records, ends=True)
        return _Numbers(rows, truth, converged & regular)

    return jax.vmap(one)(arrays), layout


def _dataset(recorder: Recorder, numbers: _Numbers, layout: Record) -> "xarray.Dataset | None":
    """Return the dataset of one run; None without a reference."""
    if not numbers.found:
        return None
    own = dataclasses.replace(recorder, reference=numbers.reference)
    return to_dataset(own, unstacked(np.asarray(numbers.rows), layout))
