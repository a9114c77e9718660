"""Cross-check a problem, its solver and their derivatives, and name the part that is wrong."""

import dataclasses
import textwrap
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff import tree
from iterdiff.agreement import disagree, remembers
from iterdiff.algorithms.base import Algorithm, check_fits
from iterdiff.checks import check_residual, check_theta, check_x0
from iterdiff.correction import Points, correct
from iterdiff.modes.base import Mode, floating_part
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems import Problem
from iterdiff.solve import implicit, solve
from iterdiff.stopping import StoppingRule


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check.

    Attributes
    ----------
    name : str
        What was compared.
    discrepancy : float
        Relative, dimensionless.
    passed : bool
        Whether it is within what rounding and truncation allow.
    explanation : str
        What is wrong, if it did not pass.
    """

    name: str
    discrepancy: float
    passed: bool
    explanation: str


@dataclasses.dataclass(frozen=True)
class Checkup:
    """What `check_derivative` found; printed, one line a check.

    Attributes
    ----------
    findings : tuple of Finding
        In the order in which to read them: the first that failed is the one to look at.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(finding.passed for finding in self.findings)

    @property
    def culprit(self) -> Finding | None:
        """The first check that failed: what comes later may be a consequence."""
        return next((finding for finding in self.findings if not finding.passed), None)

    def __str__(self) -> str:
        """Return one line a check, and what the first that failed means; 80 columns at most."""
        lines = []
        for finding in self.findings:
            mark = "ok  " if finding.passed else "FAIL"
            lines.append(f"{mark}  {finding.name:<58}{finding.discrepancy:>10.1e}")
        if self.culprit is None:
            return "\n".join([*lines, "", "Nothing wrong was found."])
        text = f"Look first at: {self.culprit.name}. {self.culprit.explanation}"
        return "\n".join([*lines, "", *textwrap.wrap(text, 79)])


def check_derivative(
    problem: Problem,
    algorithm: Algorithm | Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    theta: PyTree,
    *,
    stop: StoppingRule | None = None,
    tol: float | None = None,
) -> Checkup:
    """Cross-check the parts that a derivative is made of, before you trust it.

    At the solver's answer and in one random direction each: the residual vanishes; its
    derivatives in `x` and in `theta`, and those of the step, agree with finite differences and
    with their own transposes; the system is as symmetric as declared; the modes agree with each
    other and with finite differences of the whole solve.

    Parameters
    ----------
    problem, algorithm, x0, theta, stop
        As in `solve`. Let the run converge: an unconverged one fails the first check. In place
        of an algorithm, a solver ``solver(x0, theta)`` as `iterdiff.implicit` takes it, without
        `stop`.
    tol : float, optional
        Relative discrepancy that passes; by default 1e-4 in float64 and 2e-2 in float32.

    Returns
    -------
    Checkup
        Its `ok` says whether all passed, printed it says what did not.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit.
    """
    if isinstance(algorithm, Algorithm) or not callable(algorithm):
        check_fits(problem, algorithm)
        if stop is None:
            raise ValueError("`stop`: an algorithm needs a stopping rule, such as Steps(1000).")
    elif stop is not None:
        raise ValueError("`stop`: a solver of your own stops by itself; leave `stop` out.")
    x0, theta = check_x0(x0), check_theta(theta)
    check_residual(problem, x0, theta)
    wide = jnp.finfo(tree.result_dtype(x0)).bits >= 64
    tol = (1e-4 if wide else 2e-2) if tol is None else tol
    parts = _Parts(problem, algorithm, x0, theta, stop)
    findings = [_residual_vanishes(parts, tol)]
    findings += _map_findings(parts, "residual", parts.residual, tol)
    findings += _symmetry(parts, tol)
    if parts.has_steps:
        findings += _map_findings(parts, "step", parts.step, tol)
    findings += _modes(parts, tol)
    return Checkup(tuple(findings))


class _Parts:
    """The solver's answer, and maps of (x, theta's floating part) around it."""

    def __init__(self, problem, algorithm, x0, theta, stop):
        self.problem, self.algorithm = problem, algorithm
        self.x0, self.stop = x0, stop
        self.moving, self.rest = floating_part(theta)
        self.theta = theta
        self.x = self.answer(self.moving, Implicit())
        wide = jnp.finfo(tree.result_dtype(x0)).bits >= 64
        self.increment = 1e-5 if wide else 1e-2
        self.small = 1e-8 if wide else 1e-4
        keys = jax.random.split(jax.random.key(0), 3)
        self.u, self.w = (_unit(key, self.x) for key in keys[:2])
        self.v = _unit(keys[2], self.moving)

    @property
    def has_steps(self) -> bool:
        """Whether the steps are there, and can be differentiated."""
        algorithm = self.algorithm
        known = isinstance(algorithm, Algorithm)
        return known and algorithm.differentiable and not algorithm.caveat

    def residual(self, x, moving):
        return self.problem.residual(x, eqx.combine(moving, self.rest))

    def step(self, x, moving):
        theta = eqx.combine(moving, self.rest)
        state = self.algorithm.init(self.problem, x, theta)
        return self.algorithm.step(self.problem, state, theta).x

    def answer(self, moving, mode):
        theta = eqx.combine(moving, self.rest)
        if not isinstance(self.algorithm, Algorithm):
            solver = implicit(self.problem, mode=mode, throw=False)(self.algorithm)
            return solver(self.x0, theta)
        run = (self.problem, self.algorithm, self.x0, theta)
        return solve(*run, stop=self.stop, mode=mode, throw=False).x


