"""Cases of known derivative: what a group of them is, the truth, and what iterdiff reports.

A `Group` holds cases of one shape, whose arrays are stacked: one compiled program runs all of
them, in every mode of the group.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import UNOPTIMISED

RTOL = 1e-2
"""The tolerance of every `Checked`."""

Data = dict[str, Any]
Kind = Literal["jacobian", "tangent", "cotangent", "loss"]


class Setup(NamedTuple):
    """The solve of one case.

    Attributes
    ----------
    problem : Problem
        The problem as stated to the library.
    algorithm : Algorithm or callable
        A callable ``(x0, theta) -> x`` is a solver of the user's, under `iterdiff.implicit`.
    x0, theta : arrays
        Start and parameters.
    true : Problem, optional
        The problem that the solver solves, if it is another one.
    loss : callable, optional
        ``loss(x, theta)`` for cases of kind "loss".
    """

    problem: itd.Problem
    algorithm: Any
    x0: jax.Array
    theta: jax.Array
    true: itd.Problem | None = None
    loss: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases of one shape.

    Attributes
    ----------
    family : str
        The kind of trouble.
    name : str
        A unique name.
    build : callable
        Builds the `Setup` of one case from its data; traceable.
    cases : list of dict
        The data of each case: see `case`.
    modes : dict
        The modes of differentiation, by name.
    kind : str
        Which derivative is taken.
    stop : StoppingRule or int
        A rule, or the most steps of `ResidualBelow` with the case's ``rtol``.
    peer : str
        The kind of solver of other libraries that also runs the cases: see `peers`.
    foreign : bool
        Whether `Checked` judges, rather than `derivative_error`: only it tests whether a user's own
        algorithm solves `problem`, and only it knows the multipliers that an algorithm has found.
    """

    family: str
    name: str
    build: Callable[[Data], Setup]
    cases: list[Data]
    modes: dict[str, itd.Mode]
    kind: Kind = "cotangent"
    stop: itd.StoppingRule | int = 300
    peer: str = ""
    foreign: bool = False

    def stacked(self) -> Data:
        """Return the arrays of all cases, stacked."""
        keys = [key for key in self.cases[0] if key != "label"]
        return {key: np.stack([np.asarray(case[key]) for case in self.cases]) for key in keys}


def case(rng: np.random.Generator, theta: Any, x0: Any, **data: Any) -> Data:
    """Return the data of a case; cotangent ``w`` and tangent ``v`` are random unless given.

    ``guess``, by default zeros, is a point near the solution; ``rtol`` is the tolerance of the
    stopping rule.
    """
    n, p = np.size(x0), np.size(theta)
    made = {"theta": theta, "x0": x0, "guess": np.zeros(n), **data}
    if "w" in made:
        return made
    return {**made, "w": rng.standard_normal(n), "v": rng.standard_normal(p)}


