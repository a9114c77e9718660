"""Options in words, validated by pydantic: of problems, algorithms and modes.

The options of algorithms and modes are the parameters in the signatures of their classes, so that
a new class or parameter can be named in a file without a change here.
"""

import functools
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from jaxtyping import AbstractArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

import iterdiff as itd
from iterdiff.study.suggestions import suggestion

RATIO = re.compile(r"(?P<factor>\d+\.?\d*|\.\d+)/L")
"""A step size in words: a number over the upper bound L of the spectrum."""

OPTIMAL_RATIO = "2/(L+ℓ)"
"""The step size in words that is optimal for a spectrum in [ℓ, L]; a file may write l for ℓ."""


class Options(BaseModel):
    """Options by name. An unknown key is an error that suggests the nearest known key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    python_only: ClassVar[frozenset[str]] = frozenset()
    """Options that have no form in words, such as functions."""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key in cls.python_only:
                raise unknown_key(key, "can only be set in Python; leave it out of settings.")
            if key not in cls.model_fields:
                raise unknown_key(key, f"is not known. {suggestion(key, cls.model_fields)}")
        return given


def unknown_key(key: str, text: str) -> PydanticCustomError:
    """Return the error that pydantic reports for a key that is not an option."""
    return PydanticCustomError("unknown_key", "{text}", {"key": key, "text": text})


def _number_or_ratio(value: Any) -> float | str:
    if isinstance(value, str):
        text = value.replace(" ", "").replace("l", "ℓ")
        if text == OPTIMAL_RATIO or RATIO.fullmatch(text):
            return text
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise PydanticCustomError(
        "number_or_ratio", f'Input should be a number, "c/L" with a number c, or "{OPTIMAL_RATIO}"'
    )


NumberOrRatio = Annotated[float | str, BeforeValidator(_number_or_ratio)]
"""A number, or a step size in terms of the spectrum, as a string without spaces."""


class AlgorithmOptions(Options):
    """The options of an algorithm: its class by name, its parameters, and the run's counts.

    Attributes
    ----------
    type : str
        Name of the class in ``iterdiff``.
    steps, every : int, optional
        As in `Settings`, for this algorithm only.
    """

    type: str
    steps: PositiveInt | None = None
    every: PositiveInt | None = None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the class that were given."""
        own = AlgorithmOptions.model_fields
        return {k: getattr(self, k) for k in self.model_fields_set if k not in own}


class PartOptions(Options):
    """The options of a mode or a stopping rule: its name in ``iterdiff``, and its parameters.

    Attributes
    ----------
    type : str
        Name of the class or function.
    """

    type: str

    def make(self) -> Any:
        """Return the mode, or the stopping rule."""
        given = {k: getattr(self, k) for k in self.model_fields_set if k != "type"}
        parts = {k: v.make() if isinstance(v, PartOptions) else v for k, v in given.items()}
        return getattr(itd, self.type)(**parts)

    @model_validator(mode="after")
    def _check_values(self) -> "PartOptions":
        try:
            self.make()
        except TypeError as error:
            raise ValueError(str(error)) from error
        return self


class ModeOptions(PartOptions):
    """The options of a mode."""


class StopOptions(PartOptions):
    """The options of a stopping rule."""


def algorithm_classes() -> dict[str, type[itd.Algorithm]]:
    """Return every algorithm that iterdiff exports, by name."""
    public = {name: getattr(itd, name) for name in itd.__all__}
    return {k: v for k, v in public.items() if _is_final(v, itd.Algorithm)}


def mode_makers() -> dict[str, Callable[..., itd.Mode]]:
    """Return every mode that iterdiff exports, and every function that returns one, by name."""
    public = {name: getattr(itd, name) for name in itd.__all__}
    return {k: v for k, v in public.items() if _is_final(v, itd.Mode) or _returns_mode(v)}


def _is_final(value: Any, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)


def _returns_mode(value: Any) -> bool:
    if not inspect.isfunction(value):
        return False
    returned = inspect.signature(value).return_annotation
    return inspect.isclass(returned) and issubclass(returned, itd.Mode)


@functools.cache
def any_algorithm() -> Any:
    """Return the type of the options of any algorithm, discriminated by ``type``."""
    models = [
        _from_signature(name, value, AlgorithmOptions, number=NumberOrRatio)
        for name, value in algorithm_classes().items()
    ]
    return Annotated[_union(models), Field(discriminator="type")]


@functools.cache
def any_mode() -> Any:
    """Return the type of the options of any mode, discriminated by ``type``.

    A mode that wraps another one takes the options of a mode that wraps none.
    """
    makers = mode_makers()
    wrappers = {name for name, value in makers.items() if _wraps_mode(value)}
    plain = [
        _from_signature(name, value, ModeOptions)
        for name, value in makers.items()
        if name not in wrappers
    ]
    inner = Annotated[_union(plain), Field(discriminator="type")]
    models = [_from_signature(n, makers[n], ModeOptions, inner=inner) for n in sorted(wrappers)]
    return Annotated[_union(plain + models), Field(discriminator="type")]


@functools.cache
def any_stop() -> Any:
    """Return the type of the options of any stopping rule, discriminated by ``type``."""
    public = {name: getattr(itd, name) for name in itd.__all__}
    rules = {name: v for name, v in public.items() if _is_final(v, itd.StoppingRule)}
    models = [_from_signature(name, rule, StopOptions) for name, rule in rules.items()]
    return Annotated[_union(models), Field(discriminator="type")]


def _wraps_mode(maker: Callable[..., itd.Mode]) -> bool:
    return any(_is_mode(hint) for hint in _parameters(maker).values())


def _is_mode(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, itd.Mode)


def _parameters(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotations of the parameters of a class or function, by name."""
    hints = get_type_hints(target)
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


def _from_signature(
    name: str, target: Callable[..., Any], base: type[Options], *, number: Any = float, inner=None
) -> type[Options]:
    """Return a model of the parameters of `target`.

    Parameters
    ----------
    name : str
        The only value of the option ``type``.
    target : callable
        The class or function that takes the parameters.
    base : type of Options
        The base of the model.
    number : type
        The type of the options that are real scalars.
    inner : type, optional
        The type of the options that are modes.
    """
    fields: dict[str, Any] = {"type": (Literal[name], ...)}  # pyright: ignore[reportInvalidTypeForm]
    python_only = set()
    for key, parameter in inspect.signature(target).parameters.items():
        allowed = _in_words(_parameters(target)[key], number, inner)
        required = parameter.default is parameter.empty and base is not AlgorithmOptions
        if allowed is None:
            python_only.add(key)
        else:
            fields[key] = (allowed, ...) if required else (allowed, None)
    model = create_model(name, __base__=base, __doc__=f"Options of `iterdiff.{name}`.", **fields)
    model.python_only = frozenset(python_only)
    return model


def _in_words(hint: Any, number: Any, inner: Any) -> Any:
    """Return the type of a parameter's values in settings, or None if they have no form there."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_in_words(part, number, inner) for part in get_args(hint) if part is not NoneType]
        parts = [part for part in parts if part is not None]
        parts = [part for part in parts if part is not int or number not in parts]
        return _union(parts) if parts else None
    if hint in (int, str, bool) or get_origin(hint) is Literal:
        return hint
    if hint is float or _is_real_scalar(hint):
        return number
    return inner if _is_mode(hint) else None


def _union(types: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, types)


def _is_real_scalar(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, AbstractArray) and hint.dim_str == ""
