"""Functions with their compiled derivatives, as `check_derivative` compares them."""

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.by_content import ByContent


class DifferentiableMap:
    """A function of one pytree of floating arrays, with its derivative in both directions.

    Each derivative is compiled once, and values come from the program of the forward derivative.

    Parameters
    ----------
    function : callable
        The function. JAX can trace it.
    """

    def __init__(self, function: Callable[[PyTree], PyTree]):
        self.function = function
        self._jvp = ByContent(lambda p, v: jax.jvp(function, (p,), (v,)))
        self._vjp = ByContent(lambda p, w: jax.vjp(function, p)[1](w)[0])

    def value(self, point: PyTree) -> PyTree:
        """Return the value at `point`."""
        return self._jvp(point, tree.zeros_like(point))[0]

    def forward(self, point: PyTree, direction: PyTree) -> PyTree:
        """Return the directional derivative at `point`, in forward mode."""
        return self._jvp(point, direction)[1]

    def reverse(self, point: PyTree, cotangent: PyTree) -> PyTree:
        """Return the transposed derivative at `point` applied to `cotangent`, in reverse mode."""
        return self._vjp(point, cotangent)


class ScalarMap:
    """A function that returns a scalar, with its gradient from reverse mode.

    A function with a `jax.custom_vjp` has no other derivative.

    Parameters
    ----------
    function : callable
        The function. JAX can trace it.
    """

    def __init__(self, function: Callable[[PyTree], PyTree]):
        self.function = function
        self._value_and_grad = ByContent(jax.value_and_grad(function))

    def value(self, point: PyTree) -> PyTree:
        """Return the value at `point`."""
        return self._value_and_grad(point)[0]

    def forward(self, point: PyTree, direction: PyTree) -> PyTree:
        """Return the directional derivative at `point`, from the gradient."""
        return tree.dot(self._value_and_grad(point)[1], direction)
