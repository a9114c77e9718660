"""From words to algorithms and modes: ``{"type": "GradientDescent", "step_size": "1/L"}``."""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import iterdiff
from iterdiff.algorithms.base import Algorithm
from iterdiff.modes.base import Mode
from iterdiff.study.config import Case, Overrides, Recipe, Setting, Spec, Study, known, suggestion

OWN_KEYS = ("type", "steps", "every")
"""The keys of an algorithm that the study reads itself; all others are parameters."""

MODES: Mapping[str, tuple[str, ...]] = {
    "Unrolled": ("last",),
    "OneStep": (),
    "Implicit": ("refine",),
}
"""The modes that a file can name, and their parameters."""


def algorithm_classes() -> dict[str, type[Algorithm]]:
    """Return every algorithm that iterdiff exports, by name."""
    public = {name: getattr(iterdiff, name) for name in iterdiff.__all__}
    return {
        name: value
        for name, value in public.items()
        if inspect.isclass(value) and issubclass(value, Algorithm) and not inspect.isabstract(value)
    }


def make_algorithm(spec: Spec, setting: Setting, where: str) -> Algorithm:
    """Return the algorithm that `spec` describes.

    Parameters
    ----------
    spec : mapping
        Its ``type``, and its parameters: numbers, or ``"c/L"`` and ``"2/(L+l)"``, where l and
        L are the setting's bounds of the spectrum. What is left out takes its usual value:
        steps 1/L, Polyak's or Nesterov's momentum, the bounds of the spectrum.
    setting : Setting
        The problem.
    where : str
        For messages.

    Raises
    ------
    ValueError
        If a key is unknown or a parameter out of range: the message names it.
    """
    classes = algorithm_classes()
    kind = str(spec["type"])
    if kind not in classes:
        raise ValueError(
            f"`type` = {kind!r} in {where} is no algorithm. {suggestion(kind, classes)}"
        )
    fields = {field.name: field.type for field in dataclasses.fields(classes[kind])}
    names = list(fields)
    known(spec, [*OWN_KEYS, *names], where)
    defaults = _tuned(kind, setting.spectrum)
    given = {k: _value(k, v, setting, where) for k, v in spec.items() if k not in OWN_KEYS}
    chosen: dict[str, Any] = {k: v for k, v in (defaults | given).items() if k in names}
    for name, value in chosen.items():
        if isinstance(value, int) and "Float" in str(fields[name]):
            chosen[name] = float(value)
    try:
        return classes[kind](**chosen)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _tuned(kind: str, spectrum: tuple[float, float] | None) -> dict[str, float]:
    """Return the usual parameters for a spectrum in [l, L]."""
    if spectrum is None:
        return {}
    low, high = spectrum
    if kind in ("GradientDescent", "Richardson"):
        return {"step_size": 1 / high}
    root_low, root_high = math.sqrt(low), math.sqrt(high)
    ratio = (root_high - root_low) / (root_high + root_low)
    if kind == "HeavyBall":
        return {"step_size": 4 / (root_high + root_low) ** 2, "momentum": ratio**2}
    if kind == "Nesterov":
        return {"step_size": 1 / high, "momentum": ratio}
    return {"smallest": low, "largest": high}


def _value(key: str, value: Any, setting: Setting, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"`{key}` in {where} must be a number, not {value!r}.")
    if not isinstance(value, str):
        return value
    text = value.replace(" ", "")
    over_largest = re.fullmatch(r"([0-9.]+)/L", text)
    if not over_largest and text != "2/(L+l)":
        if key == "norm":
            return value
        raise ValueError(
            f'`{key}` in {where} must be a number, "c/L" with a number c, or "2/(L+l)", '
            f"not {value!r}."
        )
    if setting.spectrum is None:
        raise ValueError(
            f"`{key}` = {value!r} in {where} needs bounds of the spectrum, which this problem "
            "does not give; write a number."
        )
    low, high = setting.spectrum
    return float(over_largest[1]) / high if over_largest else 2 / (high + low)


