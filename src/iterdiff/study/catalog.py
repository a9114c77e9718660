"""The built-in studies."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iterdiff.study.build import make_study
from iterdiff.study.config import Study
from iterdiff.study.problems.fixed_points import AffineMap
from iterdiff.study.problems.own import own_settings
from iterdiff.study.problems.physics import Bratu, Diffusion
from iterdiff.study.problems.quadratics import Quadratic, ScalarQuadratic
from iterdiff.study.problems.regressions import LogisticRegression, Regression, RidgeRegression
from iterdiff.study.problems.sampled import SampledRidge
from iterdiff.study.settings import (
    Override,
    ProblemOptions,
    Settings,
    Source,
    apply,
    read_file,
    validated,
)
from iterdiff.study.suggestions import suggestion

GRADIENT_DESCENT = {
    "GD, 1/L": {"type": "GradientDescent", "step_size": "1/L"},
    "GD, 2/(L+ℓ)": {"type": "GradientDescent", "step_size": "2/(L+ℓ)"},
}

METHODS = {
    **GRADIENT_DESCENT,
    "heavy ball": {"type": "HeavyBall"},
    "Nesterov": {"type": "Nesterov"},
    "Chebyshev": {"type": "Chebyshev"},
    "Sobolev": {"type": "Sobolev"},
}
"""First-order methods, each with its usual parameters for a spectrum in [ℓ, L]."""

UNROLLED_AND_IMPLICIT = {"unrolled": {"type": "Unrolled"}, "implicit": {"type": "Implicit"}}
MODES = {**UNROLLED_AND_IMPLICIT, "one-step": {"type": "OneStep"}}
MODES_WITH_LATE_START = {**MODES, "last 20": {"type": "Unrolled", "last": 20}}


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A built-in study.

    Attributes
    ----------
    summary : str
        One line for ``iterdiff list``.
    settings : Settings
        The default settings.
    axis : str
        What several posed problems differ in.
    theory : bool
        Whether the runs are compared with theory.
    """

    summary: str
    settings: Settings
    axis: str = "algorithm"
    theory: bool = False

    @property
    def reads_table(self) -> bool:
        """Whether the options ``data`` and ``target`` apply."""
        return isinstance(self.settings.problem, Regression)


def _settings(problem: ProblemOptions, **given: Any) -> Settings:
    return Settings[type(problem)](problem=problem, **given)  # the problem keeps its type


