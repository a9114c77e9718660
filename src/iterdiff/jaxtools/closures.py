"""Functions with every input explicit, and rules for their derivatives."""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.complex_pairs import is_real_primitive, joined_parts, real_parts

JAX_KEEPS_RULES_IN_SCANS = jax.__version_info__ >= (0, 12)
"""Earlier versions drop the rule of a `jax.custom_jvp` function inside a scan that is
differentiated twice, if the function's inputs depend on the loop: they differentiate its body."""


def hoist(function: Callable, *examples: PyTree) -> tuple[Callable, PyTree]:
    """Return ``g, c`` such that ``g(c, *args) = function(*args)``.

    The list `c` holds the arrays that `function` closes over. A rule for derivatives runs in
    another trace than the one that made the closure, so that traced values have to reach it as
    arguments.
    """
    if isinstance(function, types.FunctionType) and not _holds_values(function):
        return (lambda _, *args: function(*args)), []
    closed, shapes, static = eqx.filter_make_jaxpr(function)(*examples)
    jaxpr, count = without_constants(closed), len(closed.in_avals)
    structure = jax.tree.structure(shapes)

    def converted(closed_over: list, *args: PyTree) -> PyTree:
        arrays = jax.tree.leaves(eqx.filter(args, eqx.is_array))
        assert len(arrays) == count
        found = eval_jaxpr(jaxpr, closed_over, *arrays)
        return eqx.combine(jax.tree.unflatten(structure, found), static)

    return converted, list(closed.consts)


def without_constants(closed: Any) -> Any:
    """Return a closed jaxpr for `eval_jaxpr`, without the values of its constants.

    They would outlive their trace, or be kept alive with a program. From JAX 0.12 on, a jaxpr is
    its own closed one.
    """
    jaxpr = closed.jaxpr
    return jaxpr.with_consts([]) if hasattr(jaxpr, "with_consts") else jaxpr


def _holds_values(function: types.FunctionType) -> bool:
    """Return whether a function has values of its own: in its closure, or as defaults."""
    held = function.__closure__, function.__defaults__, function.__kwdefaults__
    return any(value is not None for value in held)


def detach(function: Callable, *examples: PyTree, seen: dict | None = None) -> Callable:
    """Return `function` without derivatives in the values that it closes over.

    Functions that are given the same `seen` share these values, so that the compiler recognises
    work that they have in common.
    """
    converted, closed_over = hoist(function, *examples)
    seen = {} if seen is None else seen
    cut = jax.tree.map(
        lambda c: seen.setdefault(id(c), (c, jax.lax.stop_gradient(c)))[1], closed_over
    )
    return lambda *args: converted(cut, *args)


def merge(*trees: PyTree) -> tuple[list, list[Callable[[list], PyTree]]]:
    """Return the distinct leaves of several trees, and for each tree a function to rebuild it."""
    leaves: list = []
    rebuilders = []
    for one in trees:
        own_leaves, structure = jax.tree.flatten(one)
        places = []
        for leaf in own_leaves:
            found = [i for i, other in enumerate(leaves) if other is leaf]
            places.append(found[0] if found else len(leaves))
            if not found:
                leaves.append(leaf)

        def rebuild(values, places=tuple(places), structure=structure):
            return jax.tree.unflatten(structure, [values[i] for i in places])

        rebuilders.append(rebuild)
    return leaves, rebuilders


class Perturbed(NamedTuple):
    """The floating leaves of some inputs that a derivative is taken in.

    Attributes
    ----------
    inputs : pytree
        All inputs.
    primals, tangents : tuple of arrays
        The perturbed leaves, and their tangents.
    places : tuple of int
        Their places among the leaves of `inputs`.
    """

    inputs: PyTree
    primals: tuple
    tangents: tuple
    places: tuple[int, ...]

    @classmethod
    def of(cls, inputs: PyTree, tangents: PyTree) -> "Perturbed":
        """Find the leaves whose tangent is not a symbolic zero; an empty leaf cannot change."""

        def is_zero(leaf):
            return isinstance(leaf, SymbolicZero)

        leaves = jax.tree.leaves(inputs), jax.tree.leaves(tangents, is_leaf=is_zero)
        found = [
            (primal, tangent, place)
            for place, (primal, tangent) in enumerate(zip(*leaves, strict=True))
            if tree.is_floating(primal) and primal.size and not is_zero(tangent)
        ]
        moved, directions, places = zip(*found, strict=True) if found else ((), (), ())
        return cls(inputs, moved, directions, places)

    def all_tangents(self) -> PyTree:
        """Return the tangents of all inputs, with zeros in the places that are not perturbed."""
        leaves, structure = jax.tree.flatten(zero_tangent(self.inputs))
        for place, tangent in zip(self.places, self.tangents, strict=True):
            leaves[place] = tangent
        return jax.tree.unflatten(structure, leaves)

    def rebuild(self, primals: Any) -> PyTree:
        """Return the inputs with other values in the perturbed places."""
        leaves, structure = jax.tree.flatten(self.inputs)
        for place, value in zip(self.places, primals, strict=True):
            leaves[place] = value
        return jax.tree.unflatten(structure, leaves)


Rule = Callable[[Callable, Perturbed, PyTree], tuple[PyTree, PyTree]]
"""``rule(call, perturbed, constants)`` returns the value and its tangent. The rule takes whatever
it differentiates of the value from ``call(inputs, constants)``, for derivatives of higher order."""


