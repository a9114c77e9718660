"""Controls: what a reader can set, in which range, and how it is written in the address."""

import abc
import dataclasses
import math
from collections.abc import Collection
from typing import Any

from iterdiff.study.suggestions import suggestion


@dataclasses.dataclass(frozen=True)
class Control(abc.ABC):
    """One setting.

    Attributes
    ----------
    name : str
        Its name in the address.
    label : str
        What stands beside it.
    default : object
        Its value in an address without it.
    """

    name: str
    label: str
    default: Any

    @abc.abstractmethod
    def parse(self, text: str) -> Any:
        """Return the value that a text of the address gives.

        Raises
        ------
        ValueError
            If it is none. The message names the setting and what it may be.
        """

    def text(self, value: Any) -> str:
        """Return a value as the address holds it."""
        return str(value)

    def from_widget(self, value: Any) -> Any:
        """Return what a widget holds as a value of the control."""
        return value


@dataclasses.dataclass(frozen=True)
class Number(Control):
    """A real number between two bounds.

    Attributes
    ----------
    low, high, step : float
        The bounds, and the distance of two neighbouring values.
    """

    low: float
    high: float
    step: float

    def parse(self, text: str) -> float:
        """Return a number within the bounds."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            raise ValueError(
                f"`{self.name}` must be a number from {self.low:g} to {self.high:g}, not {text!r}."
            )
        return value

    def text(self, value: float) -> str:
        """Return the shortest text that gives the value again."""
        return f"{value:.12g}"


@dataclasses.dataclass(frozen=True)
class Scale(Control):
    """A number from a list, for ranges over orders of magnitude.

    Attributes
    ----------
    values : tuple of float or of int
        Ascending.
    """

    values: tuple[float | int, ...]

    def parse(self, text: str) -> float | int:
        """Return the value of the list."""
        for value in self.values:
            if self.text(value) == text:
                return value
        known = ", ".join(map(self.text, self.values))
        raise ValueError(f"`{self.name}` must be one of {known}, not {text!r}.")

    def text(self, value: float | int) -> str:
        """Return the number without needless digits."""
        return f"{value:g}"


@dataclasses.dataclass(frozen=True)
class Word(Control):
    """One word of several.

    Attributes
    ----------
    words : tuple of str
        What is allowed.
    """

    words: tuple[str, ...]

    def parse(self, text: str) -> str:
        """Return an allowed word."""
        if text not in self.words:
            raise ValueError(f"`{self.name}` must not be {text!r}. {suggestion(text, self.words)}")
        return text


@dataclasses.dataclass(frozen=True)
class Words(Word):
    """Several words of a list, in its order."""

    def parse(self, text: str) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the allowed words; an empty text gives none."""
        given = [word for word in text.split(",") if word]
        for word in given:
            super().parse(word)
        return self.from_widget(given)

    def from_widget(self, value: Collection[str]) -> tuple[str, ...]:
        """Return the chosen words in the order of the list."""
        return tuple(word for word in self.words if word in value)

    def text(self, value: tuple[str, ...]) -> str:
        """Return the words, separated by commas."""
        return ",".join(value)


@dataclasses.dataclass(frozen=True)
class Flag(Control):
    """Yes or no."""

    def parse(self, text: str) -> bool:
        """Return whether the text is 1."""
        if text not in ("0", "1"):
            raise ValueError(f"`{self.name}` must be 0 or 1, not {text!r}.")
        return text == "1"

    def text(self, value: bool) -> str:
        """Return 0 or 1."""
        return str(int(value))