def _unit(key, like: PyTree) -> PyTree:
    drawn = jax.tree.map(lambda v: v[0], tree.random_directions(key, like, 1))
    return tree.scale(1 / tree.norm(drawn), drawn)


def _gap(a: PyTree, b: PyTree, floor: float = 1e-300) -> float:
    """Return ``||a - b||`` relative to the larger of the two, or to `floor` if that is larger."""
    size = max(float(tree.norm(a)), float(tree.norm(b)), floor)
    return float(tree.norm(tree.sub(a, b))) / size


def _residual_vanishes(parts: _Parts, tol: float) -> Finding:
    points = jax.jit(lambda x: correct(parts.problem, x, parts.theta).points)(parts.x)
    moved = float(tree.norm(tree.sub(points.corrected, points.x)))
    gap = moved / max(float(tree.norm(points.corrected)), 1e-300)
    if not np.isfinite(gap):
        gap = np.inf
    text = (
        "The residual does not vanish where the solver stops: the run has not converged, or the "
        "residual belongs to another problem than the one that is solved."
    )
    if _disagrees(parts, points):
        text = (
            "The algorithm comes to rest, but not where the residual vanishes: the residual and "
            "the step belong to different problems."
        )
    return Finding("residual vanishes at the solver's answer (Newton step)", gap, gap <= tol, text)


def _disagrees(parts: _Parts, points: Points) -> bool:
    algorithm = parts.algorithm
    if not isinstance(algorithm, Algorithm):
        return False
    if remembers(algorithm, parts.problem, parts.x, parts.theta):
        return False
    return bool(jax.jit(lambda p: disagree(lambda x: parts.step(x, parts.moving), p))(points))


def _map_findings(parts: _Parts, name: str, function, tol: float) -> list[Finding]:
    """Compare a map's derivatives in x and in theta with finite differences and transposes."""
    out, floor = [], parts.small / tol
    for what, at, direction in (("x", parts.x, parts.u), ("theta", parts.moving, parts.v)):

        def of(p, what=what):
            return function(p, parts.moving) if what == "x" else function(parts.x, p)

        pushed = jax.jvp(of, (at,), (direction,))[1]
        h = parts.increment * (1 + float(tree.norm(at)))
        up, down = of(tree.axpy(h, direction, at)), of(tree.axpy(-h, direction, at))
        difference = tree.scale(1 / (2 * h), tree.sub(up, down))
        gap = _gap(pushed, difference, floor)
        out.append(
            Finding(
                f"{name}: derivative in {what} = finite difference",
                gap,
                gap <= tol,
                _explain(name, what, pushed, difference),
            )
        )
        pulled = jax.vjp(of, at)[1](parts.w)[0]
        left, right = float(tree.dot(parts.w, pushed)), float(tree.dot(pulled, direction))
        gap = abs(left - right) / max(float(tree.norm(pushed)), float(tree.norm(pulled)), floor)
        out.append(
            Finding(
                f"{name}: forward in {what} = transpose of reverse",
                gap,
                gap <= tol,
                f"Forward and reverse mode of the {name} in {what} contradict each other: a "
                "custom derivative rule in it is wrong.",
            )
        )
    return out


def _explain(name: str, what: str, pushed: PyTree, difference: PyTree) -> str:
    if float(tree.norm(pushed)) <= 1e-3 * float(tree.norm(difference)):
        return (
            f"The {name} depends on {what}, but its derivative is zero: a stop_gradient, a "
            "rounding or a conversion to NumPy or Python numbers is in the way."
        )
    if _gap(tree.scale(-1.0, pushed), difference) <= 1e-2:
        return f"The derivative of the {name} in {what} has the wrong sign."
    return (
        f"The derivative of the {name} in {what} is not what finite differences give: it is not "
        "differentiable there, or a custom derivative rule in it is wrong."
    )


def _symmetry(parts: _Parts, tol: float) -> list[Finding]:
    if not parts.problem.symmetric:
        return []

    def push(v):
        return jax.jvp(lambda x: parts.residual(x, parts.moving), (parts.x,), (v,))[1]

    au, aw = push(parts.u), push(parts.w)
    gap = abs(float(tree.dot(parts.w, au)) - float(tree.dot(parts.u, aw)))
    gap /= max(float(tree.norm(au)), float(tree.norm(aw)), 1e-300)
    return [
        Finding(
            "d residual / dx is symmetric, as declared",
            gap,
            gap <= tol,
            "The problem is declared symmetric, but d residual / dx is not.",
        )
    ]


def _modes(parts: _Parts, tol: float) -> list[Finding]:
    def push(mode):
        return jax.jvp(lambda m: parts.answer(m, mode), (parts.moving,), (parts.v,))[1]

    h = parts.increment * (1 + float(tree.norm(parts.moving)))
    up = parts.answer(tree.axpy(h, parts.v, parts.moving), Implicit())
    down = parts.answer(tree.axpy(-h, parts.v, parts.moving), Implicit())
    difference = tree.scale(1 / (2 * h), tree.sub(up, down))
    modes: dict[str, Mode] = {"implicit": Implicit()}
    if parts.has_steps:
        modes["unrolled"] = Unrolled()
    out = []
    for name, mode in modes.items():
        pushed = push(mode)
        gap = _gap(pushed, difference, parts.small / tol)
        sign = _gap(tree.scale(-1.0, pushed), difference) <= 1e-2
        out.append(
            Finding(
                f"{name} derivative = finite difference of the solve",
                gap,
                gap <= 10 * tol,
                f"The {name} derivative has the wrong sign."
                if sign
                else f"The {name} derivative is not that of what the solver returns; the checks "
                "above say which part is wrong, or the run has not converged.",
            )
        )
    return out
