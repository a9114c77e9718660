"""How things are measured: variants take turns, and each is checked before it is timed."""

import dataclasses
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LIBRARIES = ("iterdiff", "jax", "equinox", "lineax", "optimistix", "jaxopt", "optax")

OURS = "iterdiff"
"""Names of our variants begin with this."""

GUARD = 4 * 2**30
"""A program that plans to hold more bytes than this is compiled, and not run."""

SHORTEST = 5e-3
"""Seconds that one turn takes at least; faster work is repeated within it."""

FEWEST = 3
"""Turns of a variant that is too slow to take part in every round."""

VERY_SLOW = 5.0
"""A variant that takes more seconds than this has one turn, after its first run."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do the work of a table.

    Attributes
    ----------
    name : str
        What the row is called; names of ours begin with `OURS`.
    function : callable
        ``function(theta)`` does the work; it is compiled as a whole.
    answers : bool
        Whether it returns what the table's `truth` is about; else it is timed alone.
    compiled : bool
        Whether it is compiled as a whole; else it is called as it is, and compiles what it likes.
    """

    name: str
    function: Callable[[Any], Any]
    answers: bool = True
    compiled: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """Variants of the same work; the first one is what times are divided by.

    Attributes
    ----------
    title : str
        The heading.
    variants : tuple of Variant
        The rows.
    theta : pytree of arrays
        What every variant is called with: parameters, and data that is not to be folded into
        the program.
    truth : pytree of arrays
        The right answer.
    """

    title: str
    variants: tuple[Variant, ...]
    theta: Any
    truth: Any


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of a variant.

    Attributes
    ----------
    name : str
        As in `Variant`.
    seconds : float
        Median over its turns; NaN if it was not run.
    ratio : float
        Median over its turns of its time over that of the table's first variant in the same
        round.
    compile_seconds : float
        Tracing and compiling; of a variant that is not compiled as a whole, the first call.
    temporary_bytes : int or None
        What the compiled program holds beyond input and output.
    relative_error : float or None
        Euclidean, against the truth.
    turns : int
        How often it had its turn.
    failed : str
        Why it was not run; empty if it was.
    """

    name: str
    seconds: float
    ratio: float
    compile_seconds: float
    temporary_bytes: int | None
    relative_error: float | None
    turns: int = 0
    failed: str = ""

    @property
    def ours(self) -> bool:
        """Whether the variant is ours."""
        return self.name.startswith(OURS)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    rounds : int
        Rounds of each table; medians are reported.
    seconds : float
        What the rounds of one table may take; slow variants take fewer turns to keep it.
    toy : bool
        Small problems, our variants and what they are compared with alone: for tests of the
        benchmarks themselves.
    options : dict
        Options of the compiler.
    """

    rounds: int = 11
    seconds: float = 45.0
    toy: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


