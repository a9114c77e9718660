"""Find the operations in a function that change its derivative or end it."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

NAMES = {
    "stop_gradient": "stop_gradient",
    "round": "round",
    "floor": "floor",
    "ceil": "ceil",
    "custom_jvp_call": "custom_jvp",
    "custom_vjp_call": "custom_vjp",
    "pure_callback": "pure_callback",
}
"""Primitives that change or end a derivative, and the names under which users call them."""


def derivative_rules_in(function: Callable[[PyTree], PyTree], point: PyTree) -> tuple[str, ...]:
    """Return which operations of `NAMES` a function uses at any depth, sorted.

    Parameters
    ----------
    function : callable
        Maps one pytree of arrays to another.
    point : pytree of arrays
        Gives the shapes and dtypes at which the function is traced.
    """
    found: set[str] = set()

    def collect(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in NAMES:
                found.add(NAMES[equation.primitive.name])
            for parameter in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    collect(inner)

    collect(jax.make_jaxpr(function)(point).jaxpr)
    return tuple(sorted(found))
