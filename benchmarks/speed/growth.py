"""How costs grow with the steps T, the unknowns n, the parameters p and the batch.

A line through the logarithms of time, and of the bytes that the compiled program holds, gives
exponents: 1 is proportional, 0 does not grow.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks import gradients, implicit_gradients, jacobian_trace, problems
from benchmarks.harness import Effort, Row, Table, Variant, duration, measure
from benchmarks.problems import Case
from benchmarks.sections import Curve, Section

Build = Callable[[int], Table]
"""Makes the table of one size."""


@functools.cache
def _logistic() -> Case:
    return problems.logistic("logistic 569×30", problems.breast_cancer(), 1e-2)


def along_steps(steps: int) -> Table:
    """Return gradients through that many steps, in every mode and library."""
    modes = {
        **gradients.MODES,
        "iterdiff Unrolled(last=10)": itd.Unrolled(last=10),
        "iterdiff Implicit()": itd.Implicit(),
        "iterdiff Checked(Unrolled())": itd.Checked(itd.Unrolled(), on_failure="nan"),
        "iterdiff Checked(Implicit())": itd.Checked(itd.Implicit(), on_failure="nan"),
    }
    return gradients.fixed_steps(_logistic(), steps, modes)


def along_unknowns(size: int) -> Table:
    """Return implicit gradients of a ridge regression with that many unknowns."""
    data = problems.synthetic("numbers", 2 * size, size)
    return implicit_gradients.table(problems.ridge(f"ridge, {size} unknowns", data, 1e-2))


def along_parameters(count: int) -> Table:
    """Return Jacobian traces of a quadratic with 256 unknowns and that many parameters."""
    study = jacobian_trace.wide(256, count)
    table = jacobian_trace.variants(study, 100, probed=True)
    variants = tuple(dataclasses.replace(variant, answers=False) for variant in table)
    return Table(f"Jacobian trace, {count} parameters", variants, study.inputs, jnp.ones(1))


STEPS = 100
"""Of each member of the batch."""


def along_batch(count: int) -> Table:
    """Return gradients of that many small logistic regressions under ``vmap``."""
    case = implicit_gradients.batch(count)
    answers = {
        "primal: jax scan": None,
        "jax.grad of the scan": gradients.scanned(case, STEPS),
        "optimistix, RecursiveCheckpointAdjoint": gradients.by_optimistix(case, STEPS),
        "jaxopt, implicit_diff=False": gradients.by_jaxopt(case, STEPS),
        **{
            name: gradients.by_iterdiff(case, itd.Steps(STEPS), mode)
            for name, mode in {**gradients.MODES, "iterdiff Implicit()": itd.Implicit()}.items()
        },
    }
    made = []
    for name, answer in answers.items():
        function = gradients.scanned(case, STEPS)
        if answer is not None:
            function = gradients.gradient_of(case, answer)
        mapped = jax.vmap(function)
        made.append(Variant(name, lambda inputs, f=mapped: f(*inputs), answers=False))
    inputs = case.theta, case.data
    return Table(f"Gradients of a batch of {count}", tuple(made), inputs, jnp.ones(1))


AXES: dict[str, tuple[str, Build, Sequence[int]]] = {
    "T": ("gradient through T steps, logistic 569×30", along_steps, (100, 800, 6400)),
    "n": ("implicit gradient of ridge, n unknowns", along_unknowns, (100, 300, 900, 1800)),
    "p": ("Jacobian trace, 256 unknowns, p parameters", along_parameters, (8, 32, 128, 256)),
    "batch": ("gradient through 100 steps, batch of 50×10", along_batch, (1, 32, 1024)),
}
TOY = {"n": (5, 10)}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of the line through the logarithms, by least squares."""
    known = [(s, c) for s, c in zip(sizes, costs, strict=True) if c and math.isfinite(c)]
    if len(known) < 2:
        return math.nan
    s, c = np.log(np.array(known)).T
    return float(np.polyfit(s, c, 1)[0])


def power(value: float) -> str:
    """Return an exponent with two digits after the point."""
    return "–" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"


def curves(axis: str, measured: dict[int, list[Row]]) -> list[tuple[Curve, Curve]]:
    """Return each variant's curves of time and of memory."""
    sizes = [float(size) for size in measured]
    names = [one.name for one in next(iter(measured.values()))]
    made = []
    for name in names:
        rows = [next(one for one in rows if one.name == name) for rows in measured.values()]
        seconds = [one.seconds for one in rows]
        memory = [float(one.temporary_bytes or 0) for one in rows]
        made.append(
            (
                Curve(axis, name, sizes, seconds, exponent(sizes, seconds)),
                Curve(axis, name, sizes, memory, exponent(sizes, memory)),
            )
        )
    return made


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Growth")
    # Curves want many programs, not many rounds.
    effort = dataclasses.replace(effort, rounds=min(effort.rounds, 3), seconds=effort.seconds / 6)
    for axis, (words, build, sizes) in AXES.items():
        if effort.toy:
            sizes = TOY.get(axis, ())
        if not sizes:
            continue
        measured = {size: measure(build(size), effort) for size in sizes}
        pairs = curves(axis, measured)
        section.curves += [time for time, _ in pairs]
        section.rows[axis] = [one for rows in measured.values() for one in rows]
        section.say(_table(axis, words, sizes, pairs))
    return section


def _table(axis: str, words: str, sizes: Sequence[int], pairs: list[tuple[Curve, Curve]]) -> str:
    shown = ", ".join(f"{size:,}" for size in sizes)
    lines = [
        f"### Growth with {axis}: {words}",
        "",
        f"At {axis} = {shown}: time, exponent of time, exponent of the compiled program's memory.",
        "",
        f"| variant | time at each {axis} | time ∝ {axis}^ | memory ∝ {axis}^ |",
        "| --- | --- | ---: | ---: |",
    ]
    for time, memory in pairs:
        costs = ", ".join(duration(cost) for cost in time.costs)
        exponents = (power(one.exponent) for one in (time, memory))
        lines.append(f"| {time.name} | {costs} | {' | '.join(exponents)} |")
    return "\n".join(lines) + "\n"