def generator(name: str) -> np.random.Generator:
    """Return a generator seeded by the name of a group."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def grid(name: str, maker: Callable, **axes: Any) -> list[Data]:
    """Return a case for every point of a grid, all drawn from the group's generator.

    The axes are arguments of ``maker(rng, ...)``, with their values; the label of a case gives
    its point.
    """
    rng, cases = generator(name), []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        shown = (
            f"{axis}={v if isinstance(v, str) else format(v, 'g')}" for axis, v in point.items()
        )
        cases.append({**maker(rng, **point), "label": " ".join(shown)})
    return cases


def builder(problem_of: Callable[[Data], itd.Problem], algorithm_of: Callable) -> Callable:
    """Return the builder of a problem and an algorithm, both functions of the data."""
    return lambda data: Setup(problem_of(data), algorithm_of(data), data["x0"], data["theta"])


def fixed(algorithm: itd.Algorithm) -> Callable[[Data], itd.Algorithm]:
    """Return a function of the data that returns this algorithm."""
    return lambda _: algorithm


class Outcome(NamedTuple):
    """Derivative of a case in one mode and its judgement; `reason` indexes `REASONS`."""

    x: jax.Array
    derivative: jax.Array
    absolute: jax.Array
    trusted: jax.Array
    reason: jax.Array
    flagged: jax.Array


def derivative_of(
    kind: Kind, answer: Callable, setup: Setup, data: Data, jacobian: Callable = jax.jacfwd
) -> tuple[jax.Array, jax.Array]:
    """Return the derivative of ``x = answer(theta)`` of this kind, and x."""
    theta = setup.theta
    if kind == "jacobian":
        return jacobian(lambda t: (answer(t),) * 2, has_aux=True)(theta)
    if kind == "tangent":
        x, derivative = jax.jvp(answer, (theta,), (data["v"],))
        return derivative, x
    x, pull = jax.vjp(answer, theta)
    if kind == "cotangent":
        return pull(data["w"])[0], x
    assert setup.loss is not None
    in_x, in_theta = jax.grad(setup.loss, (0, 1))(x, theta)
    return pull(in_x)[0] + in_theta, x


def answer_of(setup: Setup, mode: itd.Mode, group: Group, data: Data) -> Callable:
    """Return the solve as a function of theta."""
    algorithm = setup.algorithm
    if not isinstance(algorithm, itd.Algorithm):
        assert isinstance(mode, itd.Implicit)
        solver = itd.implicit(setup.problem, mode=mode, traceable=True, throw=False)(algorithm)
        return lambda theta: solver(setup.x0, theta)
    stop = group.stop
    if isinstance(stop, int):
        stop = itd.ResidualBelow(rtol=data["rtol"], max_steps=stop)

    def answer(theta: jax.Array) -> jax.Array:
        return itd.solve(
            setup.problem, algorithm, setup.x0, theta, stop=stop, mode=mode, throw=False
        ).x

    return answer


def judge(group: Group, data: Data) -> Outcome:
    """Take the derivative of one case in every mode and estimate its error; modes are stacked."""
    setup = group.build(data)
    answers = [answer_of(setup, mode, group, data) for mode in group.modes.values()]
    taken = [derivative_of(group.kind, answer, setup, data) for answer in answers]
    derivatives, xs = (jnp.stack(parts) for parts in zip(*taken, strict=True))
    if group.foreign:
        reports = [reported(setup, mode, group, data) for mode in group.modes.values()]
        report = jax.tree.map(lambda *parts: jnp.stack(parts), *reports)
        judgement = report.absolute, report.trusted, report.reason_code, report.flagged
        return Outcome(xs, derivatives, *judgement)
    given = {"tangent": data.get("v"), "cotangent": data.get("w"), "loss": setup.loss}
    options = {group.kind: given[group.kind]} if group.kind in given else {}
    if isinstance(setup.algorithm, itd.Algorithm):  # as `Checked`, which knows the algorithm
        options["near"] = float("inf")

    def estimated(x: jax.Array, derivative: jax.Array) -> Outcome:
        found = itd.derivative_error(setup.problem, x, setup.theta, derivative, **options)
        judgement = found.absolute, found.trusted, found.reason_code, found.exceeds(RTOL)
        return Outcome(x, derivative, *judgement)

    return jax.vmap(estimated)(xs, derivatives)


def reported(setup: Setup, mode: itd.Mode, group: Group, data: Data) -> itd.DerivativeReport:
    """Return the report of `Checked` on a case of kind "cotangent"."""

    def loss(theta: jax.Array, report: jax.Array) -> jax.Array:
        checked = itd.Checked(mode, RTOL, "nan", report=report)
        return data["w"] @ answer_of(setup, checked, group, data)(theta)

    return itd.value_and_grad_with_report(loss)(setup.theta)[2]


def truth(group: Group, steps: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return the true derivatives, stacked, and the relative size of a last Newton step.

    Newton's method in float64 polishes the solution from the case's ``guess``, with dense linear
    algebra; the derivative is ``-A^{-1} r_theta`` there. No mode or estimate of iterdiff is used.
    """

    def one(data: Data) -> tuple[jax.Array, jax.Array]:
        setup = group.build(data)
        problem = setup.problem if setup.true is None else setup.true
        theta = setup.theta

        def newton(x: jax.Array) -> jax.Array:
            jacobian = jax.jacfwd(problem.residual)(x, theta)
            return jnp.linalg.solve(jacobian, problem.residual(x, theta))

        x = jax.lax.fori_loop(0, steps, lambda _, x: x - newton(x), data["guess"])
        a, b = jax.jacfwd(problem.residual, (0, 1))(x, theta)
        jacobian = -jnp.linalg.solve(a, b)
        away = jnp.linalg.norm(newton(x)) / jnp.maximum(jnp.linalg.norm(x), 1e-3)

        @jax.custom_jvp
        def solution(theta: jax.Array) -> jax.Array:
            del theta
            return x

        solution.defjvp(lambda _, tangents: (x, jacobian @ tangents[0]))
        return derivative_of(group.kind, solution, setup, data)[0], away

    def widened(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(np.float64) if np.issubdtype(leaf.dtype, np.floating) else leaf

    return run_all(one, {key: widened(leaf) for key, leaf in group.stacked().items()})


def run_all(one: Callable, *stacked: Any) -> Any:
    """Return the results of `one` for all cases, stacked, as NumPy arrays."""
    program = jax.jit(jax.vmap(one), compiler_options=UNOPTIMISED)
    return jax.tree.map(np.asarray, program(*stacked))


def run(group: Group) -> Outcome:
    """Return the outcomes of all cases of a group, stacked: cases, then modes."""
    return run_all(lambda data: judge(group, data), group.stacked())


def run_checked(group: Group) -> dict[str, np.ndarray]:
    """Return which cases of kind "cotangent" `Checked` flags, by mode."""

    def one(data: Data) -> dict[str, jax.Array]:
        setup = group.build(data)
        return {name: reported(setup, m, group, data).flagged for name, m in group.modes.items()}

    return run_all(one, group.stacked())


def error_of(derivative: np.ndarray, true: np.ndarray) -> float:
    """Return the relative error in Euclidean norm; infinite if the derivative is not finite."""
    gap = np.linalg.norm(np.asarray(derivative, np.float64) - true)
    return float(gap / np.linalg.norm(true)) if np.isfinite(gap) else float("inf")
