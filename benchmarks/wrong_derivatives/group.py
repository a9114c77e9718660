"""What a case of `wrong_derivatives` is, what its true derivative is, and what iterdiff says of it.

A `Group` holds cases of one shape, whose numbers are stacked: one compiled program answers them
all, in every mode of the group.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from iterdiff.agreement import is_foreign

RTOL = 1e-2
"""The tolerance of every `Checked` here."""

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Each program runs once: compiling it is most of the time, so that it is done lightly."""

Data = dict[str, Any]
Kind = Literal["jacobian", "tangent", "cotangent", "loss"]


class Setup(NamedTuple):
    """One case: what is solved, how, from where.

    Attributes
    ----------
    problem : Problem
        What the library is told.
    algorithm : Algorithm or callable
        A callable ``(x0, theta) -> x`` is a solver of the user's, under `iterdiff.implicit`.
    x0, theta : arrays
    true : Problem, optional
        What is really solved, where that differs.
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
        Unique.
    build : callable
        Makes the `Setup` of one case out of its data; traceable.
    cases : list of dict
        The data of each case: arrays, and a "label". ``rtol`` is that of the stopping rule,
        ``guess`` a point near the solution, ``w`` the cotangent, ``v`` the tangent.
    modes : dict
        The ways in which a derivative is taken, by name.
    kind : str
        Which derivative.
    stop : StoppingRule or int
        A rule, or the most steps of `ResidualBelow` with the case's ``rtol``.
    peer : str
        Under which of the peers' solvers the cases run besides: see `wrong_peers`.
    """

    family: str
    name: str
    build: Callable[[Data], Setup]
    cases: list[Data]
    modes: dict[str, itd.Mode]
    kind: Kind = "cotangent"
    stop: itd.StoppingRule | int = 300
    peer: str = ""

    def stacked(self) -> Data:
        """Return the data of all cases, stacked."""
        keys = [key for key in self.cases[0] if key != "label"]
        return {key: np.stack([np.asarray(case[key]) for case in self.cases]) for key in keys}


class Outcome(NamedTuple):
    """What came of a case in one mode; `reason` is an index into `iterdiff.error.REASONS`."""

    x: jax.Array
    derivative: jax.Array
    absolute: jax.Array
    relative: jax.Array
    uncertainty: jax.Array
    trusted: jax.Array
    reason: jax.Array
    flagged: jax.Array


def derivative_of(
    kind: Kind, answer: Callable, setup: Setup, data: Data
) -> tuple[jax.Array, jax.Array]:
    """Take the derivative of ``x = answer(theta)`` that `kind` says; return it and x."""
    theta = setup.theta
    if kind == "jacobian":
        return jax.jacfwd(lambda t: (answer(t),) * 2, has_aux=True)(theta)
    if kind == "tangent":
        x, derivative = jax.jvp(answer, (theta,), (data["v"],))
        return derivative, x
    x, pull = jax.vjp(answer, theta)
    if kind == "cotangent":
        return pull(data["w"])[0], x
    assert setup.loss is not None
    in_x, in_theta = jax.grad(setup.loss, (0, 1))(x, theta)
    return pull(in_x)[0] + in_theta, x


def keywords(kind: Kind, setup: Setup, data: Data) -> dict[str, Any]:
    """Return what tells `derivative_error` which derivative it is."""
    given = {"tangent": data.get("v"), "cotangent": data.get("w"), "loss": setup.loss}
    return {kind: given[kind]} if kind in given else {}


