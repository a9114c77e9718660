"""How costs grow with the steps T, the unknowns n, the parameters p and the batch.

The slope of a straight line through the logarithms of time and size is the exponent of growth:
1 is proportional, 0 is constant. The same is done for the memory that the compiled program plans.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import Comparison, Effort, Row, measure
from benchmarks.harness.results import Column, Section, Table
from benchmarks.speed import gradients, implicit_gradients, jacobian_trace, problems
from benchmarks.speed.case import Case, by_iterdiff, by_jaxopt, by_optimistix, gradients_of, scanned


@functools.cache
def _logistic() -> Case:
    return problems.logistic("logistic 569×30", problems.breast_cancer(), 1e-2)


def along_steps(steps: int) -> Comparison:
    """Compare gradients through this number of steps, in every mode and library."""
    modes = {
        **gradients.MODES,
        "iterdiff Unrolled(last=10)": itd.Unrolled(last=10),
        "iterdiff Implicit()": itd.Implicit(),
        "iterdiff Checked(Unrolled())": itd.Checked(itd.Unrolled(), on_failure="nan"),
        "iterdiff Checked(Implicit())": itd.Checked(itd.Implicit(), on_failure="nan"),
    }
    return gradients.fixed_steps(_logistic(), steps, modes)


def along_unknowns(size: int) -> Comparison:
    """Compare implicit gradients of a ridge regression with this number of unknowns."""
    data = problems.synthetic("numbers", 2 * size, size)
    return implicit_gradients.comparison(problems.ridge(f"ridge, {size} unknowns", data, 1e-2))


def along_parameters(count: int) -> Comparison:
    """Compare Jacobian traces of a quadratic with 256 unknowns and this number of parameters."""
    study = jacobian_trace.wide(jacobian_trace.wide_arrays(256, count))
    variants = jacobian_trace.variants(study, 100, probed=True)
    return Comparison(f"Jacobian trace, {count} parameters", variants, study.inputs)


BATCH_STEPS = 100
"""Steps of each member of the batch."""


def along_batch(count: int) -> Comparison:
    """Compare gradients of a batch of small logistic regressions under `jax.vmap`."""
    case, stop = implicit_gradients.batch(count), itd.Steps(BATCH_STEPS)
    run = scanned(case, BATCH_STEPS)
    modes = {**gradients.MODES, "iterdiff Implicit()": itd.Implicit()}
    answers = {
        gradients.PLAIN: run,
        gradients.PEER: by_optimistix(case, BATCH_STEPS),
        "jaxopt, implicit_diff=False": by_jaxopt(case, BATCH_STEPS),
        **{name: by_iterdiff(case, stop, mode) for name, mode in modes.items()},
    }
    functions = {gradients.PRIMAL: run, **gradients_of(case, answers)}
    variants = {name: jax.vmap(function) for name, function in functions.items()}
    return Comparison(f"Gradients of a batch of {count}", variants, (case.theta, case.data))


AXES: dict[str, tuple[str, Callable[[int], Comparison], Sequence[int]]] = {
    "T": ("gradient through T steps, logistic 569×30", along_steps, (100, 800, 6400)),
    "n": ("implicit gradient of ridge, n unknowns", along_unknowns, (100, 300, 900, 1800)),
    "p": ("Jacobian trace, 256 unknowns, p parameters", along_parameters, (8, 32, 128, 256)),
    "batch": ("gradient through 100 steps, batch of 50×10", along_batch, (1, 32, 1024)),
}
TOY_SIZES = {"n": (5, 10)}


def exponent(sizes: Sequence[float], costs: Sequence[float | None]) -> float:
    """Return the slope of the line through the logarithms, by least squares."""
    known = [(s, c) for s, c in zip(sizes, costs, strict=True) if c and math.isfinite(c)]
    if len(known) < 2:
        return math.nan
    s, c = np.log(np.array(known)).T
    return float(np.polyfit(s, c, 1)[0])


def table(axis: str, words: str, measured: dict[int, list[Row]]) -> Table:
    """Return the times at each size, and the exponents of time and memory, of each variant."""
    sizes = list(measured)
    columns = [
        Column("variant"),
        Column(f"time at each {axis}", "s"),
        Column(f"time ∝ {axis}^", "exponent"),
        Column(f"memory ∝ {axis}^", "exponent"),
    ]
    rows = []
    for found in zip(*measured.values(), strict=True):
        seconds = [row.seconds for row in found]
        memory = exponent(sizes, [row.megabytes for row in found])
        rows.append([found[0].name, seconds, exponent(sizes, seconds), memory])
    note = (
        f"At {axis} = {', '.join(f'{size:,}' for size in sizes)}: time, and exponents of time and "
        "of the compiled program's memory."
    )
    return Table(f"Growth with {axis}: {words}", columns, rows, note, axis, sizes)


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Growth")
    # Curves need many programs, not many rounds.
    effort = dataclasses.replace(effort, rounds=min(effort.rounds, 3), seconds=effort.seconds / 6)
    for axis, (words, build, sizes) in AXES.items():
        sizes = TOY_SIZES.get(axis, ()) if effort.toy else sizes
        measured = {size: measure(build(size), effort) for size in sizes}
        if measured:
            section.tables.append(table(axis, words, measured))
    return section
