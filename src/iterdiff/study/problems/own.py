"""A problem of the user's own, from a function that a file names."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from iterdiff.study.config import PosedProblem
from iterdiff.study.named import load_run
from iterdiff.study.settings import AnyAlgorithm, AnyMode, ProblemOptions, Settings

DEFAULT_STEPS = 100
"""Steps of a run of the user's own."""


class OwnProblem(ProblemOptions):
    """A function of the user's own; the other options are its keyword arguments.

    Attributes
    ----------
    function : str
        ``package.module:function`` or ``folder/file.py:function``. It returns a tuple (problem,
        algorithm, x0, theta) or (problem, x0, theta), or a mapping with these keys and with
        ``args``, ``reference``, ``spectrum`` and ``title`` besides.
    """

    model_config = ConfigDict(extra="allow")
    function: str

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        """Accept every key: `load_run` compares them with the function's parameters."""
        return given

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem that the function returns."""
        run = load_run(self.function, self.model_extra)
        posed = PosedProblem(
            problem=run.problem,
            x0=run.x0,
            theta=run.theta,
            title=run.title or self.function,
            spectrum=run.spectrum,
            reference=run.reference,
            args=run.args,
            algorithm=run.algorithm,
        )
        return (posed,)


class OwnSettings(Settings[OwnProblem]):
    """The settings of a study of the user's own problem; algorithms may come with the problem."""

    steps: PositiveInt = DEFAULT_STEPS
    algorithms: dict[str, AnyAlgorithm] = Field(default_factory=dict)
    modes: dict[str, AnyMode] = Field(min_length=1)


def own_settings(modes: Mapping[str, Any]) -> OwnSettings:
    """Return the settings that a study of the user's own starts from."""
    given = {"study": "own", "steps": DEFAULT_STEPS, "algorithms": {}, "modes": modes}
    return OwnSettings(problem=OwnProblem(function=""), **given)
