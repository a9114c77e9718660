"""The gradient of a loss through gradient descent, in every mode and library.

Logistic regression with one log-penalty a feature: the breast-cancer data (569 x 30), where the
loop itself counts, and synthetic data (20,000 x 500), where products with the data do. Then the
same with a stopping rule, whose number of steps is not known beforehand. The truth is a reverse
sweep written by hand.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks import problems
from benchmarks.harness import Effort, Row, Table, Variant, best, measure, row
from benchmarks.parts import parts
from benchmarks.problems import Case
from benchmarks.problems import samples as data
from benchmarks.sections import Section
from benchmarks.targets import Figure

__all__ = ["data", "inner", "run", "step_size"]


def inner(x: jax.Array, theta: jax.Array) -> jax.Array:
    """Return the penalised training loss on every other sample (for `wrong_derivatives`)."""
    features, signs = (part[::2] for part in data())
    return jnp.mean(jnp.logaddexp(0.0, -signs * (features @ x))) + jnp.exp(theta) @ x**2 / 2


def step_size(theta: jax.Array) -> float:
    """Return one over a bound of the largest eigenvalue of the Hessian of `inner`."""
    features = np.asarray(data()[0][::2])
    largest = np.linalg.norm(features, 2) ** 2 / (4 * features.shape[0])
    return float(1 / (largest + float(jnp.max(jnp.exp(theta)))))


# Hand-written variants: functions of (theta, data).


def scanned(case: Case, steps: int, policy: str = "none") -> Callable:
    """Return the last iterate of a hand-written loop.

    Parameters
    ----------
    policy : {"none", "steps", "sqrt"}
        What is recomputed in reverse mode: nothing, each step, or each of about sqrt(T) blocks.
    """

    def last(theta, data):
        def body(x, _):
            return case.step(x, theta, data), None

        def block(x, _):
            return jax.lax.scan(body, x, None, inner_steps)[0], None

        start = jnp.zeros_like(theta)
        if policy == "none":
            return jax.lax.scan(body, start, None, steps)[0]
        if policy == "steps":
            return jax.lax.scan(jax.checkpoint(body), start, None, steps)[0]
        return jax.lax.scan(jax.checkpoint(block), start, None, steps // inner_steps)[0]

    inner_steps = next(k for k in range(math.isqrt(steps), steps + 1) if steps % k == 0)
    return last


def by_hand(case: Case, steps: int, keep_slopes: bool = False) -> Callable:
    """Return the gradient from a reverse sweep written by hand, which keeps the iterates.

    Parameters
    ----------
    keep_slopes : bool
        Whether it also keeps the loss's second derivative at every sample and step, so that the
        sweep needs two products with the data a step instead of three.
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


# Libraries.


def by_jaxopt(case: Case, steps: int) -> Callable:
    """Return the answer of jaxopt's gradient descent with a constant step."""

    def answer(theta, data):
        import jaxopt

        solver = jaxopt.GradientDescent(
            case.objective,
            maxiter=steps,
            tol=0.0,
            stepsize=case.step_size,
            acceleration=False,
            implicit_diff=False,
        )
        return solver.run(jnp.zeros_like(theta), theta, data).params

    return answer


def by_optimistix(
    case: Case, max_steps: int, rtol: float = 0.0, checkpoints: int | None = None
) -> Callable:
    """Return the answer of optimistix's fixed-point iteration of gradient steps."""

    def answer(theta, data):
        import optimistix as optx

        return optx.fixed_point(
            lambda x, inputs: case.step(x, *inputs),
            optx.FixedPointIteration(rtol=rtol, atol=0.0),
            jnp.zeros_like(theta),
            (theta, data),
            max_steps=max_steps,
            throw=False,
            adjoint=optx.RecursiveCheckpointAdjoint(checkpoints=checkpoints),
        ).value

    return answer


def by_iterdiff(case: Case, stop: itd.StoppingRule, mode: itd.Mode) -> Callable:
    """Return our answer."""

    def answer(theta, data):
        algorithm, start = itd.GradientDescent(case.step_size), jnp.zeros_like(theta)
        return itd.solve(case.problem(data), algorithm, start, theta, stop=stop, mode=mode).x

    return answer


def gradient_of(case: Case, answer: Callable) -> Callable:
    """Return the gradient of the loss of an answer: a function of (theta, data)."""
    return jax.grad(lambda theta, data: case.loss(answer(theta, data), data))


# Tables.

