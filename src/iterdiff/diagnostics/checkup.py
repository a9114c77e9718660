"""What a check of a derivative finds, in words."""

import dataclasses
import textwrap
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree

from iterdiff.diagnostics.finite_differences import Verdict, norm

SUSPECTS = {
    "stop_gradient": "stop_gradient",
    "round": "round",
    "floor": "floor",
    "ceil": "ceil",
    "custom_jvp_call": "custom_jvp",
    "custom_vjp_call": "custom_vjp",
    "pure_callback": "pure_callback",
}
"""JAX's names of operations that change or end a derivative, and the user's."""


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


def difference_finding(
    name: str, what: str, verdict: Verdict, suspects: str, tol: float
) -> Finding:
    """Return what the comparison of a derivative with finite differences says.

    Parameters
    ----------
    name, what : str
        Of which map, in which argument.
    verdict : Verdict
        The comparison.
    suspects : str
        What the map is made of that may be at fault.
    tol : float
        The gap that passes.
    """
    through = verdict.direction if what == "x" and name != "objective" else None
    if not np.isfinite(norm(verdict.found)):
        text = (
            f"The derivative of the {name} in {what} is not finite: a sqrt, a norm or a power at "
            "zero, or a branch of a `where` that is not taken but differentiated."
        )
    elif verdict.kink:
        text = f"The {name} has a kink here: its slopes in {what} forwards and backwards differ."
    elif verdict.opposite():
        text = f"The derivative of the {name} in {what} has the wrong sign."
    elif through is not None and verdict.opposite(through):
        text = f"The derivative of the {name} in {what}, less the identity, has the wrong sign."
    elif norm(verdict.found) <= 1e-3 * norm(verdict.expected):
        text = (
            f"The {name} depends on {what}, but its derivative is zero: a stop_gradient, a "
            "rounding or a conversion to NumPy or Python numbers is in the way."
        )
    else:
        text = (
            f"The derivative of the {name} in {what} is wrong: it is not what finite differences "
            f"of the {name} give. A stop_gradient hides one of the ways by which {what} enters, it "
            "is not differentiable there, or a custom derivative rule in it is wrong."
        )
    if suspects:
        text += f" Among what it is made of: {suspects}."
    title = f"{name}: derivative in {what} = finite difference"
    return Finding(title, verdict.gap, verdict.gap <= tol, text)


def suspects(function: Callable, at: PyTree) -> str:
    """Return which of `SUSPECTS` the function is made of, as far as its input goes."""
    found: set[str] = set()

    def look(jaxpr):
        for equation in jaxpr.eqns:
            found.add(SUSPECTS.get(equation.primitive.name, ""))
            for part in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    look(inner)

    look(jax.make_jaxpr(function)(at).jaxpr)
    return ", ".join(sorted(found - {""}))
