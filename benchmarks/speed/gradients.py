"""The gradient of a loss through gradient descent, in every mode and library.

The problem is logistic regression with one log-penalty per feature: on the breast-cancer data
(569 x 30), where the overhead of the loop counts, and on synthetic data (20,000 x 500), where
products with the data do. Another comparison stops by a rule, so that the number of steps is not
known in advance. The truth is a reverse sweep written by hand.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

import iterdiff as itd
from benchmarks.harness.measure import Comparison, Effort, Row, best, compare, named
from benchmarks.harness.results import Measurement, Section
from benchmarks.harness.targets import against
from benchmarks.speed import problems
from benchmarks.speed.case import Case, by_iterdiff, by_jaxopt, by_optimistix, gradients_of, scanned
from benchmarks.speed.internals import parts


def by_hand(case: Case, steps: int, keep_slopes: bool = False) -> Callable:
    """Return a reverse sweep written by hand, which keeps the iterates.

    Parameters
    ----------
    keep_slopes : bool
        Whether the run also keeps the loss's second derivative at every sample and step. Each step
        of the sweep then needs two products with the data instead of three.
    """
    h = case.step_size

    def gradient(theta, data):
        features, targets = data.features, data.targets
        weights, count = jnp.exp(theta), data.features.shape[0]

        def forward(x, _):
            s = jax.nn.sigmoid(-targets * (features @ x))
            new = x - h * (weights * x - (targets * s) @ features / count)
            return new, (x, s * (1 - s) if keep_slopes else None)

        def backward(carry, kept):
            (adjoint, gradient), (x, slopes) = carry, kept
            if slopes is None:
                s = jax.nn.sigmoid(features @ x)
                slopes = s * (1 - s)
            image = (slopes * (features @ adjoint)) @ features / count + weights * adjoint
            return (adjoint - h * image, gradient - h * weights * x * adjoint), None

        x, kept = jax.lax.scan(forward, jnp.zeros_like(theta), None, steps)
        start = jax.grad(case.loss)(x, data), jnp.zeros_like(theta)
        return jax.lax.scan(backward, start, kept, reverse=True)[0][1]

    return gradient


# Comparisons

PRIMAL = "primal: jax scan"
PLAIN = "jax.grad of the scan"
PEER = "optimistix, RecursiveCheckpointAdjoint"
MODES = {
    "iterdiff Unrolled()": itd.Unrolled(),
    'iterdiff Unrolled(checkpoint="sqrt")': itd.Unrolled(checkpoint="sqrt"),
    'iterdiff Unrolled(checkpoint="log")': itd.Unrolled(checkpoint="log"),
    'iterdiff Unrolled(last="auto")': itd.Unrolled(last="auto"),
}
DEFAULT, SQRT, LOG, AUTO = MODES


def _only(*names: str) -> dict[str, itd.Mode]:
    return {name: MODES[name] for name in names}


def fixed_steps(case: Case, steps: int, modes: dict[str, itd.Mode]) -> Comparison:
    """Compare gradients through a fixed number of steps."""
    plain = {
        PLAIN: scanned(case, steps),
        "the same, each step checkpointed": scanned(case, steps, "steps"),
        "the same, nested with about √T checkpoints": scanned(case, steps, "sqrt"),
    }
    others = {
        PEER: by_optimistix(case, steps),
        "optimistix, T checkpoints": by_optimistix(case, steps, checkpoints=steps),
        "jaxopt, implicit_diff=False": by_jaxopt(case, steps),
        **{name: by_iterdiff(case, itd.Steps(steps), mode) for name, mode in modes.items()},
    }
    sweep, inputs = by_hand(case, steps), (case.theta, case.data)
    variants = {
        PRIMAL: scanned(case, steps),
        **gradients_of(case, plain),
        "by hand: reverse sweep, keeps iterates": sweep,
        "by hand: the same, keeps slopes too": by_hand(case, steps, keep_slopes=True),
        **gradients_of(case, others),
    }
    title = f"Gradient through {steps:,} gradient steps: {case.name}"
    return Comparison(title, variants, inputs, jax.jit(sweep)(*inputs), timed_only=(PRIMAL,))


RTOL = 1e-6
LIMITS = {"as needed": 1, "100 × that": 100}
"""`max_steps` over the number of steps that the rule takes."""


def stopped(case: Case, needed: int, modes: dict[str, itd.Mode]) -> Comparison:
    """Compare gradients through the steps that a rule takes."""
    answers = {}
    for name, mode in modes.items():
        answers[f"{name}, Steps"] = by_iterdiff(case, itd.Steps(needed), mode)
        for words, factor in LIMITS.items():
            rule = itd.ResidualBelow(rtol=RTOL, max_steps=factor * needed)
            answers[f"{name}, rule, max_steps {words}"] = by_iterdiff(case, rule, mode)
    answers[f"{PEER}, fixed steps"] = by_optimistix(case, needed)
    size = step_norm(case, needed)
    for words, factor in LIMITS.items():
        name = f"{PEER}, rule, max_steps {words}"
        answers[name] = by_optimistix(case, factor * needed, size)
    inputs = case.theta, case.data
    title = f"The same, stopped by a rule after {needed:,} steps: {case.name}"
    truth = jax.jit(by_hand(case, needed))(*inputs)
    return Comparison(title, gradients_of(case, answers), inputs, truth)


def steps_needed(case: Case) -> int:
    """Return the number of steps that reduce the residual by `RTOL`."""
    rule = itd.ResidualBelow(rtol=RTOL, max_steps=1_000_000)
    algorithm, start = itd.GradientDescent(case.step_size), jnp.zeros_like(case.theta)
    return int(itd.solve(case.problem(case.data), algorithm, start, case.theta, stop=rule).steps)


def step_norm(case: Case, needed: int) -> float:
    """Return a tolerance at which optimistix stops after about as many steps."""
    before, after = (jax.jit(scanned(case, n))(case.theta, case.data) for n in (needed - 1, needed))
    return float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(after)))


def where_time_goes(case: Case, steps: int) -> Comparison:
    """Compare the parts of the default gradient, and losses with and without derivative rule."""
    own, stop = problems.slope_by_hand(case), itd.Steps(steps)
    given = "the loss's slope given"
    others = {
        f"{PRIMAL}, {given}": scanned(own, steps),
        **gradients_of(own, {f"{DEFAULT}, {given}": by_iterdiff(own, stop, MODES[DEFAULT])}),
        **gradients_of(case, {DEFAULT: by_iterdiff(case, stop, MODES[DEFAULT])}),
    }
    return parts(case, steps, scanned(case, steps), others)


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Gradients of a run")
    small, strong, weak = (
        problems.logistic(f"logistic 569×30{words}", problems.breast_cancer(), penalty)
        for words, penalty in (("", 1e-2), (", penalty 0.1", 0.1), (", penalty 0.002", 2e-3))
    )
    if effort.toy:
        compare(section, fixed_steps(small, 64, _only(DEFAULT)), effort)
        return section
    steps, measured = 10_000, section.measurements
    measured += _run_targets(compare(section, fixed_steps(small, steps, MODES), effort))
    compare(section, where_time_goes(small, steps), effort)
    rows = compare(section, fixed_steps(strong, steps, _only(DEFAULT, AUTO)), effort)
    measured.append(_auto_target(rows))
    by_rule = stopped(weak, steps_needed(weak), _only(DEFAULT, SQRT))
    measured += _rule_targets(compare(section, by_rule, effort))

    large = problems.logistic("logistic 20,000×500", problems.synthetic("signs", 20_000, 500), 1e-3)
    effort = dataclasses.replace(effort, rounds=7)
    rows = compare(section, fixed_steps(large, 30, _only(DEFAULT, SQRT, LOG)), effort)
    unit, fastest = named(rows, PLAIN).ratio, best(rows)
    ours = named(rows, DEFAULT).ratio / unit
    measured.append(against("large run", ours, fastest.name, fastest.ratio / unit))
    return section


def _run_targets(rows: list[Row]) -> list[Measurement]:
    fastest = best(rows, 1e-6)
    made = []
    for key, name in (("default", DEFAULT), ("sqrt", SQRT), ("log", LOG)):
        ours = named(rows, name)
        lean = _leanest(rows, ours.ratio)
        made += [
            against(f"run {key} time", ours.ratio, fastest.name, fastest.ratio),
            against(f"run {key} memory", ours.megabytes, lean.name, lean.megabytes),
        ]
    return made


def _leanest(rows: list[Row], ratio: float) -> Row:
    """Return the other variant of least memory among those at most 1.5 times slower than ours."""
    others = [row for row in rows if not row.ours and row.error is not None]
    quick = [row for row in others if row.ratio <= 1.5 * ratio]
    return min(quick or others, key=lambda row: row.megabytes or math.inf)


def _auto_target(rows: list[Row]) -> Measurement:
    """Return the time of a truncated sweep where only the last 5 % of the steps matter.

    With the penalty of the other comparisons, half of them do.
    """
    auto, fastest = named(rows, AUTO), best(rows, 1e-6)
    note = f"penalty 0.1; relative error {auto.error:.0e}"
    return against("run auto time", auto.ratio, fastest.name, fastest.ratio, note)


def _rule_targets(rows: list[Row]) -> list[Measurement]:
    made = []
    fixed, peer_fixed = named(rows, f"{DEFAULT}, Steps"), named(rows, f"{PEER}, fixed steps")
    for suffix, words in zip(("", " 100"), LIMITS, strict=True):
        ours, peer = (named(rows, f"{name}, rule, max_steps {words}") for name in (DEFAULT, PEER))
        time = ours.ratio / fixed.ratio, PEER, peer.ratio / peer_fixed.ratio
        memory = ours.megabytes / fixed.megabytes, PEER, peer.megabytes / peer_fixed.megabytes
        made += [against(f"rule time{suffix}", *time), against(f"rule memory{suffix}", *memory)]
    return made
