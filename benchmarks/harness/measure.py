"""Timing: the variants of a comparison take turns, and each answer is checked before timing."""

import dataclasses
import datetime
import math
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness.fresh import ROOT
from benchmarks.harness.results import OURS, Column, Section, Table

LIBRARIES = ("iterdiff", "jax", "equinox", "lineax", "optimistix", "jaxopt", "optax")

MOST_BYTES = 4 * 2**30
"""A program that plans to hold more bytes is compiled but not run."""

SHORTEST_TURN = 5e-3
"""Shortest turn in seconds; faster work is repeated within its turn."""

MOST_REPEATS = 50
"""Most repetitions within a turn."""

FEWEST_TURNS = 3
"""Fewest turns of a variant that is too slow for every round."""

VERY_SLOW = 5.0
"""A variant that takes more seconds has one turn after its first run."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Variants of the same work. Ratios refer to the time of the first one.

    Attributes
    ----------
    title : str
        The heading.
    variants : dict of callables
        Functions of `inputs`, by name; our names begin with `OURS`.
    inputs : tuple of pytrees
        Arguments of every variant: parameters, and data that the compiler must not fold into the
        program.
    truth : pytree of arrays, optional
        The right answer; without it all variants are only timed.
    timed_only : collection of str
        Variants that return something else than the answer.
    eager : collection of str
        Variants that are called as given, not compiled as a whole.
    """

    title: str
    variants: dict[str, Callable]
    inputs: tuple
    truth: Any = None
    timed_only: Collection[str] = ()
    eager: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    rounds : int
        Rounds of each comparison.
    seconds : float
        Time for the rounds of one comparison; slow variants take fewer turns to keep it.
    toy : bool
        Only small problems, our variants and their unit: for tests of the benchmarks.
    options : dict
        Options of the compiler.
    """

    rounds: int = 11
    seconds: float = 45.0
    toy: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


QUICK = Effort(rounds=3, seconds=5.0)
UNOPTIMISED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""Options of the compiler for programs that run once."""
TOY = Effort(1, 1.0, True, UNOPTIMISED)


@dataclasses.dataclass
class Row:
    """Measurements of a variant.

    Attributes
    ----------
    name : str
        The variant.
    call : callable or None
        Runs it once; None if it cannot run.
    compile_seconds : float
        Tracing and compiling; the first call of an eager variant.
    megabytes : float or None
        What the compiled program plans to hold beyond input and output.
    first_seconds : float
        Time of a run, for planning the turns.
    error : float or None
        Relative error, in Euclidean norm.
    failed : str
        Why it was not run; empty if it was.
    times : dict
        Seconds by round.
    ratio : float
        Median over the rounds of its time over that of the first variant in the same round.
    """

    name: str
    call: Callable[[], Any] | None = None
    compile_seconds: float = math.nan
    megabytes: float | None = None
    first_seconds: float = math.nan
    error: float | None = None
    failed: str = ""
    times: dict[int, float] = dataclasses.field(default_factory=dict)
    ratio: float = math.nan

    @property
    def ours(self) -> bool:
        """Whether the variant is ours."""
        return self.name.startswith(OURS)

    @property
    def seconds(self) -> float:
        """Median time; NaN if it was not run."""
        return statistics.median(self.times.values()) if self.times else math.nan


def measure(comparison: Comparison, effort: Effort) -> list[Row]:
    """Measure all variants in turns, so that a busy machine slows all of them alike.

    A variant of others that raises is reported as failed; an exception of ours propagates.
    """
    first, *others = map(Row, comparison.variants)
    rows = [first, *(row for row in others if row.ours or not effort.toy)]
    # All are compiled before any of them runs, since compiling clears the caches of `jax.jit`.
    for prepare in (_compile, _run):
        for row in rows:
            try:
                prepare(row, comparison, effort)
            except Exception as error:
                if row.ours:
                    raise
                row.call = None
                row.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"
    _take_turns(rows, effort)
    for row in rows:
        pairs = [(row.times[k], first.times[k]) for k in row.times if k in first.times]
        if pairs:
            row.ratio = statistics.median(time / unit for time, unit in pairs)
    return rows


def _compile(row: Row, comparison: Comparison, effort: Effort) -> None:
    function, inputs = comparison.variants[row.name], comparison.inputs
    if row.name in comparison.eager:
        row.call = lambda: function(*inputs)
        return
    jax.clear_caches()  # no variant reuses what another one compiled
    compiled = jax.jit(function, compiler_options=effort.options)
    row.compile_seconds, program = _timed(lambda: compiled.lower(*inputs).compile())
    planned = program.memory_analysis().temp_size_in_bytes
    row.megabytes = planned / 1e6
    if planned > MOST_BYTES:
        row.failed = f"plans {planned / 2**30:.3g} GiB"
    else:
        # Users call through `jax.jit`. A program compiled ahead of time is dispatched more slowly
        # if it may raise.
        row.call = lambda: compiled(*inputs)


