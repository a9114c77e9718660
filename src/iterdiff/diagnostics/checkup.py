"""The result of `check_derivative`, and how it is printed."""

import dataclasses
import textwrap

LINE_WIDTH = 79
"""Characters to which explanations are wrapped."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes
    ----------
    name : str
        What was compared with what.
    discrepancy : float
        How far apart the two are. Relative, dimensionless.
    passed : bool
        Whether the discrepancy is within what rounding and truncation allow.
    explanation : str
        The likely cause if the check failed, else empty.
    """

    name: str
    discrepancy: float
    passed: bool
    explanation: str


@dataclasses.dataclass(frozen=True)
class Checkup:
    """The result of `check_derivative`. Printed, it has one line per check.

    Attributes
    ----------
    findings : tuple of Finding
        The checks, causes before their consequences.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(finding.passed for finding in self.findings)

    @property
    def culprit(self) -> Finding | None:
        """The first check that failed, or None. Later failures may be its consequences."""
        return next((finding for finding in self.findings if not finding.passed), None)

    def __str__(self) -> str:
        """Return one line per check and the explanation of the first failure, in 80 columns."""
        lines = []
        for finding in self.findings:
            mark = "ok  " if finding.passed else "FAIL"
            lines.append(f"{mark}  {finding.name:<58}{finding.discrepancy:>10.1e}")
        if self.culprit is None:
            return "\n".join([*lines, "", "All checks passed."])
        text = f"First failure: {self.culprit.name}. {self.culprit.explanation}"
        return "\n".join([*lines, "", *textwrap.wrap(text, LINE_WIDTH)])
