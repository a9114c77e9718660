"""Does anything wrong pass in silence? Hundreds of cases whose true derivative is known.

``python -m benchmarks wrong_derivatives`` runs every case of `wrong_cases` and `wrong_cases_hard`
in iterdiff, the ones that they support in jaxopt and optimistix, then the stopping rule
and the cost of checking; it prints one report and writes it with a table of all cases.
"""

import csv
import dataclasses
import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

import iterdiff
from benchmarks import wrong_base, wrong_cases, wrong_cases_hard, wrong_peers, wrong_stops
from benchmarks.harness import LIBRARIES
from benchmarks.wrong_base import RTOL, Group
from iterdiff.error import REASONS

RESULTS = Path(__file__).with_name("results")
ROUNDS = 51


@dataclasses.dataclass(frozen=True)
class Line:
    """One case in one mode of one library."""

    library: str
    family: str
    group: str
    case: str
    mode: str
    kind: str
    dtype: str
    true_error: float
    estimate: float
    ratio: float
    trusted: bool
    flagged: bool
    reason: str

    @property
    def name(self) -> str:
        """What the case is called in lists."""
        return f"{self.group}, {self.case}, {self.mode}"

    @property
    def wrong(self) -> bool:
        """Whether the derivative must be flagged."""
        return self.true_error > 10 * RTOL

    @property
    def right(self) -> bool:
        """Whether it must not be."""
        return self.true_error < RTOL / 10


def groups() -> list[Group]:
    """Return all groups."""
    return wrong_cases.groups() + wrong_cases_hard.groups()


def lines_of(group: Group) -> list[Line]:
    """Run a group in iterdiff and in its peers."""
    true, away = wrong_base.truth(group)
    if not np.all(away < 1e-8) or np.any(_norms(true) == 0):
        raise RuntimeError(f"{group.name}: the truth is not known well enough: {away}")
    outcome = wrong_base.run(group)
    dtype = str(outcome.derivative.dtype)
    found = []
    for i, case in enumerate(group.cases):
        for j, mode in enumerate(group.modes):
            one = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], outcome)
            error = wrong_base.error_of(one.derivative, true[i])
            estimate = float(one.absolute) / float(np.linalg.norm(true[i]))
            ratio = estimate / error if 0 < error < np.inf else np.nan
            where = (group.family, group.name, case["label"], mode, group.kind, dtype)
            judged = (error, estimate, ratio, bool(one.trusted), bool(one.flagged))
            found.append(Line("iterdiff", *where, *judged, REASONS[int(one.reason)]))
    for library in wrong_peers.SUPPORTED:
        said, texts = wrong_peers.run(group, library)
        for text in texts:
            print(f"  {library} warned: {text}")
        for mode, answer in said.items():
            for i, case in enumerate(group.cases):
                error = wrong_base.error_of(answer.derivative[i], true[i])
                flagged = bool(answer.flagged[i]) or not np.isfinite(error)
                where = (group.family, group.name, case["label"], mode, group.kind, dtype)
                found.append(Line(library, *where, error, np.nan, np.nan, False, flagged, ""))
    return found


def _norms(true: np.ndarray) -> np.ndarray:
    return np.linalg.norm(true.reshape(len(true), -1), axis=1)


def share(part: Iterable[bool]) -> str:
    """Return how many of how many, in words and percent."""
    part = list(part)
    return f"{sum(part)} of {len(part)} ({sum(part) / len(part):.1%})" if part else "–"


def row(name: str, lines: list[Line]) -> str:
    """Return the summary of some lines as a row."""
    wrong, right = [a for a in lines if a.wrong], [a for a in lines if a.right]
    ratios = np.array([a.ratio for a in lines if a.trusted and np.isfinite(a.ratio)])
    within = share((ratios >= 0.5) & (ratios <= 2))
    spread = "–"
    if ratios.size:
        spread = f"{np.median(ratios):.2f} [{ratios.min():.2g}, {ratios.max():.2g}]"
    return (
        f"| {name} | {len(lines)} | {share(a.flagged for a in wrong)} "
        f"| {share(a.flagged for a in right)} | {within} | {spread} |"
    )


def flags(lines: list[Line]) -> list[str]:
    """Return the table of flags."""
    ours = [a for a in lines if a.library == "iterdiff"]
    text = [
        "| cases | number | wrong, and flagged | right, yet flagged "
        "| estimate within [0.5, 2] of the truth | estimate over truth, median [range] |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        row("**iterdiff, all**", ours),
    ]
    for family in dict.fromkeys(a.family for a in ours):
        text.append(row(f"iterdiff, {family}", [a for a in ours if a.family == family]))
    rest = [a for a in ours if a.family != "wrong residuals"]
    text.append(row("iterdiff, all but wrong residuals", rest))
    for library in wrong_peers.SUPPORTED:
        theirs = [a for a in lines if a.library == library]
        shared = {(a.group, a.case) for a in theirs}
        text.append(row(f"**{library}**", theirs))
        plain = [a for a in ours if a.mode in ("implicit", "unrolled", "default")]
        same = [a for a in plain if (a.group, a.case) in shared]
        text.append(row(f"iterdiff, {library}'s cases, implicit and unrolled", same))
    return text


