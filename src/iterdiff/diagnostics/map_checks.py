"""Check the derivatives of one function: by finite differences, and by their transposes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from iterdiff.diagnostics.checked_run import SEED_X, CheckedRun
from iterdiff.diagnostics.checkup import Finding
from iterdiff.diagnostics.differentiable_map import DifferentiableMap, ScalarMap
from iterdiff.diagnostics.finite_differences import (
    Comparison,
    Differences,
    Increment,
    compare,
    increments,
    norm,
)
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.derivative_rules import derivative_rules_in
from iterdiff.problems.problem import CompositeMinimization, SmoothMinimization

MAX_ZERO_RATIO = 1e-3
"""A derivative this small, relative to the finite difference, is reported as zero."""

ROUNDING_FACTOR = 4.0
"""Relative error of an argument that values may carry, in units of the machine precision."""


class CheckedMap(NamedTuple):
    """A function of one of its arguments, whose derivative is checked.

    Attributes
    ----------
    name, argument : str
        The names of the function and the argument in messages.
    map : DifferentiableMap or ScalarMap
        The function of that argument.
    point : pytree of real floating arrays
        Where the derivative is checked.
    increments : tuple of Increment
        The increments of finite differences.
    near_identity : bool
        Whether the derivative is the identity plus a term that may have the wrong sign.
    least : float
        See `finite_differences.compare`.
    """

    name: str
    argument: str
    map: DifferentiableMap | ScalarMap
    point: PyTree
    increments: tuple[Increment, ...]
    near_identity: bool = False
    least: float = 0.0

    def forward(self, direction: PyTree) -> PyTree:
        """Return the directional derivative at the point."""
        return self.map.forward(self.point, direction)

    def rounding(self, eps: float) -> float:
        """Return the error that rounding of the argument causes in values (absolute)."""
        return ROUNDING_FACTOR * eps * norm(self.forward(self.point))


def check_objective(run: CheckedRun, tol: float) -> list[Finding]:
    """Compare the gradient of the objective with finite differences.

    The point is `x0`, since both vanish at a minimizer.
    """
    problem, theta = run.problem, run.theta
    if isinstance(problem, SmoothMinimization):
        objective = problem.objective
    elif isinstance(problem, CompositeMinimization):
        objective = problem.smooth
    else:
        return []
    gradient = ScalarMap(lambda x: objective(x, theta))
    checked = CheckedMap("objective", "x", gradient, run.x0, increments(SEED_X, run.x0))
    return _check_map(checked, run, tol)


def check_residual_map(run: CheckedRun, tol: float) -> list[Finding]:
    """Check the derivatives of the residual at the answer, in both arguments."""
    in_theta = DifferentiableMap(lambda floating: run.residual(run.x, floating))
    return [
        *_check_map(
            CheckedMap(
                "residual", "x", run.residual_in_x, run.x, run.increments_x, near_identity=True
            ),
            run,
            tol,
        ),
        *_check_map(
            CheckedMap("residual", "theta", in_theta, run.floating, run.increments_theta), run, tol
        ),
    ]


def check_step(run: CheckedRun, tol: float) -> list[Finding]:
    """Check the derivatives of the step at the answer, or else halfway between `x0` and it.

    The steps of Krylov methods are 0 / 0 at a solution, but differentiable on the way there. A
    wrong derivative is wrong there, too.
    """
    at_answer = _check_step_at(run.x, run, tol)
    if all(finding.passed for finding in at_answer):
        return at_answer
    halfway = _check_step_at(tree.scale(0.5, tree.add(run.x0, run.x)), run, tol)
    return halfway if all(finding.passed for finding in halfway) else at_answer


def _check_step_at(x: PyTree, run: CheckedRun, tol: float) -> list[Finding]:
    in_x = DifferentiableMap(lambda x: run.step(x, run.floating))
    in_theta = DifferentiableMap(lambda floating: run.step(x, floating))
    # A step that changes nothing has the identity as its derivative in x, hence `least`.
    return [
        *_check_map(
            CheckedMap("step", "x", in_x, x, run.increments_x, near_identity=True, least=1.0),
            run,
            tol,
        ),
        *_check_map(
            CheckedMap("step", "theta", in_theta, run.floating, run.increments_theta), run, tol
        ),
    ]


def check_symmetry(run: CheckedRun, tol: float) -> list[Finding]:
    """Check that the residual's Jacobian in x is symmetric, if the problem declares it."""
    if not run.problem.symmetric:
        return []
    u, w = run.increments_x[0].direction, run.cotangent
    image_u, image_w = (run.residual_in_x.forward(run.x, v) for v in (u, w))
    gap = abs(float(tree.dot(w, image_u)) - float(tree.dot(u, image_w)))
    gap /= max(norm(image_u) * norm(w), norm(image_w) * norm(u), run.smallest_norm)
    text = "The problem declares d residual / dx symmetric, but it is not."
    return [_finding("d residual / dx is symmetric, as declared", gap, tol, text)]


