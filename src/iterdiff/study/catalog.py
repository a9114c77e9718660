"""The built-in studies."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from iterdiff.study.choices import make_study
from iterdiff.study.config import Overrides, Recipe, Study, read_file, suggestion
from iterdiff.study.curse import METHODS, bounds, quadratic, rate_of, smooth_bounds
from iterdiff.study.curse import MODES as CURSE_MODES
from iterdiff.study.physics import bratu, diffusion
from iterdiff.study.quadratic import scalar_curves, scalar_quadratic
from iterdiff.study.tables import GRADIENT_DESCENT, OPTIONS, logistic, ridge

UNROLLED = {"type": "Unrolled"}
IMPLICIT = {"type": "Implicit"}
ONE_STEP = {"type": "OneStep"}
MODES = {"unrolled": UNROLLED, "implicit": IMPLICIT, "one-step": ONE_STEP}

_ALL = (
    Recipe(
        name="scalar-quadratic",
        summary="the curse of unrolling in one line: theta x^2 / 2 - b x, with its closed form",
        build=scalar_quadratic,
        options={"theta": 0.05, "x0": 0.5, "b": [0.0, 1.0]},
        algorithms={"gradient descent": {"type": "GradientDescent", "step_size": 0.1}},
        modes={"unrolled": UNROLLED, "implicit": IMPLICIT},
        steps=1000,
        axis="b",
        curves=scalar_curves,
    ),
    Recipe(
        name="ridge",
        summary="ridge regression on a table, one log-penalty per feature (takes --data)",
        build=ridge,
        options={**OPTIONS, "penalty": 0.1},
        algorithms=GRADIENT_DESCENT,
        modes=MODES,
        steps=1500,
        takes_data=True,
        estimate=True,
    ),
    Recipe(
        name="logistic",
        summary="logistic regression on a table, one log-penalty per feature (takes --data)",
        build=logistic,
        options={**OPTIONS, "penalty": 0.03, "start": 3.0},
        algorithms=GRADIENT_DESCENT,
        modes=MODES,
        steps=2000,
        takes_data=True,
        estimate=True,
    ),
    Recipe(
        name="linear-system",
        summary="2-D diffusion, differentiated in the conductivity of every cell",
        build=diffusion,
        options={"cells": 10, "contrast": 10.0, "roughness": 0.3, "seed": 0},
        algorithms={
            "Richardson": {"type": "Richardson", "step_size": "2/(L+l)", "every": 10},
            "Jacobi": {"type": "Jacobi", "steps": 1000, "every": 5},
            "conjugate gradient": {"type": "ConjugateGradient", "steps": 80},
        },
        modes=MODES,
        steps=2000,
        estimate=True,
    ),
    Recipe(
        name="root-finding",
        summary="a nonlinear boundary value problem, Newton against Picard",
        build=bratu,
        options={"points": 50, "source": 3.4},
        algorithms={
            "Newton": {"type": "Newton", "steps": 8},
            "Picard": {"type": "Picard", "steps": 100},
        },
        modes=MODES,
        steps=60,
        estimate=True,
    ),
    Recipe(
        name="curse",
        summary="six first-order methods on a quadratic with a chosen spectrum, with bounds",
        build=quadratic,
        options={
            "size": 20,
            "condition": 1000.0,
            "spectrum": "logarithmic",
            "start": 0.0,
            "seed": 0,
        },
        algorithms=METHODS,
        modes=CURSE_MODES,
        steps=600,
        curves=bounds,
        rate=rate_of,
    ),
    Recipe(
        name="curse-ridge",
        summary="the same methods on ridge regression, shared penalty, with bounds (takes --data)",
        build=ridge,
        options={**OPTIONS, "data": "diabetes", "penalty": 0.01, "shared": True},
        algorithms=METHODS,
        modes=CURSE_MODES,
        steps=600,
        curves=bounds,
        rate=rate_of,
        takes_data=True,
    ),
    Recipe(
        name="curse-logistic",
        summary="the same methods on logistic regression, bounds for two of them (takes --data)",
        build=logistic,
        options={**OPTIONS, "penalty": 0.03, "start": 3.0},
        algorithms=METHODS,
        modes=CURSE_MODES,
        steps=600,
        curves=smooth_bounds,
        rate=rate_of,
        takes_data=True,
    ),
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
"""The built-in studies, by name."""


def find(name: str) -> Recipe:
    """Return a built-in study.

    Raises
    ------
    ValueError
        If there is none of that name, suggesting the nearest.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no study {name!r}. {suggestion(name, RECIPES)}")
    return RECIPES[name]


def load_study(name: str, overrides: Overrides | None = None) -> Study:
    """Return a study by the name of a recipe, or from a TOML file.

    Parameters
    ----------
    name : str
        The name of a built-in study, or the path of a file that ends in ``.toml``.
    overrides : Overrides, optional
        What to change; it wins over the file.

    Raises
    ------
    ValueError
        If there is no such study or file, or a setting is unknown or out of range.
    """
    overrides = Overrides() if overrides is None else overrides
    if name.endswith(".toml"):
        recipe, from_file = read_file(Path(name))
        return make_study(find(recipe), _merged(from_file, overrides))
    return make_study(find(name), overrides)


def _merged(first: Overrides, second: Overrides) -> Overrides:
    """Return `first` with what `second` sets."""
    fields = [field.name for field in dataclasses.fields(Overrides) if field.name != "origin"]
    changes = {name: getattr(second, name) for name in fields if getattr(second, name)}
    changes["problem"] = {**first.problem, **second.problem}
    return dataclasses.replace(first, **changes)