def answer_of(setup: Setup, mode: itd.Mode, group: Group, data: Data) -> Callable:
    """Return the solve, as a function of theta."""
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
    """Take the derivative of one case in every mode of its group, and estimate its error.

    All is stacked along a first axis, the modes.
    """
    setup = group.build(data)
    taken = []
    for mode in group.modes.values():
        answer = answer_of(setup, mode, group, data)
        taken.append(derivative_of(group.kind, answer, setup, data))
    derivatives, xs = (jnp.stack(parts) for parts in zip(*taken, strict=True))
    own = isinstance(setup.algorithm, itd.Algorithm) and is_foreign(setup.algorithm)
    if own:  # which only Checked can ask for what it solves
        said = [reported(setup, mode, group, data) for mode in group.modes.values()]
        said = jax.tree.map(lambda *parts: jnp.stack(parts), *said)
        return Outcome(
            xs,
            derivatives,
            said.absolute,
            said.relative,
            said.uncertainty,
            said.trusted,
            said.reason_code,
            said.flagged,
        )
    given = keywords(group.kind, setup, data)
    if isinstance(setup.algorithm, itd.Algorithm):  # as Checked, which knows what is being solved
        given["near"] = float("inf")

    def estimated(x: jax.Array, derivative: jax.Array) -> Outcome:
        estimate = itd.derivative_error(setup.problem, x, setup.theta, derivative, **given)
        return Outcome(
            x,
            derivative,
            estimate.absolute,
            estimate.relative,
            estimate.uncertainty,
            estimate.trusted,
            estimate.reason_code,
            estimate.exceeds(RTOL),
        )

    return jax.vmap(estimated)(xs, derivatives)


def reported(setup: Setup, mode: itd.Mode, group: Group, data: Data) -> itd.DerivativeReport:
    """Return what `Checked` itself says, of a case of kind "cotangent"."""

    def loss(theta: jax.Array, report: jax.Array) -> jax.Array:
        checked = itd.Checked(mode, RTOL, "nan", report=report)
        return data["w"] @ answer_of(setup, checked, group, data)(theta)

    return itd.value_and_grad_with_report(loss)(setup.theta)[2]


def truth(group: Group, steps: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return the true derivatives, stacked, and how far each solution is from rest.

    The solution is polished by Newton's method in float64 and dense direct linear algebra, from
    the case's ``guess``; the derivative is ``-A^{-1} r_theta`` there. Nothing of iterdiff's modes
    or estimates takes part.
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
        size = jnp.maximum(jnp.linalg.norm(x), 1e-3)
        away = jnp.linalg.norm(newton(x)) / size

        @jax.custom_jvp
        def solution(theta: jax.Array) -> jax.Array:
            del theta
            return x

        solution.defjvp(lambda _, dots: (x, jacobian @ dots[0]))
        return derivative_of(group.kind, solution, setup, data)[0], away

    def widened(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(np.float64) if np.issubdtype(leaf.dtype, np.floating) else leaf

    data = {key: widened(leaf) for key, leaf in group.stacked().items()}
    derivatives, away = jax.jit(jax.vmap(one), compiler_options=QUICK)(data)
    return np.asarray(derivatives), np.asarray(away)


def run(group: Group) -> Outcome:
    """Return the outcomes of all cases of a group, stacked: cases, then modes."""
    program = jax.jit(jax.vmap(lambda data: judge(group, data)), compiler_options=QUICK)
    return jax.tree.map(np.asarray, program(group.stacked()))


def error_of(derivative: np.ndarray, true: np.ndarray) -> float:
    """Return the relative error (Euclidean); infinite for what is not finite."""
    gap = np.linalg.norm(np.asarray(derivative, np.float64) - true)
    return float(gap / np.linalg.norm(true)) if np.isfinite(gap) else float("inf")


def run_checked(group: Group) -> dict[str, np.ndarray]:
    """Return which cases `Checked` itself flags, by mode: for cases of kind "cotangent"."""

    def one(data: Data) -> dict[str, jax.Array]:
        setup = group.build(data)
        return {
            name: reported(setup, mode, group, data).flagged for name, mode in group.modes.items()
        }

    program = jax.jit(jax.vmap(one), compiler_options=QUICK)
    return jax.tree.map(np.asarray, program(group.stacked()))