BUILT_IN: Mapping[str, BuiltIn] = {
    made.settings.study: made
    for made in (
        BuiltIn(
            "the curse of unrolling in one line: theta x^2 / 2 - b x, with its closed form",
            _settings(
                ScalarQuadratic(),
                study="scalar-quadratic",
                algorithms={"gradient descent": {"type": "GradientDescent", "step_size": 0.1}},
                modes=UNROLLED_AND_IMPLICIT,
                steps=1000,
            ),
            axis="b",
            theory=True,
        ),
        BuiltIn(
            "ridge regression on a table, one log-penalty per feature (takes --data)",
            _settings(
                RidgeRegression(penalty=0.1),
                study="ridge",
                algorithms=GRADIENT_DESCENT,
                modes=MODES,
                steps=1500,
                estimate=True,
            ),
        ),
        BuiltIn(
            "logistic regression on a table, one log-penalty per feature (takes --data)",
            _settings(
                LogisticRegression(penalty=0.03, start=3.0),
                study="logistic",
                algorithms=GRADIENT_DESCENT,
                modes=MODES,
                steps=2000,
                estimate=True,
            ),
        ),
        BuiltIn(
            "2-D diffusion, differentiated in the conductivity of every cell",
            _settings(
                Diffusion(),
                study="linear-system",
                algorithms={
                    "Richardson": {"type": "Richardson", "step_size": "2/(L+ℓ)", "every": 10},
                    "Jacobi": {"type": "Jacobi", "steps": 1000, "every": 5},
                    "conjugate gradient": {"type": "ConjugateGradient", "steps": 80},
                },
                modes=MODES,
                steps=2000,
                estimate=True,
            ),
        ),
        BuiltIn(
            "the fixed point of theta x + b, whose rate is theta, with its closed form",
            _settings(
                AffineMap(),
                study="fixed-point",
                algorithms={"Picard": {"type": "Picard"}},
                modes=UNROLLED_AND_IMPLICIT,
                steps=300,
            ),
            theory=True,
        ),
        BuiltIn(
            "a nonlinear boundary value problem, Newton against Picard",
            _settings(
                Bratu(),
                study="root-finding",
                algorithms={
                    "Newton": {"type": "Newton", "steps": 8},
                    "Picard": {"type": "Picard", "steps": 100},
                },
                modes=MODES,
                steps=60,
                estimate=True,
            ),
        ),
        BuiltIn(
            "six first-order methods on a quadratic with a chosen spectrum, with bounds",
            _settings(
                Quadratic(),
                study="curse",
                algorithms=METHODS,
                modes=MODES_WITH_LATE_START,
                steps=600,
            ),
            theory=True,
        ),
        BuiltIn(
            "the same methods on ridge regression, shared penalty, with bounds (takes --data)",
            _settings(
                RidgeRegression(data="diabetes", penalty=0.01, shared=True),
                study="curse-ridge",
                algorithms=METHODS,
                modes=MODES_WITH_LATE_START,
                steps=600,
            ),
            theory=True,
        ),
        BuiltIn(
            "the same methods on logistic regression, bounds for two of them (takes --data)",
            _settings(
                LogisticRegression(penalty=0.03, start=3.0),
                study="curse-logistic",
                algorithms=METHODS,
                modes=MODES_WITH_LATE_START,
                steps=600,
            ),
            theory=True,
        ),
        BuiltIn(
            "stochastic gradient descent on ridge regression, constant and decreasing steps",
            _settings(
                SampledRidge(penalty=0.5),
                study="sgd",
                algorithms={"SGD": {"type": "GradientDescent", "step_size": "0.5/L"}},
                modes={"unrolled": {"type": "Unrolled"}},
                steps=10_000,
                every=50,
            ),
            axis="decay",
            theory=True,
        ),
    )
}
"""The built-in studies, by name."""

OWN = BuiltIn("a problem of your own", own_settings(UNROLLED_AND_IMPLICIT))
"""What a study whose file names a function starts from."""

MODELS = ("ridge", "logistic")
"""The studies that ``problem.model`` may name, for a table of the user's own."""


def find(name: str, where: str | None = None) -> BuiltIn:
    """Return a built-in study.

    Parameters
    ----------
    name : str
        Its name.
    where : str, optional
        Where the name was given, for the message.

    Raises
    ------
    ValueError
        If no built-in study has this name. The message suggests the nearest one.
    """
    if name not in BUILT_IN:
        start = "there is no study" if where is None else f"{where} names no built-in study:"
        raise ValueError(f"{start} {name!r}. {suggestion(name, BUILT_IN)}")
    return BUILT_IN[name]


def load_study(name: str, **changes: Any) -> Study:
    """Return a built-in study, or the study of a TOML file, with some settings changed.

    Parameters
    ----------
    name : str
        The name of a built-in study, the path of a file that ends in ``.toml``, or a problem of
        your own as ``module:function`` or ``file.py:function``.
    **changes
        Fields of `Settings`, in the words of a file: for example ``steps=100`` or
        ``problem={"penalty": 0.1}``. They take precedence over the file.

    Returns
    -------
    Study
        What to run.

    Raises
    ------
    ValueError
        If there is no such study or file, or a setting is unknown or out of range.

    Examples
    --------
    >>> from iterdiff.study.catalog import load_study
    >>> study = load_study("curse", steps=40, algorithms={"GD": {"type": "GradientDescent"}})
    >>> [(case.label, case.steps) for case in study.cases]
    [('GD', 40)]
    """
    source = read_source(name, changes)
    if "grid" in source.content:
        raise ValueError(
            f"{source.where(['grid'])} makes this a grid of studies. Load it with "
            "`iterdiff.study.grid.load_grid`."
        )
    return make(source)


