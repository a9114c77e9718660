"""From settings to objects: algorithms tuned to the spectrum, cases, and the study."""

import inspect
from collections.abc import Mapping
from typing import Any

import iterdiff as itd
from iterdiff import theory
from iterdiff.study.config import Case, PosedProblem, Study, Theory, largest_divisor
from iterdiff.study.named import UnknownParameter
from iterdiff.study.options import (
    OPTIMAL_RATIO,
    RATIO,
    AlgorithmOptions,
    algorithm_classes,
)
from iterdiff.study.settings import Settings, Source

MAX_STEP_ROUNDING = 1e-12
"""Excess of a step over 1/L, relative to it, that is rounding."""


def make_study(settings: Settings, source: Source, *, axis: str, with_theory: bool) -> Study:
    """Return the study that settings describe.

    Parameters
    ----------
    settings : Settings
        What to run.
    source : Source
        Where the settings come from, for messages.
    axis : str
        What several posed problems differ in.
    with_theory : bool
        Whether to compare the runs with theory.

    Raises
    ------
    ValueError
        If a setting does not fit the problem. The message names the setting.
    """
    problems = _posed(settings, source)
    if len(problems) > 1 and len(settings.algorithms) > 1:
        raise ValueError(
            f"{source.where(['problem', axis])} has {len(problems)} values and `algorithms` has "
            f"{len(settings.algorithms)} entries, but a study varies one thing. Reduce one of the "
            "two to a single entry."
        )
    modes = {label: options.make() for label, options in settings.modes.items()}
    cases = [
        _case(posed, label, settings, source, modes if with_theory else None)
        for posed in problems
        for label in settings.algorithms or [_own_algorithm(posed, source)]
    ]
    return Study(
        name=settings.study,
        title=settings.title or next(iter(problems)).title,
        cases=tuple(cases),
        modes=modes,
        axis="algorithm" if len(problems) == 1 else axis,
        probes=settings.probes,
        estimate=settings.estimate,
        stop=None if settings.stop is None else settings.stop.make(),
        settings=settings.in_words(),
    )


def _posed(settings: Settings, source: Source) -> tuple[PosedProblem, ...]:
    try:
        return settings.problem.pose()
    except (TypeError, ValueError) as error:
        if source.file is None:
            raise
        keys = ["problem", error.key] if isinstance(error, UnknownParameter) else ["problem"]
        raise ValueError(f"{source.where(keys)} is not valid: {error}") from error


def _own_algorithm(posed: PosedProblem, source: Source) -> str:
    """Return the label of the algorithm that comes with a problem.

    Raises
    ------
    ValueError
        If none does.
    """
    if posed.algorithm is None:
        raise ValueError(
            f"{source.where(['algorithms'])} is missing, and the function of `problem` returns no "
            "algorithm. Add a table [algorithms.LABEL], or return (problem, algorithm, x0, theta)."
        )
    return type(posed.algorithm).__name__


def _case(
    posed: PosedProblem,
    label: str,
    settings: Settings,
    source: Source,
    modes: Mapping[str, itd.Mode] | None,
) -> Case:
    """Return the run of one algorithm on one problem, compared with theory if modes are given."""
    algorithm = posed.algorithm
    if settings.algorithms or algorithm is None:
        algorithm = make_algorithm(settings.algorithms[label], posed, label, source)
    compared = posed.theory if modes is not None else None
    # Late starts are measured for the full Jacobian, and need steps that can be differentiated.
    late = settings.probes is None and algorithm.differentiable
    steps, every = _counts(settings, label, source)
    return Case(
        label=label if posed.coordinate is None else posed.coordinate,
        problem=posed.problem,
        algorithm=algorithm,
        x0=posed.x0,
        theta=posed.theta,
        steps=steps,
        every=every,
        reference=posed.reference,
        args=posed.args,
        spectrum=posed.spectrum,
        sampling=posed.sampling,
        curves=compared.curves(posed, algorithm, modes) if compared and modes else {},
        rate=_late_start_rate(compared, posed, algorithm) if compared and late else None,
    )


def _late_start_rate(
    compared: Theory, posed: PosedProblem, algorithm: itd.Algorithm
) -> float | None:
    """Return the rate from which the best late start is predicted; NaN without a prediction.

    The prediction assumes that no mode of the error changes its sign. Momentum, and steps above
    1/L, make modes that do.
    """
    rate = compared.rate(posed, algorithm)
    if rate is None or posed.spectrum is None or not isinstance(algorithm, itd.GradientDescent):
        return None if rate is None else float("nan")
    monotone = float(algorithm.step_size) * posed.spectrum[1] <= 1 + MAX_STEP_ROUNDING
    return rate if monotone else float("nan")


def _counts(settings: Settings, label: str, source: Source) -> tuple[int, int]:
    """Return `steps` and `every` of a run; lower a default `every` until it divides `steps`."""
    options = settings.algorithms.get(label)
    steps, every = settings.steps, settings.every
    if options is not None:
        steps, every = options.steps or steps, options.every or every
    if source.sets("every") or source.sets("algorithms", label, "every"):
        return steps, every
    return steps, largest_divisor(steps, every)


def make_algorithm(
    options: AlgorithmOptions, posed: PosedProblem, label: str, source: Source
) -> itd.Algorithm:
    """Return the algorithm that its options describe.

    Parameters
    ----------
    options : AlgorithmOptions
        The class and its parameters. Parameters that are left out have their usual values for
        the spectrum: steps 1/L, the momentum of Polyak or Nesterov, the bounds of the spectrum.
    posed : PosedProblem
        The problem, for its spectrum.
    label : str
        The algorithm's label in the settings.
    source : Source
        Where the settings come from, for messages.

    Raises
    ------
    ValueError
        If a parameter is missing or out of range, or needs a spectrum that is not known.
    """
    keys = ("algorithms", label)
    make = algorithm_classes()[options.type]
    given = {
        name: _resolved(value, posed, source.where([*keys, name]))
        for name, value in options.parameters().items()
    }
    parameters = inspect.signature(make).parameters
    chosen = {k: v for k, v in _tuned(make, posed).items() if k in parameters} | given
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in chosen:
            raise ValueError(
                f"{source.where([*keys, name])} is missing; {options.type} needs it here."
            )
    try:
        return make(**chosen)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source.where(keys)} is not valid: {error}") from error


def _tuned(make: type[itd.Algorithm], posed: PosedProblem) -> dict[str, Any]:
    """Return the usual parameters for a spectrum in [ℓ, L], those of other algorithms included."""
    if posed.spectrum is None:
        return {}
    low, high = posed.spectrum
    usual: dict[str, Any] = {"step_size": 1 / high, "smallest": low, "largest": high}
    if make is itd.HeavyBall:
        usual["step_size"], usual["momentum"] = map(float, theory.polyak_parameters(low, high))
    if make is itd.Nesterov:
        usual["step_size"], usual["momentum"] = map(float, theory.nesterov_parameters(low, high))
    return usual


def _resolved(value: Any, posed: PosedProblem, where: str) -> Any:
    """Return a parameter with "c/L" and "2/(L+ℓ)" replaced by numbers."""
    ratio = RATIO.fullmatch(value) if isinstance(value, str) else None
    if value != OPTIMAL_RATIO and ratio is None:
        return value
    if posed.spectrum is None:
        raise ValueError(
            f"{where} = {value!r} needs bounds of the spectrum, which this problem does not have. "
            "Write a number, or return `spectrum=(l, L)` with a problem of your own."
        )
    low, high = posed.spectrum
    return 2 / (high + low) if ratio is None else float(ratio["factor"]) / high