PRIMAL = "primal: jax scan"
PLAIN = "jax.grad of the scan"
MODES = {
    "iterdiff Unrolled()": itd.Unrolled(),
    'iterdiff Unrolled(checkpoint="sqrt")': itd.Unrolled(checkpoint="sqrt"),
    'iterdiff Unrolled(checkpoint="log")': itd.Unrolled(checkpoint="log"),
    'iterdiff Unrolled(last="auto")': itd.Unrolled(last="auto"),
}
DEFAULT, SQRT, LOG, AUTO = MODES


def fixed_steps(case: Case, steps: int, modes: dict[str, itd.Mode]) -> Table:
    """Return the table of gradients through a fixed number of steps."""

    def variant(name, answer, grad=True):
        function = gradient_of(case, answer) if grad else answer
        return Variant(name, lambda inputs: function(*inputs), grad)

    sweep, keeping = by_hand(case, steps), by_hand(case, steps, keep_slopes=True)
    variants = (
        variant(PRIMAL, scanned(case, steps), False),
        variant(PLAIN, scanned(case, steps)),
        variant("the same, each step checkpointed", scanned(case, steps, "steps")),
        variant("the same, nested with about √T checkpoints", scanned(case, steps, "sqrt")),
        Variant("by hand: reverse sweep, keeps iterates", lambda inputs: sweep(*inputs)),
        Variant("by hand: the same, keeps slopes too", lambda inputs: keeping(*inputs)),
        variant("optimistix, RecursiveCheckpointAdjoint", by_optimistix(case, steps)),
        variant("optimistix, T checkpoints", by_optimistix(case, steps, checkpoints=steps)),
        variant("jaxopt, implicit_diff=False", by_jaxopt(case, steps)),
        *(variant(name, by_iterdiff(case, itd.Steps(steps), m)) for name, m in modes.items()),
    )
    inputs = case.theta, case.data
    title = f"Gradient through {steps:,} gradient steps: {case.name}"
    return Table(title, variants, inputs, jax.jit(sweep)(*inputs))


RTOL = 1e-6
LIMITS = {"as needed": 1, "100 × that": 100}


def stopped(case: Case, needed: int, modes: dict[str, itd.Mode]) -> Table:
    """Return the table of gradients through as many steps as a rule asks for."""
    made = []
    for name, mode in modes.items():
        made.append((f"{name}, Steps", by_iterdiff(case, itd.Steps(needed), mode)))
        for words, factor in LIMITS.items():
            rule = itd.ResidualBelow(rtol=RTOL, max_steps=factor * needed)
            made.append((f"{name}, rule, max_steps {words}", by_iterdiff(case, rule, mode)))
    adjoint = "optimistix, RecursiveCheckpointAdjoint"
    made.append((f"{adjoint}, fixed steps", by_optimistix(case, needed)))
    size = step_norm(case, needed)
    for words, factor in LIMITS.items():
        solve = by_optimistix(case, factor * needed, size)
        made.append((f"{adjoint}, rule, max_steps {words}", solve))
    functions = [(name, gradient_of(case, answer)) for name, answer in made]
    variants = [Variant(name, lambda inputs, f=f: f(*inputs)) for name, f in functions]
    inputs = case.theta, case.data
    title = f"The same, stopped by a rule after {needed:,} steps: {case.name}"
    return Table(title, tuple(variants), inputs, jax.jit(by_hand(case, needed))(*inputs))


def steps_needed(case: Case) -> int:
    """Return how many steps it takes to shrink the residual by `RTOL`."""
    rule = itd.ResidualBelow(rtol=RTOL, max_steps=1_000_000)
    algorithm, start = itd.GradientDescent(case.step_size), jnp.zeros_like(case.theta)
    return int(itd.solve(case.problem(case.data), algorithm, start, case.theta, stop=rule).steps)


def with_own_slope(case: Case, steps: int) -> dict[str, Callable]:
    """Return the run and its gradients, the loss's slope given as a sigmoid or not."""
    own = problems.slope_by_hand(case)
    answers = {
        PRIMAL: scanned(own, steps),
        DEFAULT: by_iterdiff(own, itd.Steps(steps), MODES[DEFAULT]),
    }
    named = {f"{key}, the loss's slope given": answer for key, answer in answers.items()}
    named[DEFAULT] = by_iterdiff(case, itd.Steps(steps), MODES[DEFAULT])
    return {k: f if PRIMAL in k else gradient_of(case, f) for k, f in named.items()}