def make_mode(spec: Spec, where: str) -> Mode:
    """Return the mode that `spec` describes.

    Raises
    ------
    ValueError
        If a key is unknown or a parameter out of range: the message names it.
    """
    kind = str(spec["type"])
    if kind not in MODES:
        raise ValueError(f"`type` = {kind!r} in {where} is no mode. {suggestion(kind, MODES)}")
    known(spec, ["type", *MODES[kind]], where)
    try:
        return getattr(iterdiff, kind)(**{k: v for k, v in spec.items() if k != "type"})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def make_study(recipe: Recipe, overrides: Overrides) -> Study:
    """Return a recipe's study with some settings changed.

    Raises
    ------
    ValueError
        If a setting is unknown or out of range: the message names it.
    """
    origin = overrides.origin
    if "data" in overrides.problem and not recipe.takes_data:
        raise ValueError(f"`data`: the study {recipe.name} takes no table; ridge and logistic do.")
    known(overrides.problem, recipe.options, f"`problem` in {origin}")
    settings = recipe.build(**{**recipe.options, **overrides.problem})
    algorithms = overrides.algorithms or recipe.algorithms
    modes = {
        label: make_mode(spec, f"`modes.{label}` in {origin}")
        for label, spec in (overrides.modes or recipe.modes).items()
    }
    if len(settings) > 1 and len(algorithms) > 1:
        raise ValueError(
            f"`problem.{recipe.axis}` in {origin} has {len(settings)} values and `algorithms` "
            f"{len(algorithms)} entries; a study varies one thing: give one of either."
        )
    cases = [
        _case(recipe, overrides, setting, (label, spec), modes)
        for setting in settings
        for label, spec in algorithms.items()
    ]
    used = {
        "study": recipe.name,
        "problem": {**recipe.options, **overrides.problem},
        "algorithms": {label: dict(spec) for label, spec in algorithms.items()},
        "modes": {label: dict(spec) for label, spec in (overrides.modes or recipe.modes).items()},
    }
    return Study(
        name=recipe.name,
        title=overrides.title or next(iter(settings)).title,
        cases=tuple(cases),
        modes=modes,
        axis="algorithm" if len(settings) == 1 else recipe.axis,
        probes=overrides.probes,
        estimate=recipe.estimate,
        settings=used,
    )


def _case(
    recipe: Recipe,
    overrides: Overrides,
    setting: Setting,
    labelled: tuple[str, Spec],
    modes: Mapping[str, Mode],
) -> Case:
    """Return the run of one algorithm in one setting."""
    label, spec = labelled
    where = f"`algorithms.{label}` in {overrides.origin}"
    steps, every = _counts(recipe, overrides, spec, where)
    algorithm = make_algorithm(spec, setting, where)
    return Case(
        label=label if setting.label is None else setting.label,
        problem=setting.problem,
        algorithm=algorithm,
        x0=setting.x0,
        theta=setting.theta,
        steps=steps,
        every=every,
        reference=setting.reference,
        curves=recipe.curves(setting, algorithm, modes),
        # Late starts are of the full Jacobian, and of steps that can be differentiated.
        rate=recipe.rate(setting, algorithm)
        if recipe.rate and overrides.probes is None and algorithm.differentiable
        else None,
    )


def _counts(recipe: Recipe, overrides: Overrides, spec: Spec, where: str) -> tuple[int, int]:
    """Return steps and every of one run: the overall setting, the algorithm's, the recipe's."""
    found = []
    for key, usual in (("steps", recipe.steps), ("every", recipe.every)):
        value = getattr(overrides, key)
        if value is None:
            value = spec.get(key, usual)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{key}` in {where} must be a whole number from 1 on, not {value!r}.")
        found.append(value)
    steps, every = found
    every = min(every, steps) if overrides.every is None else every
    return steps - steps % every if every <= steps else steps, every