def failures(lines: list[Line]) -> list[str]:
    """Return the cases that fail, by name."""
    text = []
    for a in lines:
        if a.library != "iterdiff":
            continue
        off = a.trusted and np.isfinite(a.ratio) and not 0.5 <= a.ratio <= 2
        what = [
            word
            for word, failed in (
                ("wrong in silence", a.wrong and not a.flagged),
                ("false alarm", a.right and a.flagged),
                ("trusted estimate off", off),
            )
            if failed
        ]
        if what:
            numbers = f"true error {a.true_error:.1e}, estimate {a.estimate:.1e}"
            text.append(f"- {', '.join(what)}: {a.name} ({numbers})")
    return text or ["None."]


def stopping(all_stops: list[wrong_stops.Stop]) -> list[str]:
    """Return what became of `DerivativeErrorBelow`."""
    reachable = [s for s in all_stops if s.converged]
    right = [s.error_over_tolerance <= 1.1 for s in reachable]
    every = wrong_stops.EVERY
    quick = [s.steps <= 1.1 * s.oracle + every for s in reachable]
    worst = max(s.error_over_tolerance for s in reachable)
    text = [
        f"- Stops: {share(s.converged for s in all_stops)} of the runs reached the tolerance.",
        f"- True error at most 1.1 of the tolerance: {share(right)}; worst {worst:.3g}.",
        f"- Steps at most 1.1 of the oracle's and one interval of {every}: {share(quick)}; median "
        f"excess {np.median([s.steps - s.oracle for s in reachable]):.0f} steps.",
    ]
    for s, ok, soon in zip(reachable, right, quick, strict=True):
        if not (ok and soon):
            text.append(
                f"- Fails: {s.label}: {s.steps} steps, oracle {s.oracle}, error over tolerance "
                f"{s.error_over_tolerance:.3g}"
            )
    text += [f"- Not reached: {s.label}" for s in all_stops if not s.converged]
    return text


def costs(rounds: int) -> list[str]:
    """Return what `Checked` costs."""
    text = [
        f"Programs take turns, {rounds} rounds (ten times as many of the short ones, which start "
        "where the run ended and take one step). The derivative's time is the gradient's less the "
        "primal's, the check's the checked gradient's less the gradient's: differences within a "
        "round, then medians. Factorisations and triangular solves are counted in the program "
        "as written: those of the derivative, and with the check. Most of the latter are in "
        "branches that are not taken.",
        "",
        "| problem | mode | gradient | derivative | check | check over derivative "
        "| check over gradient | factorisations | solves |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (problem, mode), cost in wrong_stops.overhead(rounds).items():
        numbers = [f"{1e3 * v:.3g} ms" for v in (cost.gradient, cost.derivative, cost.check)]
        shares = [f"{cost.check / v:.2f}" for v in (cost.derivative, cost.gradient)]
        counts = [
            f"{cost.counts['bare'][key]}, {cost.counts['checked'][key]}"
            for key in ("factorisations", "solves")
        ]
        text.append("| " + " | ".join([problem, mode, *numbers, *shares, *counts]) + " |")
    return text


def through_checked(lines: list[Line]) -> str:
    """Return how often `Checked` itself flags the same as the estimate, on some groups."""
    same = []
    told = {(a.group, a.case, a.mode): a.flagged for a in lines if a.library == "iterdiff"}
    for group in groups():
        if group.name not in ("picard", "newton-cycles", "picard32"):
            continue
        flagged = wrong_base.run_checked(group)
        for i, case in enumerate(group.cases):
            for mode, answers in flagged.items():
                same.append(bool(answers[i]) == told[group.name, case["label"], mode])
    return f"`Checked` flags the same as the estimate: {share(same)}."


def environment() -> str:
    """Return versions and the number of cores."""
    others = [f"{name} {version(name)}" for name in LIBRARIES if name != "iterdiff"]
    names = ", ".join([f"iterdiff {iterdiff.__version__}", *others])
    return f"Python {platform.python_version()}, {names}; {os.cpu_count()} cores, CPU."


def report(lines: list[Line], seconds: float) -> str:
    """Return the whole report in Markdown."""
    stops = [s for g, n, zero in wrong_stops.groups() for s in wrong_stops.stops(g, n, zero)]
    dtypes = ", ".join(
        f"{sum(a.dtype == d for a in lines if a.library == 'iterdiff')} in {d}"
        for d in ("float64", "float32")
    )
    parts = [
        "# Wrong derivatives",
        environment(),
        f"iterdiff's cases: {dtypes}; rtol = {RTOL}. *Wrong*: true relative error above 10 rtol; "
        "*right*: below rtol / 10; what lies between counts neither way. Estimates are compared "
        "where trusted. Errors are relative, in Euclidean norm; a derivative that is not finite "
        "is infinitely wrong, and counts as flagged by whoever returns it. The true derivative is "
        "that of the solution that the solver aims at. "
        f"Running the cases took {seconds:.0f} s.",
        "## What is flagged",
        "\n".join(flags(lines)),
        through_checked(lines),
        "## Cases that fail",
        "\n".join(failures(lines)),
        "## Stopping by the derivative",
        "\n".join(stopping(stops)),
        "## What checking costs",
        "\n".join(costs(ROUNDS)),
    ]
    return "\n\n".join(parts) + "\n"


def main(out: Path = RESULTS) -> None:
    """Run everything, print the report and write it."""
    start, lines = time.perf_counter(), []
    for group in groups():
        lines += lines_of(group)
        print(f"{time.perf_counter() - start:6.0f} s  {group.family}: {group.name}", flush=True)
    seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    with (out / "wrong_derivatives.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Line)])
        for line in lines:
            cells = dataclasses.astuple(line)
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in cells])
    text = report(lines, seconds)
    (out / "wrong_derivatives.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