def with_jvp(
    function: Callable[[PyTree, PyTree], PyTree], inputs: PyTree, rule: Rule, constants: PyTree = ()
) -> PyTree:
    """Return ``function(inputs, constants)``; JAX differentiates it in `inputs` by `rule`.

    Parameters
    ----------
    function : callable
        ``function(inputs, constants)`` returns a pytree of arrays. It closes over no traced value,
        see `hoist`.
    inputs : pytree of arrays
        What is differentiated in.
    rule : callable
        ``rule(call, perturbed, constants)`` returns the value and its tangent, which is linear in
        ``perturbed.tangents``. It is called only if some input is perturbed.
    constants : pytree of arrays
        Inputs without a derivative.

    Notes
    -----
    Before JAX 0.12, the function is wrapped in a `jax.checkpoint` that saves everything real: it
    changes no result and recomputes nothing real, but keeps the rule alive inside a scan (see
    `JAX_KEEPS_RULES_IN_SCANS`).
    """
    call = jax.custom_jvp(_batched_as_inputs(function))

    def jvp(primals, tangents):
        perturbed = Perturbed.of(primals[0], tangents[0])
        if not perturbed.places:
            value = shielded(*primals)
            return value, zero_tangent(value)
        return rule(shielded, perturbed, primals[1])

    call.defjvp(jvp, symbolic_zeros=True)
    shielded = call if JAX_KEEPS_RULES_IN_SCANS else _saving_everything(call)
    return shielded(inputs, constants)


def attach_jvp(
    value: PyTree,
    inputs: PyTree,
    rule: Callable[..., PyTree],
    constants: PyTree = None,
) -> PyTree:
    """Return `value`, with the derivative in `inputs` that ``rule(value, perturbed)`` gives.

    Parameters
    ----------
    value : pytree of arrays
        Its own derivative is cut.
    inputs : pytree of arrays
        What `value` depends on, values that functions close over included (see `hoist`).
    rule : callable
        ``rule(value, perturbed)`` returns the tangent of `value`. The `value` that it is given
        carries the derivative itself, for derivatives of higher order.
    constants : pytree of arrays, optional
        A third argument of the rule, without a derivative.
    """

    def rule_with_value(call, perturbed, given):
        value = call(perturbed.inputs, given)
        if constants is None:
            return value, rule(value, perturbed)
        return value, rule(value, perturbed, given[1])

    given = jax.lax.stop_gradient((value, constants))
    return with_jvp(lambda _, given: given[0], inputs, rule_with_value, given)


def nan_derivative_where(failed: Bool[Array, ""], a: PyTree, besides: PyTree = None) -> PyTree:
    """Return `a`; where `failed` holds, every derivative of its floating leaves is NaN.

    Parameters
    ----------
    failed : bool
        Whether the value is meaningless, so that it has no derivative.
    a : pytree
        Returned unchanged; leaves that are no floating arrays pass through.
    besides : pytree of floating arrays
        Further inputs in which the derivative is NaN where `failed` holds, and zero elsewhere.
    """
    floating, rest = tree.floating_part(a)

    def rule(call, perturbed, failed):
        # Products, because the transpose of a selection would give zero, not NaN.
        through, extra = jnp.where(failed, jnp.nan, 1.0), jnp.where(failed, jnp.nan, 0.0)
        own, other = perturbed.all_tangents()
        total = sum(jnp.sum(v).astype(extra.dtype) for v in jax.tree.leaves(other))

        def tangent(v):
            return through.astype(v.dtype) * v + (extra * total).astype(v.dtype)

        return call(perturbed.inputs, failed), jax.tree.map(tangent, own)

    out = with_jvp(lambda inputs, _: inputs[0], (floating, besides), rule, failed)
    return eqx.combine(out, rest)


def zero_tangent(a: PyTree) -> PyTree:
    """Return zeros in the tangent space of `a`."""

    def zero(leaf):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return jnp.zeros_like(leaf)
        return manual_axes.varying_as(leaf, np.zeros(jnp.shape(leaf), jax.dtypes.float0))

    return jax.tree.map(zero, a)


def _batched_as_inputs(function: Callable[[PyTree, PyTree], PyTree]) -> Callable:
    """Return ``function(inputs, constants)`` such that `vmap` over inputs batches the value, too.

    JAX gives a `jax.custom_jvp` function inside another transformation a spurious axis under
    ``vmap`` if the tangent is batched and the value, which may not depend on its inputs, is not.
    """

    @jax.custom_batching.custom_vmap
    def tied(value: PyTree, inputs: PyTree) -> PyTree:
        del inputs
        return value

    @tied.def_vmap
    def _(size: int, in_batched: list, value: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        def spread(leaf, batched):
            return leaf if batched else jnp.broadcast_to(leaf, (size, *jnp.shape(leaf)))

        value = jax.tree.map(spread, value, in_batched[0])
        return tied(value, inputs), jax.tree.map(lambda _: True, value)

    return lambda inputs, constants: tied(function(inputs, constants), inputs)


def _saving_everything(function: Callable) -> Callable:
    def of_parts(parts, structure):
        return function(*jax.tree.unflatten(structure, joined_parts(parts)))

    options = {"policy": is_real_primitive, "prevent_cse": False}
    call = jax.checkpoint(of_parts, static_argnums=1, **options)

    def shielded(*inputs):
        leaves, structure = jax.tree.flatten(inputs)
        return call(real_parts(leaves), structure)

    return shielded
