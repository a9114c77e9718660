"""Cross-check a problem, its solver and their derivatives, and name the part that is wrong."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from iterdiff.accuracy.consistency import disagree, remembers
from iterdiff.accuracy.correction import NewtonPoints, correct
from iterdiff.algorithms.base import Algorithm, check_fits
from iterdiff.diagnostics.checkup import Checkup as Checkup
from iterdiff.diagnostics.checkup import Finding, difference_finding, suspects
from iterdiff.diagnostics.finite_differences import (
    TINY,
    Differences,
    Verdict,
    compare,
    norm,
    trials,
    underflow,
)
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import Tolerance, check_tolerance
from iterdiff.jaxtools.tree import floating_part
from iterdiff.loop.status import Status
from iterdiff.loop.stopping import StoppingRule
from iterdiff.modes.base import Mode
from iterdiff.modes.implicit import Implicit
from iterdiff.modes.unrolled import Unrolled
from iterdiff.problems.checks import check_residual, check_theta, check_x0
from iterdiff.problems.problem import CompositeMinimization, Minimization, Problem
from iterdiff.solving.implicit import implicit
from iterdiff.solving.solve import solve


def check_derivative(
    problem: Problem,
    algorithm: Algorithm | Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    theta: PyTree,
    *,
    stop: StoppingRule | None = None,
    tol: Tolerance | None = None,
) -> Checkup:
    r"""Cross-check the parts that a derivative is made of, before you trust it.

    At the solver's answer and in a random direction each, causes before their consequences: the
    derivatives of the residual in `x` and in `theta` agree with finite differences and with their
    own transposes; the system is as symmetric as declared; the residual vanishes; the solution
    has one derivative, not two one-sided ones; the step's derivatives are right, as the residual's;
    the modes agree with finite differences of the whole solve.

    Parameters
    ----------
    problem, algorithm, x0, theta, stop
        As in `solve`. Let the run converge: an unconverged one fails a check. In place of an
        algorithm, a solver ``solver(x0, theta)`` as `iterdiff.implicit` takes it, without `stop`.
    tol : scalar, optional
        Relative discrepancy that passes, positive; by default 1e-4 in float64 and 2e-2 in float32.

    Returns
    -------
    Checkup
        Its `ok` says whether all passed, printed it says what did not.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit.

    Notes
    -----
    The residual vanishes where a Newton step from the answer is short, relative to where it
    leads. Where it leads to zero there is nothing to be relative to: then it has to be short
    beside the way that the run came, or beside 1 if that is less (by 1e-8 in float64, 1e-4 in
    float32), or within rounding: the machine precision times the condition number.

    Every derivative is compared at a few increments, and passes where one agrees. Differences
    forwards and backwards that stay apart at all of them are a kink.
    """
    if isinstance(algorithm, Algorithm) or not callable(algorithm):
        check_fits(problem, algorithm)
        if stop is None:
            raise ValueError("`stop`: an algorithm needs a stopping rule, such as Steps(1000).")
    elif stop is not None:
        raise ValueError("`stop`: a solver of your own stops by itself; leave `stop` out.")
    if tol is not None:
        check_tolerance("tol", tol)
    x0, theta = check_x0(x0), check_theta(theta)
    check_residual(problem, x0, theta)
    wide = jnp.finfo(tree.result_dtype(x0)).bits >= 64
    tol = (1e-4 if wide else 2e-2) if tol is None else float(jnp.asarray(tol))
    parts = _Parts(problem, algorithm, x0, theta, stop)
    findings = _ends(parts)
    if parts.starts:
        findings = _derivative_of_objective(parts, tol)
        findings += _map_findings(parts, "residual", parts.residual, parts.x, tol)
        findings += _symmetry(parts, tol) + _ends(parts)
    if parts.ends:
        findings += _of_the_solve(parts, tol)
    return Checkup(tuple(findings))


class _Parts:
    """The solver's answer, and maps of (x, theta's floating part) around it.

    Where the run does not end well, the maps are looked at where it starts.
    """

    def __init__(self, problem, algorithm, x0, theta, stop):
        self.problem, self.algorithm = problem, algorithm
        self.x0, self.stop = x0, stop
        self.moving, self.rest = floating_part(theta)
        self.theta = theta
        self.x, self.status = self.run(self.moving, Implicit())
        self.starts = self.finite(x0)
        failed = self.status in (Status.DIVERGED, Status.NOT_FINITE_AT_START)
        self.ends = not failed and self.finite(self.x)
        if not self.ends:
            self.x = x0
        self.eps = float(jnp.finfo(tree.result_dtype(x0)).eps)
        self.tiny = underflow(x0)
        self.small = 1e-8 if self.eps < 1e-10 else 1e-4
        keys = jax.random.split(jax.random.key(0), 3)
        self.theta_key = keys[2]
        self.in_x, self.in_theta = trials(keys[0], self.x), trials(keys[2], self.moving)
        self.u = self.in_x[0].direction
        self.w = trials(keys[1], self.x)[0].direction

    @property
    def has_steps(self) -> bool:
        """Whether the steps are there, and can be differentiated."""
        algorithm = self.algorithm
        known = isinstance(algorithm, Algorithm)
        return known and algorithm.differentiable and not algorithm.caveat

    def finite(self, x) -> bool:
        return bool(np.isfinite(norm(x) + norm(self.residual(x, self.moving))))

    def residual(self, x, moving):
        return self.problem.residual(x, eqx.combine(moving, self.rest))

    def step(self, x, moving):
        theta = eqx.combine(moving, self.rest)
        state = self.algorithm.init(self.problem, x, theta)
        return self.algorithm.step(self.problem, state, theta).x

    def run(self, moving, mode):
        theta = eqx.combine(moving, self.rest)
        if not isinstance(self.algorithm, Algorithm):
            solver = implicit(self.problem, mode=mode, throw=False)(self.algorithm)
            return solver(self.x0, theta), Status.STEPS_DONE
        given = (self.problem, self.algorithm, self.x0, theta)
        solution = solve(*given, stop=self.stop, mode=mode, throw=False)
        return solution.x, solution.status

    def answer(self, moving, mode):
        return self.run(moving, mode)[0]

    def newton(self, x) -> tuple[NewtonPoints, float]:
        """Return the Newton correction of `x`, and its length."""
        points = jax.jit(lambda x: correct(self.problem, x, self.theta).points)(x)
        return points, norm(tree.sub(points.corrected, points.x))


def _ends(parts: _Parts) -> list[Finding]:
    text = "The solver's answer, or the residual there, is not finite."
    if parts.status in (Status.DIVERGED, Status.NOT_FINITE_AT_START):
        text = Status(int(parts.status)).advice
    elif not parts.starts:
        text = Status.NOT_FINITE_AT_START.advice
    gap = 0.0 if parts.ends else np.inf
    return [Finding("the run ends where the residual is finite", gap, parts.ends, text)]


def _of_the_solve(parts: _Parts, tol: float) -> list[Finding]:
    """Check what the solver returns, its steps and the modes."""
    points, moved = parts.newton(parts.x)
    allowed = _allowed(parts, points, tol)
    converged = moved <= allowed
    rounding = float(points.rounding) * norm(points.corrected)
    blur = (moved if converged else 0.0) + (rounding if np.isfinite(rounding) else 0.0)
    # The best increment for values with a relative error e is about its cube root.
    least = (blur / max(norm(parts.x), TINY)) ** (1 / 3)
    where = trials(parts.theta_key, parts.moving, least)
    differences = Differences(lambda m: parts.answer(m, Implicit()), parts.moving, where, blur)

    def judged(mode: Mode) -> Verdict:
        def push(v):
            return jax.jvp(lambda m: parts.answer(m, mode), (parts.moving,), (v,))[1]

        return compare(push, differences, 10 * tol)

    verdicts = {"implicit": judged(Implicit())}
    if parts.has_steps:
        verdicts["unrolled"] = judged(Unrolled())
    text = "" if converged else _why_not(parts, points, verdicts["implicit"], tol)
    name = "residual vanishes at the solver's answer (Newton step)"
    length = moved / allowed * tol if np.isfinite(moved) and allowed else np.inf
    out = [Finding(name, 0.0 if moved == 0 else length, converged, text)]
    out += [_two_sided(parts, differences, tol)]
    if parts.has_steps:
        out += _of_the_step(parts, tol)
    for mode, verdict in verdicts.items():
        text = (
            f"The {mode} derivative is not that of what the solver returns; the checks above say "
            "which part is wrong, or the run has not converged."
        )
        if verdict.opposite():
            text = f"The {mode} derivative has the wrong sign."
        name = f"{mode} derivative = finite difference of the solve"
        out.append(Finding(name, verdict.gap, verdict.gap <= 10 * tol, text))
    return out


def _allowed(parts: _Parts, points: NewtonPoints, tol: float) -> float:
    """Return how long the Newton step may be: see the notes of `check_derivative`."""
    way = norm(tree.sub(points.corrected, parts.x0))
    lengths = (
        tol * norm(points.corrected),
        parts.small * min(way, 1.0),
        float(points.rounding),
    )
    return max(v for v in lengths if np.isfinite(v)) if np.any(np.isfinite(lengths)) else 0.0


def _why_not(parts: _Parts, points: NewtonPoints, judged: Verdict, tol: float) -> str:
    """Return what keeps the residual from vanishing."""
    minus = tree.scale(-1.0, parts.x)
    mirrored, moved = parts.newton(minus)
    if judged.opposite() or moved <= tol * norm(mirrored.corrected):
        return (
            "The residual does not vanish where the solver stops, and one of the two has the "
            "wrong sign: the residual vanishes at minus the solver's answer, or its implicit "
            "derivative is minus that of what the solver returns."
        )
    if _disagrees(parts, points):
        return (
            "The algorithm comes to rest, but not where the residual vanishes: the residual and "
            "the step belong to different problems."
        )
    return (
        "The residual does not vanish where the solver stops: the run has not converged, or the "
        "residual belongs to another problem than the one that is solved."
    )


def _disagrees(parts: _Parts, points: NewtonPoints) -> bool:
    algorithm = parts.algorithm
    if not isinstance(algorithm, Algorithm):
        return False
    if remembers(algorithm, parts.problem, parts.x, parts.theta):
        return False
    return bool(jax.jit(lambda p: disagree(lambda x: parts.step(x, parts.moving), p))(points))


def _two_sided(parts: _Parts, differences: Differences, tol: float) -> Finding:
    jump = differences.kink(10 * tol)
    text = (
        "The solution has no derivative here, only one-sided ones: finite differences of the "
        "solve forwards and backwards in theta disagree. It is at a kink of the problem (abs, "
        "max, a constraint about to become active), where a mode gives one side's derivative "
        "or a mixture. More steps do not help; move theta, or smooth the problem."
    )
    if isinstance(parts.problem, CompositeMinimization):
        text += " `iterdiff.weakly_active` says which coordinates are at the kink."
    name = "solution: slope forwards in theta = slope backwards"
    return Finding(name, jump, jump == 0, text)


def _derivative_of_objective(parts: _Parts, tol: float) -> list[Finding]:
    """Compare the gradient with finite differences at the start: at a minimiser it is zero."""
    problem = parts.problem
    if isinstance(problem, Minimization):
        objective = problem.objective
    elif isinstance(problem, CompositeMinimization):
        objective = problem.smooth
    else:
        return []
    f = jax.jit(lambda x: objective(x, parts.theta))
    gradient = jax.grad(f)(parts.x0)
    differences = Differences(f, parts.x0, trials(jax.random.key(1), parts.x0))
    verdict = compare(lambda v: tree.dot(gradient, v), differences, tol)
    return [difference_finding("objective", "x", verdict, suspects(f, parts.x0), tol)]


def _of_the_step(parts: _Parts, tol: float) -> list[Finding]:
    """Check the step's derivatives at the answer; where they fail, halfway to it.

    The steps of Krylov methods are 0 / 0 at a solution, and differentiable on the way there. What
    is wrong is wrong there, too.
    """
    found = _map_findings(parts, "step", parts.step, parts.x, tol)
    if all(finding.passed for finding in found):
        return found
    halfway = tree.scale(0.5, tree.add(parts.x0, parts.x))
    there = _map_findings(parts, "step", parts.step, halfway, tol)
    return there if all(finding.passed for finding in there) else found


def _map_findings(
    parts: _Parts, name: str, function: Callable, x: PyTree, tol: float
) -> list[Finding]:
    """Compare a map's derivatives in x and in theta with finite differences and transposes."""
    out = []
    for what, at, where in (
        ("x", x, parts.in_x),
        ("theta", parts.moving, parts.in_theta),
    ):

        def of(p, what=what):
            return function(p, parts.moving) if what == "x" else function(x, p)

        push = jax.jit(lambda v, of=of, at=at: jax.jvp(of, (at,), (v,))[1])
        rounding = 4 * parts.eps * norm(push(at))
        differences = Differences(jax.jit(of), at, where, rounding)
        # What a step does to x is measured by what doing nothing does: the identity.
        least = 1.0 if (name, what) == ("step", "x") else 0.0
        verdict = compare(push, differences, tol, least)
        out.append(difference_finding(name, what, verdict, suspects(of, at), tol))
        v = where[0].direction
        pushed, pulled = push(v), jax.vjp(of, at)[1](parts.w)[0]
        left, right = float(tree.dot(parts.w, pushed)), float(tree.dot(pulled, v))
        floor = max(rounding / tol, least * norm(v), parts.tiny) * norm(parts.w)
        apart = abs(left - right) / max(norm(pushed) * norm(parts.w), norm(pulled) * norm(v), floor)
        out.append(
            Finding(
                f"{name}: forward in {what} = transpose of reverse",
                apart,
                apart <= tol,
                f"Forward and reverse mode of the {name} in {what} contradict each other: a "
                "custom derivative rule in it is wrong.",
            )
        )
    return out


def _symmetry(parts: _Parts, tol: float) -> list[Finding]:
    if not parts.problem.symmetric:
        return []

    def push(v):
        return jax.jvp(lambda x: parts.residual(x, parts.moving), (parts.x,), (v,))[1]

    au, aw = push(parts.u), push(parts.w)
    gap = abs(float(tree.dot(parts.w, au)) - float(tree.dot(parts.u, aw)))
    gap /= max(norm(au) * norm(parts.w), norm(aw) * norm(parts.u), parts.tiny)
    return [
        Finding(
            "d residual / dx is symmetric, as declared",
            gap,
            gap <= tol,
            "The problem is declared symmetric, but d residual / dx is not.",
        )
    ]
