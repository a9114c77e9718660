"""A user's functions with the data and the auxiliary outputs that they may have."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

DATA_NAME = "args"
"""A parameter of this name receives the data, even if it has a default."""

IMPLICIT = "__iterdiff_implicit__"
"""Attribute of the functions that `iterdiff.implicit` decorates: ``solver(x0, theta)``."""


def is_implicit(function: Any) -> bool:
    """Return whether `iterdiff.implicit` decorates a function."""
    return callable(function) and bool(getattr(function, IMPLICIT, False))


class Bound(eqx.Module):
    """A function with data as its last argument, or with an auxiliary output, or both.

    Attributes
    ----------
    function : callable
        ``function(*inputs, *data)`` returns a value, or with `has_aux` a pair ``(value, aux)``.
    data : tuple of pytrees
        Empty, or one pytree.
    has_aux : bool
    """

    function: Callable[..., Any]
    data: tuple = ()
    has_aux: bool = eqx.field(static=True, default=False)

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Return the value."""
        return self._both(*inputs)[0] if self.has_aux else self.function(*inputs, *self.data)

    def aux(self, *inputs: PyTree) -> PyTree:
        """Return the auxiliary output."""
        return self._both(*inputs)[1]

    def _both(self, *inputs: PyTree) -> tuple[PyTree, PyTree]:
        result = self.function(*inputs, *self.data)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                "with `has_aux=True` the function must return a pair (value, aux), not "
                f"{result!r}; return both, or drop `has_aux`"
            )
        return result


def has_room(function: Callable, inputs: int) -> bool:
    """Whether `function` takes data after its positional `inputs`.

    It does if its next positional parameter has no default or is called ``args``, or if it takes
    any number of positional arguments.
    """
    following = _parameter_after(function, inputs)
    if following is None:
        return False
    variadic = following.kind is following.VAR_POSITIONAL
    return variadic or following.default is following.empty or following.name == DATA_NAME


def lacks_data(function: Callable, inputs: int) -> bool:
    """Whether `function` cannot be called without data after its positional `inputs`."""
    if isinstance(function, Bound) and function.data:
        return False
    following = _parameter_after(function, inputs)
    if following is None:
        return False
    return following.kind is not following.VAR_POSITIONAL and following.default is following.empty


def _parameter_after(function: Callable, inputs: int) -> inspect.Parameter | None:
    """Return the positional parameter after the first `inputs`, or the one that takes any number.

    A function without a signature, for example of a C library, has none.
    """
    if isinstance(function, Bound):
        return _parameter_after(function.function, inputs)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return parameter
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return None
        if not inputs:
            return parameter
        inputs -= 1
    return None


def bind(function: Callable, inputs: int, data: PyTree) -> Callable:
    """Return `function` with `data` as its last argument, if it has room for it."""
    if not has_room(function, inputs):
        return function
    if isinstance(function, Bound):
        return Bound(function.function, (data,), function.has_aux)
    return Bound(function, (data,))
