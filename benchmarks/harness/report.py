"""What is aimed at: every target in one place, and the table that holds results against them."""

import dataclasses
import math

from benchmarks.harness import number


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure that ours is to stay below.

    Attributes
    ----------
    work : str
        The work that is measured.
    wording : str
        What is aimed at, in words.
    limit : float
        The largest figure that meets it.
    unit : str
        Of figure and limit: "×" for ratios, "MB", or "" for relative errors.
    """

    work: str
    wording: str
    limit: float
    unit: str = "×"


_RUN = "gradient of 10,000 gradient steps, logistic 569×30"
_LARGE_RUN = "gradient of gradient steps, logistic 20,000×500"
_STOPPED = "the same, stopped by a rule"
_WIDE = "Jacobian trace, n = 2000, p = 200"
_SMALL = "Jacobian trace, ridge 569×30, p = 30, T = 2000"

TARGETS: dict[str, Target] = {
    "scalar core": Target(
        "scalar study, T = 1000", "`trace` once compiled ≤ 1.5 × the hand-written carry", 1.5
    ),
    "trace small": Target(_SMALL, "≤ 1.5 × the primal", 1.5),
    "trace small best": Target(_SMALL, "≤ 1.1 × the best hand-written variant", 1.1),
    "trace wide time": Target(_WIDE, "time ≤ 1.05 × the best carried variant", 1.05),
    "trace wide best": Target(_WIDE, "≤ 1.1 × the best hand-written variant", 1.1),
    "trace wide peak": Target(f"{_WIDE}, T = 500", "peak of the process ≤ 0.45 GB", 450, "MB"),
    "trace probes": Target(_WIDE, "`probes=8` ≤ 8 × the primal", 8.0),
    "run default time": Target(_RUN, "default ≤ 2.0 × the primal", 2.0),
    "run default memory": Target(_RUN, "default ≤ 2.6 MB", 2.6, "MB"),
    "run sqrt time": Target(_RUN, "√T policy ≤ 2.4 × the primal", 2.4),
    "run sqrt memory": Target(_RUN, "√T policy ≤ 0.8 MB", 0.8, "MB"),
    "run log time": Target(_RUN, "logarithmic policy ≤ 4 × the primal", 4.0),
    "run log memory": Target(_RUN, "logarithmic policy ≤ 0.1 MB", 0.1, "MB"),
    "run auto time": Target(_RUN, '`last="auto"` ≤ 1.3 × the primal at convergence', 1.3),
    "large run": Target(_LARGE_RUN, "default ≤ 1.1 × `jax.grad` of the plain scan", 1.1),
    "rule time": Target(_STOPPED, "`max_steps` as needed: time ≤ 1.15 × fixed steps", 1.15),
    "rule time 100": Target(_STOPPED, "`max_steps` 100 × that: time ≤ 1.15 × fixed steps", 1.15),
    "rule memory": Target(_STOPPED, "`max_steps` as needed: memory ≤ 1.15 × fixed steps", 1.15),
    "rule memory 100": Target(
        _STOPPED, "`max_steps` 100 × that: memory ≤ 1.15 × fixed steps", 1.15
    ),
    "first unrolled": Target(
        "first gradient, fresh process", "unrolled ≤ 1.15 × plain `jax.grad` of a scan", 1.15
    ),
    "first implicit": Target(
        "first gradient, fresh process", "implicit ≤ 1.15 × the hand-written implicit", 1.15
    ),
    "import": Target(
        "`import iterdiff`, and the names of a gradient",
        "≤ 1.1 × importing jax, equinox and lineax",
        1.1,
    ),
}

IMPLICIT = (
    "logistic 569×30",
    "ridge 569×30",
    "logistic 20,000×500",
    "ridge condition 1e6",
    "ridge n=5000",
    "nonsymmetric n=1000",
    "batch of 1,000 small ones",
)
"""The problems whose implicit gradient is timed."""

for _name in IMPLICIT:
    _work = f"implicit gradient at convergence, defaults: {_name}"
    TARGETS[f"implicit {_name}"] = Target(_work, "≤ 1.2 × the best variant", 1.2)
    TARGETS[f"implicit error {_name}"] = Target(_work, "true relative error ≤ 1e-6", 1e-6, "")


@dataclasses.dataclass(frozen=True)
class Figure:
    """What was measured for a target.

    Attributes
    ----------
    key : str
        Of the target, in `TARGETS`.
    ours : float
        Our figure, in the target's unit.
    other : str
        The best peer or hand-written variant.
    others : float
        Its figure, in the same unit.
    note : str
        What else to know.
    """

    key: str
    ours: float
    other: str = ""
    others: float = math.nan
    note: str = ""

    @property
    def target(self) -> Target:
        """What is aimed at."""
        return TARGETS[self.key]

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.ours <= self.target.limit


def quantity(value: float, unit: str) -> str:
    """Return a figure with its unit."""
    return f"{number(value)} {unit}".rstrip() if not math.isnan(value) else "–"


def table(figures: list[Figure]) -> str:
    """Return the figures beside their targets, as a table in Markdown."""
    met = sum(figure.met for figure in figures)
    lines = [
        f"{met} of {len(figures)} targets are met.",
        "",
        "| work | target | ours | met | best peer or hand-written variant |",
        "| --- | --- | ---: | :-: | --- |",
    ]
    for figure in figures:
        unit, other = figure.target.unit, figure.other
        if other and not math.isnan(figure.others):
            other = f"{quantity(figure.others, unit)}: {other}"
        note = f" ({figure.note})" if figure.note else ""
        lines.append(
            f"| {figure.target.work} | {figure.target.wording} | {quantity(figure.ours, unit)}"
            f"{note} | {'yes' if figure.met else '**no**'} | {other or '–'} |"
        )
    return "\n".join(lines) + "\n"
