"""What can be chosen: problems, algorithms, modes; and a choice as an address."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from iterdiff.explore.controls import Control, Flag, Number, Scale, Word, Words
from iterdiff.study.options import algorithm_classes
from iterdiff.study.problems.datasets import BUNDLED
from iterdiff.study.suggestions import suggestion

UPLOAD = "upload"
"""The table that the reader gives; an address cannot hold it."""

UNROLLED, IMPLICIT, ONE_STEP = "unrolled", "implicit", "one-step"
LATE_START, CORRECTED = "late start", "corrected"
MODES = (UNROLLED, IMPLICIT, ONE_STEP, LATE_START, CORRECTED)

FLOAT64, FLOAT32 = "float64", "float32"

STEPS = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000)
"""Numbers of steps to choose from: each is a program of its own, compiled in a second."""

DESCENT = ("GradientDescent", "HeavyBall", "Nesterov", "Chebyshev", "Sobolev")
EQUATION = ("Picard", "Newton", "Anderson", "Broyden")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A problem to choose.

    Attributes
    ----------
    study : str
        The built-in study that it is.
    label : str
        What the reader sees.
    controls : tuple of Control
        The options of the problem, named as in a file of settings.
    algorithms : tuple of str
        The algorithms that solve it; the first one is the default.
    step_size : Number, optional
        The step size, absolute, for problems whose steps are not in units of 1/L.
    steps : int
        The default number of steps.
    """

    study: str
    label: str
    controls: tuple[Control, ...]
    algorithms: tuple[str, ...]
    step_size: Number | None = None
    steps: int = 200

    @property
    def reads_table(self) -> bool:
        """Whether the reader may give a table."""
        return any(control.name == "data" for control in self.controls)


def _start(default: float) -> Control:
    return Number("start", "spread of the start", default, 0.0, 5.0, 0.1)


_SEED = Scale("seed", "seed", 0, tuple(range(10)))
_PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def _regression(study: str, label: str, data: str, penalty: float, start: float) -> Subject:
    controls = (
        Word("data", "table", data, (*BUNDLED, UPLOAD)),
        Scale("penalty", "penalty", penalty, _PENALTIES),
        Flag("shared", "one penalty for all features", True),
        _start(start),
        _SEED,
    )
    return Subject(study, label, controls, DESCENT)


SUBJECTS: Mapping[str, Subject] = {
    subject.study: subject
    for subject in (
        Subject(
            "scalar-quadratic",
            "scalar quadratic, ½θx² − bx",
            (
                Number("theta", "θ", 0.05, 0.0, 2.0, 0.01),
                Number("b", "b", 0.0, -2.0, 2.0, 0.1),
                Number("x0", "x₀", 0.5, -5.0, 5.0, 0.1),
            ),
            ("GradientDescent", "HeavyBall", "Nesterov", "Newton"),
            step_size=Number("step_size", "step size η", 0.5, 0.01, 50.0, 0.01),
        ),
        Subject(
            "curse",
            "quadratic with a chosen spectrum",
            (
                Word("spectrum", "spectrum", "logarithmic", ("logarithmic", "uniform", "ends")),
                Scale("condition", "condition L/ℓ", 100.0, (2, 5, 10, 30, 100, 300, 1000, 10000)),
                Scale("size", "unknowns", 20, (2, 5, 10, 20, 40)),
                _start(0.0),
                _SEED,
            ),
            DESCENT,
        ),
        _regression("curse-ridge", "ridge regression on a table", "diabetes", 0.01, 1.0),
        _regression("curse-logistic", "logistic regression on a table", "breast-cancer", 0.03, 3.0),
        Subject(
            "fixed-point",
            "fixed point with its rate, θx + b",
            (
                Number("rate", "rate θ", 0.95, -1.1, 1.1, 0.01),
                Number("b", "b", 1.0, -2.0, 2.0, 0.1),
                Number("x0", "x₀", 0.0, -5.0, 5.0, 0.1),
            ),
            EQUATION,
        ),
        Subject(
            "root-finding",
            "Newton against Picard, −u″ = θ exp(u)",
            (
                Number("source", "θ", 3.0, 0.1, 3.5, 0.1),
                Scale("points", "points", 30, (10, 20, 30, 50)),
            ),
            ("Newton", "Picard", "Anderson", "Broyden"),
            steps=50,
        ),
    )
}
"""The problems, by the name of their study."""


