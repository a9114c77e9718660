"""What a grid will cost, from one compiled cell."""

import dataclasses
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from iterdiff.diagnostics.recorder import begin, record
from iterdiff.diagnostics.trace import build_recorder
from iterdiff.jaxtools.jit import program_of
from iterdiff.study.catalog import make
from iterdiff.study.cell import CellTask, encoded
from iterdiff.study.config import Case, Study
from iterdiff.study.grid import Grid
from iterdiff.study.run import run, trace_arguments

TRIAL_RECORDS = 20
"""Records of the trial run of a case; the time of the others follows from these."""

MAX_TRIED_CELLS = 20
"""Cells that are tried until two of them can be made; making one may take a second."""

REPEATS = 3
"""How often the compiled records are timed; the shortest time counts."""


class Estimate(NamedTuple):
    """The cost of a grid on this machine.

    Attributes
    ----------
    cells : int
        The number of cells.
    first_seconds : float
        Time of the first cell, compilation included.
    cell_seconds : float
        Time of every further cell in one process. Cells that run as one batch take less.
    total_seconds : float
        Time of all cells in `jobs` processes.
    program_bytes : int
        Memory of the largest compiled program: arguments, results and temporary values.
    file_bytes : int
        Size of all files.
    """

    cells: int
    first_seconds: float
    cell_seconds: float
    total_seconds: float
    program_bytes: int
    file_bytes: int


def estimate(grid: Grid, jobs: int = 1) -> Estimate:
    """Return what a grid will cost.

    The first cell is compiled and makes `TRIAL_RECORDS` records of each of its runs, then a second
    cell does. The time per record is that of the compiled program. Late starts, which some
    built-in studies measure besides, are not counted. Cells are assumed to cost the same.

    Parameters
    ----------
    grid : Grid
        What is to be computed.
    jobs : int
        The number of processes.
    """
    study, other = _two_studies(grid)
    first, size = _timed_trial(study, grid.words(0))
    further, _ = _timed_trial(other, grid.words(0))
    rest, memory = 0.0, 0
    for case in study.cases:
        seconds, needed = _per_record(study, case)
        missing = max(0, case.steps // case.every - TRIAL_RECORDS)
        rest += missing * seconds
        # A record: the iterate's three numbers, and three numbers for each mode; 8 bytes each.
        size += missing * 8 * 3 * (1 + len(study.modes))
        memory = max(memory, needed)
    each = further + rest
    total = first + rest + each * max(0, grid.size - jobs) / jobs
    return Estimate(grid.size, first + rest, each, total, memory, size * grid.size)


def _two_studies(grid: Grid) -> tuple[Study, Study]:
    """Return the studies of the first two cells that can be made; twice the same of only one.

    Raises
    ------
    ValueError
        If none of the first `MAX_TRIED_CELLS` cells can be made.
    """
    made: list[Study] = []
    failure = None
    for index in range(min(grid.size, MAX_TRIED_CELLS)):
        try:
            made.append(make(grid.cell(index)))
        except (TypeError, ValueError) as error:
            failure = failure or error
        if len(made) == 2:
            break
    if not made and failure is not None:
        raise failure
    return made[0], made[-1]


def _trial(case: Case) -> Case:
    return dataclasses.replace(
        case, steps=min(case.steps, TRIAL_RECORDS * case.every), rate=None, curves={}
    )


def _timed_trial(study: Study, words: dict[str, Any]) -> tuple[float, int]:
    """Return the time of a short run of all cases, and the size of its file."""
    start = time.perf_counter()
    data = run(dataclasses.replace(study, cases=tuple(map(_trial, study.cases))))
    content = encoded(data, CellTask("trial", words))
    return time.perf_counter() - start, len(content)


def _per_record(study: Study, case: Case) -> tuple[float, int]:
    """Return the time of a record, and the memory of the program that makes them."""
    arguments, options = trace_arguments(study, _trial(case))
    recorder = build_recorder(*arguments, **options)
    carry = begin(recorder)
    best = float("inf")
    for _ in range(REPEATS + 1):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(record(recorder, carry, recorder.count)[1])
        best = min(best, time.perf_counter() - start)
    program = program_of(record, recorder, carry, recorder.count)
    arrays = eqx.filter((recorder, carry, recorder.count), _is_array)
    found = program.run.lower(program.closed_over, arrays).compile().memory_analysis()
    if found is None:  # some devices do not tell
        return best / recorder.count, 0
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return best / recorder.count, sum(int(getattr(found, part)) for part in parts)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
