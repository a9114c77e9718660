"""A user's functions with the data and the auxiliary outputs that they may have."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

DATA_NAME = "args"
"""A parameter of this name receives the data, even if it has a default."""


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
    if isinstance(function, Bound):
        return has_room(function.function, inputs)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function without a signature, for example of a C library
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    following = positional[inputs : inputs + 1]
    return any(p.default is p.empty or p.name == DATA_NAME for p in following)


def bind(function: Callable, inputs: int, data: PyTree) -> Callable:
    """Return `function` with `data` as its last argument, if it has room for it."""
    if not has_room(function, inputs):
        return function
    if isinstance(function, Bound):
        return Bound(function.function, (data,), function.has_aux)
    return Bound(function, (data,))
