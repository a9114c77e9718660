"""Linear functions of which only the transpose is known: reverse mode works, forward raises."""

from collections.abc import Callable
from typing import Any, NoReturn

import equinox as eqx
import equinox.internal as eqxi
import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.jaxpr import does


def custom_rules_in(function: Callable, *args: PyTree) -> frozenset[str]:
    """Return which of "custom_vjp" and "custom_jvp" a function uses, at any depth.

    Parameters
    ----------
    function : callable
        Returns a pytree of arrays.
    args : pytree
        Its arguments; arrays give shapes and dtypes only.
    """
    arrays, static = eqx.partition(args, eqx.is_array)
    shapes = jax.tree.map(jax.typeof, arrays)
    jaxpr = jax.make_jaxpr(lambda given: function(*eqx.combine(given, static)))(shapes).jaxpr
    rules = {"custom_vjp": "custom_vjp_call", "custom_jvp": "custom_jvp_call"}
    return frozenset(name for name, primitive in rules.items() if does(jaxpr, (primitive,)))


def linearize(function: Callable[[PyTree], PyTree], x: PyTree) -> tuple[PyTree, Callable]:
    """Return ``function(x)`` and the product with its Jacobian at `x`, as `jax.linearize` does.

    Where the function has a reverse rule only, the product is the transpose of the one that this
    rule gives; JAX cannot differentiate it.
    """
    if "custom_vjp" not in custom_rules_in(function, x):
        return jax.linearize(function, x)
    value, pull = jax.vjp(function, x)
    push = jax.linear_transpose(lambda w: pull(w)[0], value)
    return value, lambda v: push(v)[0]


def _refuse(*_: Any, message: str) -> NoReturn:
    raise TypeError(message)


_refused = Primitive("refused")
_refused.def_abstract_eval(lambda aval, **_: aval)
_refused.def_impl(_refuse)
mlir.register_lowering(_refused, _refuse)
batching.defvectorized(_refused)


def reverse_only(
    transposed: Callable[[PyTree], PyTree], tangents: PyTree, like: PyTree, message: str
) -> PyTree:
    r"""Return ``M v`` for a linear map of which only ``w -> M^T w`` is known.

    JAX can transpose the result, as reverse mode does. Its value does not exist: a program that
    needs it cannot be compiled. The map is part of a larger one that JAX takes for a linear solve,
    :math:`(v, t) \mapsto (v, M v)`, because such a solve is told its transpose.

    Parameters
    ----------
    transposed : callable
        ``transposed(w)`` returns ``M^T w``, like `tangents`. It closes over nothing that is
        differentiated (see `first_order_only`).
    tangents : pytree of arrays
        ``v``.
    like : pytree of arrays
        Gives the structure, shapes and dtypes of the result.
    message : str
        What the TypeError says if the value is needed.
    """
    both = (tangents, tree.zeros_like(like))

    def transposed_solve(_, cotangents):
        own, w = tree.from_vector(cotangents, both)
        return tree.to_vector((tree.add(own, transposed(w)), both[1]))

    solved = jax.lax.custom_linear_solve(
        lambda v: v,
        tree.to_vector(both),
        lambda _, v: _refused.bind(v, message=message),
        transposed_solve,
    )
    return tree.from_vector(solved, both)[1]


def first_order_only(inputs: PyTree, message: str) -> PyTree:
    """Return `inputs`; differentiating them raises a RuntimeError with this message."""
    return eqxi.nondifferentiable(inputs, msg=message)