def _check_map(checked: CheckedMap, run: CheckedRun, tol: float) -> list[Finding]:
    """Compare a derivative with finite differences, and with its transpose if it has both."""
    findings = [_difference_finding(checked, run, tol)]
    if isinstance(checked.map, DifferentiableMap):
        findings.append(_transpose_finding(checked, checked.map, run, tol))
    return findings


def _difference_finding(checked: CheckedMap, run: CheckedRun, tol: float) -> Finding:
    """Compare the derivative with finite differences."""
    differences = Differences(
        checked.map.value, checked.point, checked.increments, checked.rounding(run.eps)
    )
    comparison = compare(checked.forward, differences, tol, checked.least)
    text = "" if comparison.gap <= tol else _cause(checked, comparison)
    name = f"{checked.name}: derivative in {checked.argument} = finite difference"
    return _finding(name, comparison.gap, tol, text)


def _transpose_finding(
    checked: CheckedMap, function: DifferentiableMap, run: CheckedRun, tol: float
) -> Finding:
    """Compare ``w . (J v)`` in forward mode with ``(J^T w) . v`` in reverse mode."""
    w, v = run.cotangent, checked.increments[0].direction
    forward, reverse = checked.forward(v), function.reverse(checked.point, w)
    rounding = checked.rounding(run.eps)
    floor = max(rounding / tol, checked.least * norm(v), run.smallest_norm) * norm(w)
    gap = abs(float(tree.dot(w, forward)) - float(tree.dot(reverse, v)))
    gap /= max(norm(forward) * norm(w), norm(reverse) * norm(v), floor)
    name = f"{checked.name}: forward in {checked.argument} = transpose of reverse"
    text = (
        f"Forward mode and reverse mode of the {checked.name} in {checked.argument} disagree: a "
        "custom derivative rule in it is wrong."
    )
    return _finding(name, gap, tol, text)


def _finding(name: str, gap: float, tol: float, text: str) -> Finding:
    passed = gap <= tol
    return Finding(name, gap, passed, "" if passed else text)


def _cause(checked: CheckedMap, comparison: Comparison) -> str:
    """Return why the derivative may differ from finite differences."""
    name, argument = checked.name, checked.argument
    derivative = f"The derivative of the {name} in {argument}"
    offset = comparison.direction if checked.near_identity else None
    if not np.isfinite(norm(comparison.derivative)):
        text = (
            f"{derivative} is not finite. Look for a sqrt, a norm or a power at zero, and for a "
            "`where` whose unselected branch has an infinite derivative."
        )
    elif comparison.kink:
        text = f"The {name} has a kink here: its one-sided slopes in {argument} differ."
    elif comparison.opposite():
        text = f"{derivative} has the wrong sign."
    elif offset is not None and comparison.opposite(offset):
        text = f"{derivative}, minus the identity, has the wrong sign."
    elif norm(comparison.derivative) <= MAX_ZERO_RATIO * norm(comparison.difference):
        text = (
            f"The {name} depends on {argument}, but its derivative is zero. Look for a "
            "stop_gradient, a rounding, and a conversion to NumPy or Python numbers."
        )
    else:
        text = (
            f"{derivative} disagrees with finite differences. A stop_gradient may hide a part of "
            f"the dependence on {argument}, a custom derivative rule may be wrong, or the {name} "
            "may not be differentiable here."
        )
    rules = derivative_rules_in(checked.map.function, checked.point)
    return f"{text} The {name} uses {', '.join(rules)}." if rules else text
