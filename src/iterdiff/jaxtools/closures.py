"""Make every input of a function explicit: what a rule for derivatives needs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PyTree

from iterdiff.jaxtools import tree


def hoist(function: Callable, *examples: PyTree) -> tuple[Callable, PyTree]:
    """Return ``g, c`` with ``g(c, *args) = function(*args)``, `c` what `function` closes over.

    A rule for derivatives runs in another trace than the one that made its closures; whatever
    is traced must reach it as an argument.
    """
    closed_over, static = eqx.partition(
        eqx.filter_closure_convert(function, *examples), eqx.is_array
    )
    return (lambda c, *args: eqx.combine(c, static)(*args)), closed_over


def detach(function: Callable, *examples: PyTree, seen: dict | None = None) -> Callable:
    """Return `function` with the derivatives of its closed-over values cut.

    Functions that share `seen` share what they close over: the compiler can tell that it is one.
    """
    converted, consts = jax.closure_convert(function, *examples)
    seen = {} if seen is None else seen
    cut = [seen.setdefault(id(c), (c, jax.lax.stop_gradient(c)))[1] for c in consts]
    return lambda *args: converted(*args, *cut)


def merged(*trees: PyTree) -> tuple[list, list[Callable[[list], PyTree]]]:
    """Return the leaves of several trees, each once, and what makes each tree of them again."""
    leaves: list = []
    made = []
    for one in trees:
        mine, structure = jax.tree.flatten(one)
        places = []
        for leaf in mine:
            found = [i for i, other in enumerate(leaves) if other is leaf]
            places.append(found[0] if found else len(leaves))
            if not found:
                leaves.append(leaf)

        def again(values, places=tuple(places), structure=structure):
            return jax.tree.unflatten(structure, [values[i] for i in places])

        made.append(again)
    return leaves, made


def perturbed(inputs: Any, tangents: Any) -> tuple[list, list, Callable]:
    """Pick the leaves of `inputs` with a tangent; `fixed` puts new values in their place."""
    leaves, structure = jax.tree.flatten(inputs)
    is_zero = lambda t: isinstance(t, SymbolicZero)  # noqa: E731
    dots = jax.tree.leaves(tangents, is_leaf=is_zero)
    where = [
        i
        for i, (leaf, dot) in enumerate(zip(leaves, dots, strict=True))
        if tree.is_floating(leaf) and not is_zero(dot)
    ]

    def fixed(moving):
        new = list(leaves)
        for i, value in zip(where, moving, strict=True):
            new[i] = value
        return jax.tree.unflatten(structure, new)

    return [leaves[i] for i in where], [dots[i] for i in where], fixed