def step_norm(case: Case, needed: int) -> float:
    """Return a tolerance at which optimistix stops after about as many steps."""
    before, after = (jax.jit(scanned(case, n))(case.theta, case.data) for n in (needed - 1, needed))
    return float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(after)))


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Gradients of a run")
    small = problems.logistic("logistic 569×30", problems.breast_cancer(), 1e-2)
    steps = 64 if effort.toy else 10_000
    modes = {DEFAULT: MODES[DEFAULT]} if effort.toy else MODES
    table = fixed_steps(small, steps, modes)
    rows = section.add(table, measure(table, effort))
    if effort.toy:
        return section
    section.figures += _figures(rows)
    table = parts(small, steps, scanned(small, steps), with_own_slope(small, steps))
    section.add(table, measure(table, effort))

    strong = problems.logistic("logistic 569×30, penalty 0.1", problems.breast_cancer(), 0.1)
    table = fixed_steps(strong, steps, {name: MODES[name] for name in (DEFAULT, AUTO)})
    section.figures.append(_auto_figure(section.add(table, measure(table, effort))))

    weak = problems.logistic("logistic 569×30, penalty 0.002", problems.breast_cancer(), 2e-3)
    needed = steps_needed(weak)
    table = stopped(weak, needed, {name: MODES[name] for name in (DEFAULT, SQRT)})
    stopped_rows = section.add(table, measure(table, effort))
    section.figures += _rule_figures(stopped_rows)

    synthetic = problems.synthetic("signs", 20_000, 500)
    large = problems.logistic("logistic 20,000×500", synthetic, 1e-3)
    table = fixed_steps(large, 30, {name: MODES[name] for name in (DEFAULT, SQRT, LOG)})
    rows = section.add(table, measure(table, dataclasses.replace(effort, rounds=7)))
    ours, plain = row(rows, DEFAULT), row(rows, PLAIN)
    section.figures.append(Figure("large run", ours.ratio / plain.ratio, *_beside(rows, plain)))
    return section


def _beside(rows: list[Row], unit: Row) -> tuple[str, float]:
    fastest = best(rows)
    return fastest.name, fastest.ratio / unit.ratio


def _figures(rows: list[Row]) -> list[Figure]:
    fastest = best(rows, 1e-6)
    made = []
    for key, name in (("default", DEFAULT), ("sqrt", SQRT), ("log", LOG)):
        ours = row(rows, name)
        lean = _leanest(rows, ours.ratio)
        made.append(Figure(f"run {key} time", ours.ratio, fastest.name, fastest.ratio))
        made.append(Figure(f"run {key} memory", _megabytes(ours), lean.name, _megabytes(lean)))
    return made


def _auto_figure(rows: list[Row]) -> Figure:
    """Return the figure of a truncated sweep, where the last 5 % of the steps matter.

    With the penalty of the other tables half of them do.
    """
    auto, fastest = row(rows, AUTO), best(rows, 1e-6)
    note = f"penalty 0.1; relative error {auto.relative_error:.0e}"
    return Figure("run auto time", auto.ratio, fastest.name, fastest.ratio, note)


def _leanest(rows: list[Row], ratio: float) -> Row:
    """Return the row of others with the least memory among those not slower than 1.5 × ours."""
    others = [one for one in rows if not one.ours and one.relative_error is not None]
    quick = [one for one in others if one.ratio <= 1.5 * ratio]
    return min(quick or others, key=lambda one: one.temporary_bytes or math.inf)


def _megabytes(one: Row) -> float:
    return math.nan if one.temporary_bytes is None else one.temporary_bytes / 1e6


def _rule_figures(rows: list[Row]) -> list[Figure]:
    made: list[Figure] = []
    fixed = row(rows, f"{DEFAULT}, Steps")
    peer = "optimistix, RecursiveCheckpointAdjoint"
    peer_fixed = row(rows, f"{peer}, fixed steps")
    for suffix, words in (("", "as needed"), (" 100", "100 × that")):
        ours = row(rows, f"{DEFAULT}, rule, max_steps {words}")
        other = row(rows, f"{peer}, rule, max_steps {words}")
        time = ours.ratio / fixed.ratio
        made.append(Figure(f"rule time{suffix}", time, peer, other.ratio / peer_fixed.ratio))
        memory: list[Any] = [_megabytes(ours) / _megabytes(fixed)]
        memory += [peer, _megabytes(other) / _megabytes(peer_fixed)]
        made.append(Figure(f"rule memory{suffix}", *memory))
    return made
