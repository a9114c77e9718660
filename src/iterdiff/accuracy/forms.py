"""The forms of a given derivative: Jacobian, ``J v``, ``J^T w``, or the gradient of a loss."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import as_array, is_number
from iterdiff.jaxtools.complex_pairs import from_pairs
from iterdiff.jaxtools.tree import floating_part
from iterdiff.problems.checks import checked_loss
from iterdiff.problems.layout import Layout, Seen, conjugated, is_unknown, paired


class Apply(NamedTuple):
    """Takes the derivative in question of a map ``theta -> x``.

    Attributes
    ----------
    of : callable
        ``of(solution, theta)`` returns the derivative of the map `solution`.
    transposes : bool
        Whether it is taken in reverse mode.
    """

    of: Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]
    transposes: bool

    def seen_by(self, see: Callable[[PyTree], PyTree]) -> "Apply":
        """Return what takes the derivative of ``see(solution(theta))``."""

        def of(solution, theta):
            return self.of(lambda there: see(solution(there)), theta)

        return Apply(of, self.transposes)

    def __call__(self, solution: Callable[[PyTree], PyTree], theta: PyTree) -> PyTree:
        """Return the derivative of `solution` at `theta`."""
        return self.of(solution, theta)


class Form(NamedTuple):
    """A derivative as the caller has it, with what tells of which form it is."""

    derivative: PyTree
    tangent: PyTree
    cotangent: PyTree
    loss: Callable | None

    def arrays(self) -> "Form":
        """Return the form with its numbers as arrays."""

        def numbers(name: str, given: PyTree) -> PyTree:
            return jax.tree.map(
                lambda leaf: as_array(f"`{name}`", leaf) if is_number(leaf) else leaf, given
            )

        return Form(
            jax.tree.map(lambda leaf: as_array("`derivative`", leaf), self.derivative),
            numbers("tangent", self.tangent),
            numbers("cotangent", self.cotangent),
            self.loss,
        )

    def seen(self, layout: Layout) -> "Form":
        """Return the form for the unknowns and parameters that we compute with.

        Raises
        ------
        ValueError
            If the derivative is a complex Jacobian: its layout is not unique.
        """
        if self.tangent is None and self.cotangent is None and self.loss is None:
            if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(self.derivative)):
                raise ValueError(
                    "`derivative` is a complex Jacobian, which has several layouts; pass its "
                    "product with a `tangent` or a `cotangent`, or the gradient of a `loss`."
                )
        tangent, cotangent = _plain(self.tangent), _plain(conjugated(self.cotangent))
        reverse = self.cotangent is not None or self.loss is not None
        derivative = _plain(conjugated(self.derivative) if reverse else self.derivative)
        loss = Seen(self.loss, layout) if callable(self.loss) else self.loss
        return Form(derivative, tangent, cotangent, loss)


def _plain(given: PyTree) -> PyTree:
    return paired(eqx.filter(given, is_unknown))


def as_caller_has_it(layout: Layout | None, derivative: PyTree, cotangent, loss) -> PyTree:
    """Return a derivative as the caller has it: complex where theta, or `x`, is."""
    if layout is None:
        return derivative
    derivative = from_pairs(derivative)
    return derivative if cotangent is None and loss is None else conjugated(derivative)


def applied(x: PyTree, theta: PyTree, tangent, cotangent, loss) -> Apply:
    """Return a function that takes the requested derivative of a map ``theta -> x``."""
    given = [k for k in (tangent, cotangent, loss) if k is not None]
    if len(given) > 1:
        raise ValueError(
            "`tangent`, `cotangent` and `loss` exclude each other; pass at most one of them."
        )
    floating, rest = floating_part(theta)
    if tangent is not None:
        direction = _matching("tangent", floating_part(tangent)[0], floating, "theta")
        return Apply(lambda solution, at: jax.jvp(solution, (at,), (direction,))[1], False)
    if cotangent is not None:
        w = _matching("cotangent", cotangent, x, "x")
        return Apply(lambda solution, at: jax.vjp(solution, at)[1](w)[0], True)
    if loss is not None:
        f = checked_loss(loss, x, theta)
        return Apply(
            lambda solution, at: jax.grad(
                lambda there: f(solution(there), eqx.combine(there, rest))
            )(at),
            True,
        )
    reverse = tree.size(x) < tree.size(floating)
    jacobian = jax.jacrev if reverse else jax.jacfwd
    return Apply(lambda solution, at: jacobian(solution)(at), reverse)


def _matching(name: str, given: PyTree, like: PyTree, of: str) -> PyTree:
    if jax.tree.structure(given) != jax.tree.structure(like):
        raise ValueError(
            f"`{name}` must have the structure of `{of}`'s floating leaves, "
            f"{jax.tree.structure(like)}, not {jax.tree.structure(given)}."
        )

    def cast(u, v):
        if jnp.shape(u) != jnp.shape(v):
            raise ValueError(f"`{name}` must have the shapes of `{of}`: {v.shape}.")
        if jnp.iscomplexobj(u):
            raise TypeError(f"`{name}` is complex, but `{of}` is real; pass its real part.")
        return jnp.asarray(u, v.dtype)

    return jax.tree.map(cast, given, like)


def check_layout(apply: Apply, x: PyTree, theta: PyTree, derivative: PyTree) -> None:
    """Raise unless `derivative` has the layout of what `apply` returns.

    Raises
    ------
    TypeError
        If a leaf is not real.
    ValueError
        If shapes differ; the message gives the expected ones.
    """
    floating = floating_part(theta)[0]
    expected = eqx.filter_eval_shape(lambda there: apply(lambda _: x, there), floating)
    shapes = [leaf.shape for leaf in jax.tree.leaves(expected)]
    given = [jnp.shape(leaf) for leaf in jax.tree.leaves(derivative)]
    if shapes != given:
        raise ValueError(
            f"`derivative` has leaves of shapes {given}, but must have {shapes}: a Jacobian in the "
            "layout of jax.jacobian, with `tangent` like `x`, with `cotangent` or `loss` like the "
            "floating leaves of `theta`."
        )
    for leaf in jax.tree.leaves(derivative):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(f"`derivative` must be real, but a leaf is {jnp.result_type(leaf)}.")
