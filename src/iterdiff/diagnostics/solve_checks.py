"""Check the answer of a run: whether it solves the problem, and whether its derivative is right."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from iterdiff.accuracy.points import NewtonPoints
from iterdiff.algorithms.base import Algorithm
from iterdiff.algorithms.status import Status
from iterdiff.diagnostics.checked_run import FAILED, CheckedRun
from iterdiff.diagnostics.checkup import Finding
from iterdiff.diagnostics.finite_differences import (
    MIN_NORM,
    Comparison,
    Differences,
    compare,
    norm,
)
from iterdiff.diagnostics.map_checks import check_step
from iterdiff.diagnostics.newton_points import solves_another_problem
from iterdiff.jaxtools import tree

SOLVE_TOL_FACTOR = 10.0
"""The derivative of a solve may differ from finite differences by this multiple of `tol`."""

MAX_NEWTON_STEP_FLOAT64 = 1e-8
"""Longest Newton step from an answer of zero, relative to the distance from `x0` or to 1."""

MAX_NEWTON_STEP_FLOAT32 = 1e-4
"""The same in float32, and in every shorter precision."""


class NewtonStep(NamedTuple):
    """The Newton step from the answer, and how long it may be.

    Attributes
    ----------
    points : NewtonPoints
        The answer with its Newton corrections.
    length, allowed : float
        The length of the step, and its upper limit. Absolute, Euclidean.
    """

    points: NewtonPoints
    length: float
    allowed: float

    @property
    def singular(self) -> bool:
        """Whether the step is not determined: the linear system is singular."""
        return not np.isfinite(self.length + float(self.points.rounding))

    @property
    def short(self) -> bool:
        """Whether the answer solves the problem."""
        return not self.singular and self.length <= self.allowed

    @property
    def value_error(self) -> float:
        """Estimate of the answer's error, as far as it changes from run to run (absolute)."""
        rounding = float(self.points.rounding) * norm(self.points.corrected)
        unconverged = self.length if self.short else 0.0
        return unconverged + (rounding if np.isfinite(rounding) else 0.0)


def check_end(run: CheckedRun) -> Finding:
    """Check that the run ended at a point where the residual is finite."""
    if run.status in FAILED:
        text = Status(run.status).advice
    elif not run.starts:
        text = Status.NOT_FINITE_AT_START.advice
    else:
        text = "The solver's answer, or the residual there, is not finite."
    name, gap = "the run ends where the residual is finite", 0.0 if run.ends else np.inf
    return Finding(name, gap, run.ends, "" if run.ends else text)


def check_solve(run: CheckedRun, tol: float) -> list[Finding]:
    """Check the answer, whether it is at a kink, the step, and the derivative by each mode."""
    newton = _newton_step(run, tol)
    # The best increment for values with the relative error e is about the cube root of e.
    least = (newton.value_error / max(norm(run.x), MIN_NORM)) ** (1 / 3)
    increments = run.increments_of_theta(least)
    differences = Differences(run.answer, run.floating, increments, newton.value_error)
    programs = {"implicit": run.implicit}
    if run.differentiates_steps:
        programs["unrolled"] = run.unrolled
    comparisons = {
        mode: _compare_mode(run, program, differences, tol) for mode, program in programs.items()
    }
    found = [
        _residual_finding(run, newton, comparisons["implicit"], tol),
        _kink_finding(run, differences, tol),
    ]
    if run.differentiates_steps:
        found += check_step(run, tol)
    return found + [_mode_finding(name, c, tol) for name, c in comparisons.items()]


def _compare_mode(
    run: CheckedRun, program: Callable, differences: Differences, tol: float
) -> Comparison:
    """Compare the derivative that a program of `CheckedRun` computes with finite differences."""
    return compare(lambda v: program(run.floating, v)[1], differences, SOLVE_TOL_FACTOR * tol)


def _newton_step(run: CheckedRun, tol: float) -> NewtonStep:
    """Return the Newton step from the answer; see the notes of `check_derivative`."""
    points, length = run.newton(run.x)
    distance = norm(tree.sub(points.corrected, run.x0))
    precise = run.eps <= np.finfo(np.float64).eps
    longest = MAX_NEWTON_STEP_FLOAT64 if precise else MAX_NEWTON_STEP_FLOAT32
    limits = (
        tol * norm(points.corrected),
        longest * min(distance, 1.0),
        float(points.rounding),
    )
    return NewtonStep(points, length, max((v for v in limits if np.isfinite(v)), default=0.0))


def _residual_finding(
    run: CheckedRun, newton: NewtonStep, implicit: Comparison, tol: float
) -> Finding:
    """Check that the residual vanishes at the answer."""
    if newton.singular:
        gap = np.inf
    elif newton.length == 0:
        gap = 0.0
    elif newton.allowed:
        gap = newton.length / newton.allowed * tol
    else:
        gap = np.inf
    name = "residual vanishes at the solver's answer (Newton step)"
    text = "" if newton.short else _why_not_solved(run, newton, implicit, tol)
    return Finding(name, gap, newton.short, text)


def _why_not_solved(run: CheckedRun, newton: NewtonStep, implicit: Comparison, tol: float) -> str:
    """Return why the residual may not vanish at the answer."""
    if newton.singular:
        return (
            "The Newton step from the solver's answer cannot be computed: d residual / dx is "
            "singular there, so that the solution has no derivative."
        )
    mirrored, length = run.newton(tree.scale(-1.0, run.x))
    if implicit.opposite() or length <= tol * norm(mirrored.corrected):
        return (
            "The residual or the solver has the wrong sign: the residual does not vanish at the "
            "solver's answer, but at minus the answer, or its implicit derivative is minus the "
            "derivative of the answer."
        )
    algorithm = run.algorithm
    if isinstance(algorithm, Algorithm) and solves_another_problem(
        run.problem, algorithm, run.theta, newton.points
    ):
        return (
            "The algorithm converges to a point where the residual does not vanish: the residual "
            "and the step belong to different problems."
        )
    return (
        "The residual does not vanish at the solver's answer: the run has not converged, or the "
        "solver solves another problem than the residual states."
    )


def _kink_finding(run: CheckedRun, differences: Differences, tol: float) -> Finding:
    """Check that the solution is not at a kink."""
    jump = differences.kink(SOLVE_TOL_FACTOR * tol)
    text = (
        "The solution has only one-sided derivatives here: forward and backward differences of "
        "the solve in theta disagree. It is at a kink of the problem (abs, max, a constraint "
        "about to become active), where a mode returns one of the two or a mixture. More steps do "
        "not help; move theta, or smooth the problem."
    )
    if run.problem.marks_kinks:
        text += " `iterdiff.weakly_active` returns the coordinates, or constraints, at the kink."
    name = "solution: slope forward in theta = slope backward"
    return Finding(name, jump, jump == 0, text if jump else "")


def _mode_finding(mode: str, comparison: Comparison, tol: float) -> Finding:
    """Compare the derivative of the solve by one mode with finite differences."""
    passed = comparison.gap <= SOLVE_TOL_FACTOR * tol
    if passed:
        text = ""
    elif comparison.opposite():
        text = f"The {mode} derivative has the wrong sign."
    else:
        text = (
            f"The {mode} derivative differs from the derivative of the solver's answer. If no "
            "check above failed, the run has not converged."
        )
    name = f"{mode} derivative = finite difference of the solve"
    return Finding(name, comparison.gap, passed, text)
