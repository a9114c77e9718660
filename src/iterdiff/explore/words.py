"""From a choice to a study, in the words of a file of settings; and the script that repeats it."""

import pprint
import urllib.parse
from typing import Any

from iterdiff.explore.choices import (
    CORRECTED,
    FLOAT64,
    IMPLICIT,
    LATE_START,
    ONE_STEP,
    UNROLLED,
    UPLOAD,
    Choice,
)

SCRIPT = '''"""Draws what `iterdiff explore` shows for ?{address}"""

import jax
import plotly.graph_objects

from iterdiff.explore.figures import figures
from iterdiff.study.catalog import load_study
from iterdiff.study.run import run

jax.config.update("jax_enable_x64", {x64})
study = load_study(
    {name!r},
    **{words},
)
data = run(study)
for name, figure in figures(study, data):
    plotly.graph_objects.Figure(figure).write_html(f"{{name}}.html")
    print(f"written: {{name}}.html")
'''


def words(choice: Choice, table: tuple[str, str] | None = None) -> dict[str, Any]:
    """Return the settings that a choice makes, besides the name of its study.

    Parameters
    ----------
    choice : Choice
        What is chosen.
    table : (str, str), optional
        The reader's table: the path of a CSV file, and the column to predict.

    Raises
    ------
    ValueError
        If the choice needs the reader's table and there is none, or no mode is chosen.
    """
    problem = {control.name: choice[control.name] for control in choice.subject.controls}
    if problem.get("data") == UPLOAD:
        if table is None:
            raise ValueError("Choose a CSV file with a header line, and the column to predict.")
        problem["data"], problem["target"] = table
    if not choice["modes"]:
        raise ValueError("Choose at least one mode.")
    steps = choice["steps"]
    return {
        "steps": steps,
        "problem": problem,
        "algorithms": {choice["algorithm"]: _algorithm(choice)},
        "modes": {name: _mode(name, choice, steps) for name in choice["modes"]},
        "estimate": True,
    }


def _algorithm(choice: Choice) -> dict[str, Any]:
    options: dict[str, Any] = {"type": choice["algorithm"]}
    if choice.usual_steps:
        return options
    if "step_size" in choice:
        absolute = choice.subject.step_size is not None
        size = choice["step_size"]
        options["step_size"] = size if absolute else f"{size:.12g}/L"
    for name in ("momentum", "damping"):
        if name in choice:
            options[name] = choice[name]
    return options


def skipped_steps(choice: Choice) -> int:
    """Return K, the number of leading steps that a late start leaves out; at least one is left."""
    steps = choice["steps"]
    return min(steps - 1, round(choice["skipped"] * steps))


def _mode(name: str, choice: Choice, steps: int) -> dict[str, Any]:
    return {
        UNROLLED: {"type": "Unrolled"},
        IMPLICIT: {"type": "Implicit"},
        ONE_STEP: {"type": "OneStep"},
        LATE_START: {"type": "Unrolled", "last": steps - skipped_steps(choice)},
        CORRECTED: {"type": "Implicit", "refine": 1},
    }[name]


def script(choice: Choice, table: tuple[str, str] | None = None) -> str:
    """Return a program that draws the figures of a choice.

    An uploaded table is read from the working folder, under the name that it had.
    """
    made = pprint.pformat(words(choice, table), width=90, sort_dicts=False)
    return SCRIPT.format(
        address=urllib.parse.urlencode(choice.address()),
        x64=choice["precision"] == FLOAT64,
        name=choice.problem,
        words=made.replace("\n", "\n    "),
    )