def _run(row: Row, comparison: Comparison, effort: Effort) -> None:
    """Run a variant, compare its answer with the truth, and time it once more if that is quick."""
    del effort
    if row.call is None:
        return
    first, answer = _timed(row.call)
    if row.name in comparison.eager:
        row.compile_seconds = first
    if comparison.truth is not None and row.name not in comparison.timed_only:
        row.error = relative_error(answer, comparison.truth)
    row.first_seconds = first - row.compile_seconds  # the first call compiles
    if row.first_seconds < VERY_SLOW:
        row.first_seconds = _timed(row.call)[0]


def _timed(call: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    start = time.perf_counter()
    for _ in range(repeats):
        answer = jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats, answer


def _take_turns(rows: list[Row], effort: Effort) -> None:
    """Time the rows in every round, in an order that changes; slow ones skip rounds."""
    share = effort.seconds / len(rows)
    due = {}
    for row in rows:
        fewest = 1 if row.first_seconds > VERY_SLOW else FEWEST_TURNS
        turns = max(fewest, share / max(row.first_seconds, SHORTEST_TURN))
        unit = row is rows[0]  # takes part in every round
        turns = effort.rounds if unit else int(min(turns, effort.rounds))
        due[row.name] = rounds_taken(turns, effort.rounds)
    shuffle = random.Random(0).shuffle
    for number in range(effort.rounds):
        present = [row for row in rows if row.call is not None and number in due[row.name]]
        shuffle(present)
        for row in present:
            repeats = math.ceil(SHORTEST_TURN / max(row.first_seconds, 1e-6))
            row.times[number] = _timed(row.call, max(1, min(repeats, MOST_REPEATS)))[0]


def rounds_taken(turns: int, rounds: int) -> set[int]:
    """Return the rounds in which a variant has its turns, spread evenly."""
    turns = min(turns, rounds)
    return {k for k in range(rounds) if (k + 1) * turns // rounds > k * turns // rounds}


def relative_error(answer: Any, truth: Any) -> float:
    """Return the Euclidean distance to the truth over the truth's norm."""
    answer, truth = (
        np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(a)])
        for a in (answer, truth)
    )
    return float(np.linalg.norm(answer - truth) / np.linalg.norm(truth))


def named(rows: Sequence[Row], name: str) -> Row:
    """Return the row of this name."""
    return next(row for row in rows if row.name == name)


def best(rows: Sequence[Row], largest_error: float = math.inf) -> Row:
    """Return the fastest of the other libraries and hand-written variants that is accurate."""
    others = [row for row in rows if row.times and not row.ours and row.error is not None]
    return min((r for r in others if r.error <= largest_error), key=lambda row: row.ratio)


COLUMNS = [
    Column("variant"),
    Column("time", "s"),
    Column("ratio", "×"),
    Column("turns", "count"),
    Column("compile", "s"),
    Column("memory", "MB"),
    Column("relative error", "error"),
]


def table(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """Return the measured rows as a table of results."""
    turns = max(len(row.times) for row in rows)
    note = (
        f"Medians of {turns} rounds, in turns. The ratio refers to “{rows[0].name}”. Memory is "
        "what the compiled program plans to hold beyond input and output. The error is relative, "
        "in Euclidean norm."
    )
    cells = [
        [
            row.name,
            f"not run: {row.failed}" if row.failed else row.seconds,
            row.ratio,
            len(row.times),
            row.compile_seconds,
            row.megabytes,
            row.error,
        ]
        for row in rows
    ]
    return Table(comparison.title, COLUMNS, cells, note)


def compare(section: Section, comparison: Comparison, effort: Effort) -> list[Row]:
    """Measure a comparison, add its table to the section and return the rows."""
    rows = measure(comparison, effort)
    section.tables.append(table(comparison, rows))
    return rows


def environment() -> dict[str, Any]:
    """Return machine, versions, date and git commit: see `Results`."""
    versions = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    affinity = getattr(os, "sched_getaffinity", None)
    machine = {
        "processor": platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "precision": str(jnp.zeros(()).dtype),
        "LAPACK threads": os.environ.get("OPENBLAS_NUM_THREADS"),
    }
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "machine": machine,
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() or None,
    }