def algorithm_controls(subject: Subject, algorithm: str) -> tuple[Control, ...]:
    """Return the controls of an algorithm: those of its parameters that a slider can set."""
    known = inspect.signature(algorithm_classes()[algorithm]).parameters
    found: list[Control] = []
    if subject.step_size is None and "step_size" in known:
        found.append(Flag("usual", "usual step size and momentum", True))
    if "step_size" in known:
        units = Number("step_size", "step size in units of 1/L", 1.0, 0.05, 2.5, 0.05)
        found.append(subject.step_size or units)
    if "momentum" in known:
        found.append(Number("momentum", "momentum", 0.5, 0.0, 0.99, 0.01))
    if "damping" in known:
        found.append(Number("damping", "damping", 1.0, 0.05, 2.0, 0.05))
    return tuple(found)


def controls(subject: Subject, algorithm: str) -> tuple[Control, ...]:
    """Return all controls for a problem and an algorithm, in the order of reading."""
    return (
        Word("algorithm", "algorithm", subject.algorithms[0], subject.algorithms),
        *subject.controls,
        *algorithm_controls(subject, algorithm),
        Scale("steps", "steps", subject.steps, STEPS),
        Words("modes", "modes", (UNROLLED, IMPLICIT), MODES),
        Number("skipped", "late start: share of the steps left out", 0.5, 0.05, 0.95, 0.05),
        Word("precision", "precision", FLOAT64, (FLOAT64, FLOAT32)),
    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """A problem, and the value of each of its controls.

    Attributes
    ----------
    problem : str
        A key of `SUBJECTS`.
    values : tuple of (str, object)
        The values by the names of the controls, in their order.
    """

    problem: str
    values: tuple[tuple[str, Any], ...]

    @property
    def subject(self) -> Subject:
        """The problem."""
        return SUBJECTS[self.problem]

    def __getitem__(self, name: str) -> Any:
        """Return the value of a control."""
        return dict(self.values)[name]

    def __contains__(self, name: str) -> bool:
        """Return whether there is such a control."""
        return name in dict(self.values)

    @property
    def controls(self) -> tuple[Control, ...]:
        """The controls of this choice."""
        return controls(self.subject, self["algorithm"])

    @property
    def usual_steps(self) -> bool:
        """Whether the algorithm takes its usual step size and momentum."""
        return "usual" in self and self["usual"]

    def address(self) -> dict[str, str]:
        """Return what an address holds: the problem, and the values that are not the defaults."""
        words = {"problem": self.problem}
        for control in self.controls:
            if self[control.name] != control.default:
                words[control.name] = control.text(self[control.name])
        return words


def choice(problem: str, given: Mapping[str, Any]) -> Choice:
    """Return a choice from the values that are given; the others have their defaults."""
    subject = SUBJECTS[problem]
    algorithm = given.get("algorithm")
    algorithm = algorithm if algorithm in subject.algorithms else subject.algorithms[0]
    known = {**given, "algorithm": algorithm}
    made = [(c.name, known.get(c.name, c.default)) for c in controls(subject, algorithm)]
    return Choice(problem, tuple(made))


def from_address(words: Mapping[str, str]) -> tuple[Choice, list[str]]:
    """Return the choice that an address holds, and a sentence about each word that it ignores."""
    problem, complaints = words.get("problem", next(iter(SUBJECTS))), []
    if problem not in SUBJECTS:
        complaints.append(f"There is no problem {problem!r}. {suggestion(problem, SUBJECTS)}")
        problem = next(iter(SUBJECTS))
    subject = SUBJECTS[problem]
    algorithm = words.get("algorithm", subject.algorithms[0])
    known = algorithm if algorithm in subject.algorithms else subject.algorithms[0]
    named, values = {control.name: control for control in controls(subject, known)}, {}
    for name, text in words.items():
        if name == "problem":
            continue
        try:
            if name not in named:
                raise ValueError(f"`{name}` is unknown here. {suggestion(name, named)}")
            values[name] = named[name].parse(text)
        except ValueError as error:
            complaints.append(str(error))
    return choice(problem, values), complaints