def read_source(
    name: str, changes: Mapping[str, Any], overrides: tuple[Override, ...] = ()
) -> Source:
    """Return what a file, a built-in study or a function of the user's, and the caller set.

    Raises
    ------
    ValueError
        If there is no such study, or the file cannot be read.
    """
    if name.endswith(".toml"):
        return dataclasses.replace(read_file(Path(name), changes), overrides=overrides)
    if ":" in name:
        return Source(changes, overrides, {"problem": {"function": name}})
    find(name)
    return Source({**changes, "study": name}, overrides)


def make(source: Source) -> Study:
    """Return the study that settings describe.

    Raises
    ------
    ValueError
        If a setting is unknown or out of range.
    """
    built_in, content = resolve(source)
    settings = validated(type(built_in.settings), content, source)
    return make_study(settings, source, axis=built_in.axis, with_theory=built_in.theory)


def check(source: Source) -> None:
    """Raise ValueError if a setting is unknown or out of range; make nothing."""
    built_in, content = resolve(source)
    validated(type(built_in.settings), content, source)


def resolve(source: Source) -> tuple[BuiltIn, dict[str, Any]]:
    """Return what a study starts from, and all of its settings in words.

    Defaults < file < overrides < changes. ``problem`` may be the name of a function; with
    ``problem.model`` and a table it names one of `MODELS`.

    Raises
    ------
    ValueError
        If the settings name neither a built-in study nor a function.
    """
    source = _normalised(source)
    name, problem = _start(source)
    if "function" in problem:
        if name is not None:
            raise ValueError(
                f"{source.where(['study'])} names a built-in study, but `problem` is a function of "
                "your own. Leave one of them out."
            )
        content = source.merged(OWN.settings.in_words())
        return OWN, {**content, "study": str(problem["function"]).rpartition(":")[2]}
    name = _model_of(problem, name, source)
    if not isinstance(name, str):
        kind = "is missing" if name is None else "must be a string"
        raise ValueError(
            f"{source.where(['study'])} {kind}: it names the built-in study to start from. For a "
            'problem of your own write problem = "module:function".'
        )
    built_in = find(name, source.where(["study"]) if source.file else None)
    _check_table(built_in, source)
    content = {**source.merged(built_in.settings.in_words()), "study": name}
    if isinstance(content["problem"], dict):
        content["problem"].pop("model", None)
    return built_in, content


def _start(source: Source) -> tuple[Any, Mapping[str, Any]]:
    """Return the `study` and the `problem` that all layers of settings give together."""
    start = copy.deepcopy(dict(source.content))
    for override in source.overrides:
        if override.keys[0] in ("study", "problem"):
            apply(override, start)
    problem = {}
    for layer in (start, source.changes):
        given = layer.get("problem")
        problem |= given if isinstance(given, Mapping) else {}
    return source.changes.get("study", start.get("study")), problem


def _model_of(problem: Mapping[str, Any], name: Any, source: Source) -> Any:
    """Return the study that ``problem.model`` names; without it, the study that `name` names."""
    model = problem.get("model")
    if model is None:
        return name
    where = source.where(["problem", "model"])
    if model not in MODELS:
        raise ValueError(f"{where} must not be {model!r}. {suggestion(str(model), MODELS)}")
    if name not in (None, model):
        raise ValueError(
            f"{where} = {model!r} contradicts the study {name!r}. Leave one of them out."
        )
    return model


def _normalised(source: Source) -> Source:
    """Return the settings with ``problem = "module:function"`` as a table."""

    def with_table(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        problem = layer.get("problem")
        return {**layer, "problem": {"function": problem}} if isinstance(problem, str) else layer

    overrides = tuple(
        override._replace(value={"function": override.value})
        if override.keys == ("problem",) and isinstance(override.value, str)
        else override
        for override in source.overrides
    )
    return dataclasses.replace(
        source,
        content=with_table(source.content),
        changes=with_table(source.changes),
        overrides=overrides,
    )


def _check_table(built_in: BuiltIn, source: Source) -> None:
    """Raise ValueError if a table is given to a study that does not read one."""
    if source.sets("problem", "data") and not built_in.reads_table:
        able = ", ".join(name for name, other in BUILT_IN.items() if other.reads_table)
        raise ValueError(
            f"{source.where(['problem', 'data'])} does not apply: the study "
            f"{built_in.settings.study} does not read a table. Studies that do: {able}."
        )
