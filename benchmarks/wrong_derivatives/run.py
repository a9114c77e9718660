"""Which wrong derivatives pass without a flag? Hundreds of cases whose derivative is known.

Every case of `slow_cases` and `hard_cases` runs in iterdiff; jaxopt and optimistix run those that
they support. Then the stopping rule `DerivativeErrorBelow` and the cost of checking are measured.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from benchmarks.harness.measure import Effort
from benchmarks.harness.results import OURS, Column, Measurement, Section, Table
from benchmarks.harness.targets import against
from benchmarks.wrong_derivatives import (
    constrained_cases,
    hard_cases,
    noisy_cases,
    peers,
    slow_cases,
    stops,
)
from benchmarks.wrong_derivatives import group as cases_of
from benchmarks.wrong_derivatives.group import RTOL, Group
from benchmarks.wrong_derivatives.stops import EVERY, Stop
from iterdiff.accuracy.estimate import NEGLIGIBLE_MAX_ROUNDINGS
from iterdiff.accuracy.reasons import REASONS

ROUNDS = 51
"""Rounds of the costs."""
FACTOR = 2.0
"""Trusted estimates are meant to be within this factor of the true error."""
SLACK = 1.1
"""Errors over tolerance, and steps over the oracle's, may be this large."""
THROUGH_CHECKED = ("picard", "newton-cycles", "picard32", "noisy-jitter-25", "huber")
"""Groups that also run through `Checked` itself."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The judgement of one derivative: a case in one mode of one library.

    Attributes
    ----------
    library, family, group, case, mode, kind, dtype : str
        Which derivative.
    true_error, estimate : float
        Relative, in Euclidean norm.
    ratio : float
        Estimate over true error.
    trusted, flagged : bool
        Whether the estimate is trusted, and whether the library flags the derivative.
    reason : str
        Why the estimate is not trusted.
    """

    library: str
    family: str
    group: str
    case: str
    mode: str
    kind: str
    dtype: str
    true_error: float
    estimate: float = math.nan
    ratio: float = math.nan
    trusted: bool = False
    flagged: bool = False
    reason: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the derivative must be flagged."""
        return self.true_error > RTOL

    @property
    def right(self) -> bool:
        """Whether the derivative must not be flagged."""
        return self.true_error < RTOL / 10

    @property
    def compared(self) -> bool:
        """Whether the estimate must be close to the true error: not at the level of rounding."""
        rounding = NEGLIGIBLE_MAX_ROUNDINGS * np.finfo(self.dtype).eps
        finite = self.trusted and math.isfinite(self.ratio)
        return finite and max(self.true_error, self.estimate) > rounding

    @property
    def close(self) -> bool:
        """Whether the estimate is within the factor."""
        return 1 / FACTOR <= self.ratio <= FACTOR

    @property
    def failures(self) -> list[str]:
        """How the judgement is wrong, by the keys of the targets."""
        found = {
            "unflagged": self.wrong and not self.flagged,
            "false alarms": self.right and self.flagged,
            "estimate off": self.compared and not self.close,
        }
        return [key for key, failed in found.items() if failed]


def groups() -> list[Group]:
    """Return all groups."""
    modules = slow_cases, hard_cases, noisy_cases, constrained_cases
    return [group for module in modules for group in module.groups()]


def judged(group: Group) -> list[Case]:
    """Run a group in iterdiff and in its peers.

    Raises
    ------
    RuntimeError
        If the truth is not accurate enough.
    """
    true, away = cases_of.truth(group)
    sizes = np.linalg.norm(true.reshape(len(true), -1), axis=1)
    if not np.all(away < 1e-8) or np.any(sizes == 0):
        raise RuntimeError(f"{group.name}: the truth is not accurate enough: {away}")
    outcome, found = cases_of.run(group), []
    dtype = str(outcome.derivative.dtype)
    for i, case in enumerate(group.cases):
        for j, mode in enumerate(group.modes):
            which = (OURS, group.family, group.name, case["label"], mode, group.kind, dtype)
            error = cases_of.error_of(outcome.derivative[i, j], true[i])
            estimate = float(outcome.absolute[i, j] / sizes[i])
            ratio = estimate / error if 0 < error < math.inf else math.nan
            flags = bool(outcome.trusted[i, j]), bool(outcome.flagged[i, j])
            reason = REASONS[int(outcome.reason[i, j])]
            found.append(Case(*which, error, estimate, ratio, *flags, reason))
    for library in peers.SUPPORTED:
        answers, texts = peers.run(group, library)
        for text in texts:
            print(f"  {library} warned: {text}")
        for mode, answer in answers.items():
            for i, case in enumerate(group.cases):
                error = cases_of.error_of(answer.derivative[i], true[i])
                flagged = bool(answer.flagged[i]) or not math.isfinite(error)
                which = (library, group.family, group.name, case["label"], mode, group.kind, dtype)
                found.append(Case(*which, error, flagged=flagged))
    return found


def counted(part: Sequence[bool]) -> list[int] | None:
    """Return how many of how many are true; None of an empty sequence."""
    return [sum(part), len(part)] if part else None


def flag_table(cases: Sequence[Case]) -> Table:
    """Return what is flagged, by library and family."""
    ours = [one for one in cases if one.library == OURS]
    parts = {"**iterdiff, all**": ours}
    for family in dict.fromkeys(one.family for one in ours):
        parts[f"iterdiff, {family}"] = [one for one in ours if one.family == family]
    parts["iterdiff, all but wrong residuals"] = [
        one for one in ours if one.family != "wrong residuals"
    ]
    plain = [one for one in ours if one.mode in ("implicit", "unrolled", "default")]
    for library in peers.SUPPORTED:
        theirs = [one for one in cases if one.library == library]
        shared = {(one.group, one.case) for one in theirs}
        parts[f"**{library}**"] = theirs
        parts[f"iterdiff, {library}'s cases, implicit and unrolled"] = [
            one for one in plain if (one.group, one.case) in shared
        ]
    columns = [
        Column("cases"),
        Column("derivatives", "count"),
        Column("wrong, and flagged", "share"),
        Column("right, but flagged", "share"),
        Column("trusted estimates within a factor of 2", "share"),
        Column("estimate over truth: median, smallest, largest"),
    ]
    return Table("What is flagged", columns, [[name, *_summary(p)] for name, p in parts.items()])


def _summary(cases: Sequence[Case]) -> list:
    compared = [one for one in cases if one.compared]
    spread = "–"
    if compared:
        ratios = [one.ratio for one in compared]
        spread = f"{np.median(ratios):.2f}, {min(ratios):.2g}, {max(ratios):.2g}"
    return [
        len(cases),
        counted([one.flagged for one in cases if one.wrong]),
        counted([one.flagged for one in cases if one.right]),
        counted([one.close for one in compared]),
        spread,
    ]


def failure_table(cases: Sequence[Case]) -> Table:
    """Return the judgements of iterdiff that are wrong."""
    rows = [
        [
            ", ".join(one.failures),
            f"{one.group}, {one.case}, {one.mode}",
            one.true_error,
            one.estimate,
        ]
        for one in cases
        if one.library == OURS and one.failures
    ]
    errors = [Column("true error", "error"), Column("estimate", "error")]
    return Table("Failures", [Column("failure"), Column("case"), *errors], rows)


def case_table(cases: Sequence[Case]) -> Table:
    """Return all cases, which only the JSON file lists."""
    units = {"true_error": "error", "estimate": "error", "ratio": "×"}
    fields = [field.name for field in dataclasses.fields(Case)]
    columns = [Column(name, units.get(name, "text")) for name in fields]
    rows = [list(dataclasses.astuple(one)) for one in cases]
    return Table("All cases", columns, rows, listed=False)


def case_targets(cases: Sequence[Case]) -> list[Measurement]:
    """Return the numbers of failures, against their targets."""
    ours = [one for one in cases if one.library == OURS]
    totals = {
        "unflagged": sum(one.wrong for one in ours),
        "false alarms": sum(one.right for one in ours),
        "estimate off": sum(one.compared for one in ours),
    }
    return [
        against(key, sum(key in one.failures for one in ours), note=f"of {total}")
        for key, total in totals.items()
    ]


def checked_target(cases: Sequence[Case]) -> Measurement:
    """Compare the flags of `Checked` with those of the estimate, on some groups."""
    flags = {(one.group, one.case, one.mode): one.flagged for one in cases if one.library == OURS}
    differ = [
        bool(flagged[i]) != flags[group.name, case["label"], mode]
        for group in groups()
        if group.name in THROUGH_CHECKED
        for mode, flagged in cases_of.run_checked(group).items()
        for i, case in enumerate(group.cases)
    ]
    return against("checked differs", sum(differ), note=f"of {len(differ)}")


def stop_table(found: Sequence[Stop]) -> Table:
    """Return all stops, which only the JSON file lists."""
    units = ("text", "count", "count", "×", "text")
    columns = [Column(*pair) for pair in zip(Stop._fields, units, strict=True)]
    return Table("All stops", columns, [list(one) for one in found], listed=False)


def stop_targets(found: Sequence[Stop]) -> list[Measurement]:
    """Return the numbers of failures of the stopping rule, against their targets."""
    reached = [one for one in found if one.converged]
    early = sum(one.error_over_tolerance > SLACK for one in reached)
    late = sum(one.steps > SLACK * one.oracle + EVERY for one in reached)
    worst = max((one.error_over_tolerance for one in reached), default=math.nan)
    excess = np.median([one.steps - one.oracle for one in reached]) if reached else math.nan
    return [
        against("not reached", len(found) - len(reached), note=f"of {len(found)}"),
        against("stopped early", early, note=f"of {len(reached)}; largest ratio {worst:.3g}"),
        against("stopped late", late, note=f"of {len(reached)}; median excess {excess:.0f} steps"),
    ]


def cost_table(rounds: int) -> Table:
    """Measure what `Checked` costs."""
    names = ("gradient", "derivative", "check")
    columns = [Column("problem"), Column("mode"), *(Column(name, "s") for name in names)]
    columns += [Column("check over derivative", "×"), Column("check over gradient", "×")]
    rows = [
        [*which, *cost, cost.check / cost.derivative, cost.check / cost.gradient]
        for which, cost in stops.costs(rounds).items()
    ]
    return Table("What checking costs", columns, rows, cost_note(rounds))


def cost_note(rounds: int) -> str:
    """Return the note of the table of costs."""
    return (
        f"Programs take turns, {rounds} rounds (ten times as many of the short ones, which start "
        "at the end of the run and take one step). The derivative's time is the gradient's minus "
        "the primal's; the check's is the checked gradient's minus the gradient's: medians of "
        "differences within a round."
    )


NOTE = (
    f"The tolerance is rtol = {RTOL}. *Wrong* is a true relative error above rtol, *right* one "
    "below rtol / 10; errors in between count neither way. Errors are in Euclidean norm. A "
    "derivative that is not finite is infinitely wrong and counts as flagged. The true derivative "
    "is that of the solution that the solver approaches, and at a kink the one-sided derivative of "
    "the other side. The factor of two is not claimed for errors at the level of rounding."
)


def run(effort: Effort) -> Section:
    """Measure."""
    cases: list[Case] = []
    for group in groups():
        cases += judged(group)
        print(f"{group.family}: {group.name}", flush=True)
    found = [stop for one in stops.groups() for stop in stops.stops(*one)]
    rounds = min(ROUNDS, 5 * effort.rounds)
    return Section(
        "Derivatives whose error is known",
        NOTE,
        [
            flag_table(cases),
            failure_table(cases),
            cost_table(rounds),
            case_table(cases),
            stop_table(found),
        ],
        [*case_targets(cases), checked_target(cases), *stop_targets(found)],
    )
