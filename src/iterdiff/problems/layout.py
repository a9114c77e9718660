"""Unknowns and parameters as users have them, and as the rest of the package computes with them.

We compute with real arrays of 32 bits at least. A complex array becomes a pair of real ones, a
narrower one is converted to float32, and leaves of `x0` that are no floating arrays are set aside.
The user's functions receive, and return, everything as it was. These conversions are part of the
traced program, so that JAX's convention for complex derivatives holds by itself.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from iterdiff.jaxtools.arguments import is_number
from iterdiff.jaxtools.complex_pairs import from_pairs, is_pair, to_pairs

MIN_BITS = 32
"""The narrowest dtype in which we compute: linear solves have no routines for narrower ones."""


def is_unknown(leaf: Any) -> bool:
    """Return whether a leaf is floating, real or complex: one can differentiate in it."""
    if isinstance(leaf, float | complex):
        return True
    return is_number(leaf) and jnp.issubdtype(getattr(leaf, "dtype", np.bool_), jnp.inexact)


def is_narrow(dtype: Any) -> bool:
    """Return whether a dtype is floating, of fewer than `MIN_BITS` bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < MIN_BITS


def _is_plain(leaf: Any) -> bool:
    return not (jnp.iscomplexobj(leaf) or is_narrow(jnp.result_type(leaf)))


def paired(given: PyTree) -> PyTree:
    """Return a pytree whose floating leaves are real and wide enough; the others stay."""

    def convert(leaf):
        if not is_unknown(leaf) or _is_plain(leaf):
            return leaf
        return leaf if jnp.iscomplexobj(leaf) else jnp.asarray(leaf, jnp.float32)

    return to_pairs(jax.tree.map(convert, given))


def conjugated(given: PyTree) -> PyTree:
    """Return the complex conjugate of all floating leaves.

    JAX pairs a cotangent w with a tangent v as the real part of their product, without a
    conjugation. So the cotangents of the real and the imaginary part are those of conj(w).
    """
    return jax.tree.map(lambda leaf: jnp.conj(leaf) if is_unknown(leaf) else leaf, given)


class Layout(eqx.Module):
    """How the unknowns of a call are laid out in the user's `x`.

    Attributes
    ----------
    rest : pytree
        Like `x`: the leaves that are no unknowns, and None in place of those that are.
    dtypes : tuple of dtypes
        The dtypes of the unknowns, in the order of the leaves.
    """

    rest: PyTree
    dtypes: tuple[np.dtype, ...] = eqx.field(static=True)
    _structure: Any = eqx.field(static=True)

    def __init__(self, x: PyTree):
        unknowns, self.rest = eqx.partition(x, is_unknown)
        leaves, self._structure = jax.tree.flatten(unknowns)
        self.dtypes = tuple(np.dtype(leaf.dtype) for leaf in leaves)

    @property
    def only_cast(self) -> bool:
        """Whether `x` differs from the unknowns in dtypes alone."""
        return not self.has_complex and not jax.tree.leaves(self.rest)

    @property
    def has_complex(self) -> bool:
        """Whether an unknown is complex."""
        return any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in self.dtypes)

    def describes(self, x: PyTree) -> bool:
        """Return whether a pytree has the structure of `x`, as far as unknowns are concerned."""
        return jax.tree.structure(eqx.filter(x, is_unknown)) == self._structure

    def split(self, x: PyTree) -> PyTree:
        """Return the unknowns of a pytree like `x`."""
        return paired(eqx.filter(x, is_unknown))

    def value(self, x: PyTree) -> PyTree:
        """Return a function's value like `x` as one like the unknowns.

        Real numbers in place of complex ones count; narrow ones stay, and are refused later.
        """
        unknowns = eqx.filter(x, is_unknown)
        leaves, structure = jax.tree.flatten(unknowns)
        if structure == self._structure and self.has_complex:
            leaves = [
                jnp.asarray(leaf, jnp.promote_types(dtype, leaf.dtype))
                if jnp.issubdtype(dtype, jnp.complexfloating) and hasattr(leaf, "dtype")
                else leaf
                for leaf, dtype in zip(leaves, self.dtypes, strict=True)
            ]
        return to_pairs(jax.tree.unflatten(structure, leaves))

    def joined(self, plain: PyTree) -> PyTree:
        """Return what a function of the user's receives in place of the unknowns."""
        return eqx.combine(from_pairs(plain), self.rest)

    def restored(self, plain: PyTree) -> PyTree:
        """Return the unknowns as a pytree like `x`, in its dtypes."""
        leaves, structure = jax.tree.flatten(from_pairs(plain))
        cast = [leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)]
        return eqx.combine(jax.tree.unflatten(structure, cast), self.rest)

    def flags(self, plain: PyTree[Bool[Array, "..."]]) -> PyTree[Bool[Array, "..."]]:
        """Return flags of the unknowns: one for the real and the imaginary part together."""
        return jax.tree.map(
            lambda leaf: leaf.real | leaf.imag if is_pair(leaf) else leaf, plain, is_leaf=is_pair
        )


def layout_of(x: PyTree, theta: PyTree) -> Layout | None:
    """Return the layout of a call; None if its arguments are what we compute with."""
    leaves = jax.tree.leaves(x)
    given = [leaf for leaf in jax.tree.leaves(theta) if is_unknown(leaf)]
    if all(is_unknown(leaf) for leaf in leaves) and all(map(_is_plain, (*leaves, *given))):
        return None
    return Layout(x)


class Seen(eqx.Module):
    """A function of the user's that is called with what we compute with.

    Attributes
    ----------
    function : callable
        ``function(x, ..., theta)``, or ``function(theta)``.
    layout : Layout
        How `x` is laid out.
    of_x : bool
        Whether the first input is `x`.
    like_x : bool
        Whether the function returns a pytree like `x`.
    """

    function: Callable[..., Any]
    layout: Layout
    of_x: bool = eqx.field(static=True, default=True)
    like_x: bool = eqx.field(static=True, default=False)

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Return the value, converted if it is like `x`."""
        value = self.function(*self._given(inputs))
        return self.layout.value(value) if self.like_x else value

    def aux(self, *inputs: PyTree) -> PyTree:
        """Return the auxiliary output, see `Bound`."""
        return self.function.aux(*self._given(inputs))  # pyright: ignore[reportFunctionMemberAccess]

    def _given(self, inputs: tuple) -> tuple:
        *others, theta = inputs
        if self.of_x:
            others[0] = self.layout.joined(others[0])
        return *others, from_pairs(theta)