QUICK = Effort(rounds=3, seconds=5.0)
TOY = Effort(
    1, 1.0, True, {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@dataclasses.dataclass
class _Ready:
    """A variant that has been compiled and run once."""

    variant: Variant
    call: Callable[[], Any] | None = None
    compile_seconds: float = math.nan
    temporary_bytes: int | None = None
    first_seconds: float = math.nan
    error: float | None = None
    failed: str = ""
    times: dict[int, float] = dataclasses.field(default_factory=dict)


def measure(table: Table, rounds: int | Effort) -> list[Row]:
    """Measure all variants of a table, in turns so that a busy machine is fair to all.

    Parameters
    ----------
    table : Table
        What is measured.
    rounds : int or Effort
        How often each variant has its turn; medians are reported. An `Effort` also limits the
        time that this takes.
    """
    effort = rounds if isinstance(rounds, Effort) else Effort(rounds, math.inf)
    variants = table.variants
    if effort.toy:
        variants = (variants[0], *(v for v in variants[1:] if v.name.startswith(OURS)))
    ready = [_prepare(variant, table, effort) for variant in variants]
    _take_turns([one for one in ready if one.call is not None], effort)
    return [_row(one, ready[0]) for one in ready]


def _prepare(variant: Variant, table: Table, effort: Effort) -> _Ready:
    ready = _Ready(variant)
    try:
        ready.call = _compile(ready, table, effort)
        if ready.call is None:
            return ready
        start = time.perf_counter()
        answer = jax.block_until_ready(ready.call())
        ready.first_seconds = time.perf_counter() - start
        if not variant.compiled:
            ready.compile_seconds = ready.first_seconds
            start = time.perf_counter()
            answer = jax.block_until_ready(ready.call())
            ready.first_seconds = time.perf_counter() - start
        if variant.answers:
            ready.error = relative_error(answer, table.truth)
    except Exception as error:
        if variant.name.startswith(OURS):
            raise
        ready.call = None
        ready.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"
    return ready


def _compile(ready: _Ready, table: Table, effort: Effort) -> Callable[[], Any] | None:
    function = ready.variant.function
    if not ready.variant.compiled:
        return lambda: function(table.theta)
    jax.clear_caches()  # what another variant compiled is not given away
    start = time.perf_counter()
    compiled = jax.jit(function, compiler_options=effort.options)
    program = compiled.lower(table.theta).compile()
    ready.compile_seconds = time.perf_counter() - start
    ready.temporary_bytes = program.memory_analysis().temp_size_in_bytes
    if ready.temporary_bytes > GUARD:
        ready.failed = f"plans {ready.temporary_bytes / 2**30:.3g} GiB"
        return None
    # Called as users call it: what is compiled ahead of time goes a slower way to the device where
    # it may raise.
    return lambda: compiled(table.theta)


def _take_turns(ready: list[_Ready], effort: Effort) -> None:
    """Time all variants in every round, in an order of its own, but the slow ones more rarely."""
    share = effort.seconds / max(1, len(ready))
    turns = {}
    for one in ready:
        fewest = 1 if one.first_seconds > VERY_SLOW else FEWEST
        wanted = max(fewest, share / max(one.first_seconds, SHORTEST))
        turns[id(one)] = int(min(effort.rounds, wanted))
    if ready:
        turns[id(ready[0])] = effort.rounds  # the unit of all others
    shuffle = random.Random(0).shuffle
    for number in range(effort.rounds):
        due = [one for one in ready if _due(number, turns[id(one)], effort.rounds)]
        shuffle(due)
        for one in due:
            one.times[number] = _time(one)


def _due(number: int, turns: int, rounds: int) -> bool:
    """Spread `turns` turns evenly over the rounds."""
    return (number + 1) * turns // rounds > number * turns // rounds


def _time(ready: _Ready) -> float:
    assert ready.call is not None
    repeats = max(1, math.ceil(SHORTEST / max(ready.first_seconds, 1e-6)))
    repeats = min(repeats, 50)
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(ready.call())
    return (time.perf_counter() - start) / repeats


def _row(ready: _Ready, base: _Ready) -> Row:
    times = ready.times
    seconds = statistics.median(times.values()) if times else math.nan
    ratios = [taken / base.times[number] for number, taken in times.items() if number in base.times]
    return Row(
        ready.variant.name,
        seconds,
        statistics.median(ratios) if ratios else math.nan,
        ready.compile_seconds,
        ready.temporary_bytes,
        ready.error,
        len(times),
        ready.failed,
    )


def relative_error(answer: Any, truth: Any) -> float:
    """Return the Euclidean distance to the truth over the truth's norm."""
    answer, truth = (
        np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(a)])
        for a in (answer, truth)
    )
    return float(np.linalg.norm(answer - truth) / np.linalg.norm(truth))


def row(rows: Sequence[Row], name: str) -> Row:
    """Return the row of this name."""
    return next(one for one in rows if one.name == name)


def best(rows: Sequence[Row], largest_error: float = math.inf) -> Row:
    """Return the fastest row that is not ours, has an answer and is right enough."""
    others = [
        one
        for one in rows
        if not one.ours
        and one.relative_error is not None
        and one.relative_error <= largest_error
        and not math.isnan(one.seconds)
    ]
    return min(others, key=lambda one: one.ratio)


def duration(seconds: float) -> str:
    """Return a time in a fitting unit."""
    if math.isnan(seconds):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e6)} µs"


def number(value: float) -> str:
    """Return a number with three digits and no exponent, if it is neither huge nor tiny."""
    if math.isnan(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def markdown(table: Table, rows: list[Row], rounds: int | None = None) -> str:
    """Return the rows as a table in Markdown."""
    most = max((one.turns for one in rows), default=0) if rounds is None else rounds
    lines = [
        f"## {table.title}",
        "",
        f"Medians of {most} rounds in turns; ratio to “{rows[0].name}”; memory is what the "
        "compiled program holds beyond input and output; the error is relative, in Euclidean norm.",
        "",
        "| variant | time | ratio | turns | compile | memory | relative error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in rows:
        error = "–" if one.relative_error is None else f"{one.relative_error:.1e}"
        memory = "–" if one.temporary_bytes is None else f"{number(one.temporary_bytes / 1e6)} MB"
        time_or_reason = f"not run: {one.failed}" if one.failed else duration(one.seconds)
        lines.append(
            f"| {one.name} | {time_or_reason} | {number(one.ratio)} | {one.turns} "
            f"| {duration(one.compile_seconds)} | {memory} | {error} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return machine and versions in one line."""
    import os

    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, {device.device_kind}, "
        f"{jnp.zeros(()).dtype}, Python {platform.python_version()}, " + ", ".join(found)
    )
