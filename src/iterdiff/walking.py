"""Walk through what a function computes, equation by equation."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.core import eval_jaxpr
from jax.extend.core import Literal
from jaxtyping import PyTree

CALLS = {"jit": "jaxpr", "pjit": "jaxpr"}
"""Equations that call a function, and the parameter that holds it."""

RULES = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
"""The same, of functions with a derivative of their own."""

Run = Callable[[list], list]
"""Computes an equation's values from its inputs."""


@runtime_checkable
class Visitor(Protocol):
    """What is made of constants and of equations.

    Attributes
    ----------
    opened : dict
        The calls that are walked through, as in `CALLS`.
    """

    opened: dict[str, str]

    def given(self, value: Any) -> Any:
        """Return what stands for a constant."""
        ...

    def visit(self, run: Run, equation: Any, ins: list) -> list:
        """Return what stands for the equation's values."""
        ...


def walk(jaxpr: Any, constants: list, inputs: list, visitor: Visitor) -> list:
    """Visit the equations of a jaxpr in turn, those of functions that it calls included."""
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def value(v):
        return visitor.given(v.val) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        ins = [value(v) for v in equation.invars]
        held = visitor.opened.get(equation.primitive.name)
        if held is not None:
            inner = equation.params[held]
            outs = walk(inner.jaxpr, [visitor.given(c) for c in inner.consts], ins, visitor)
        else:
            outs = visitor.visit(partial(_run, jaxpr, equation), equation, ins)
        values.update(zip(equation.outvars, outs, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _run(jaxpr: Any, equation: Any, ins: list) -> list:
    """Return the values of an equation of a jaxpr."""
    pairs = zip(equation.invars, ins, strict=True)
    inputs = {v: value for v, value in pairs if not isinstance(v, Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(inputs), outvars=equation.outvars, eqns=[equation]
    )
    return eval_jaxpr(alone, (), *inputs.values())


def shared(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `function`, of pytrees of arrays, with what it computes twice computed once.

    The compiler does so too, but not across what it has moved out of a loop before it looks. The
    result is not for differentiation: derivatives that functions define for themselves are lost.
    """

    def call(*args):
        traced, out = jax.make_jaxpr(function, return_shape=True)(*args)
        values = walk(traced.jaxpr, traced.consts, jax.tree.leaves(args), _Sharing())
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return call


class _Sharing:
    """Compute, but for what was computed before."""

    opened = CALLS | RULES

    def __init__(self):
        self.seen: dict[tuple, tuple[list, list]] = {}

    @staticmethod
    def given(value: Any) -> Any:
        """Return a constant."""
        return value

    def visit(self, run: Run, equation: Any, ins: list) -> list:
        """Return the equation's values."""
        key = self._key(equation, ins)
        if key is None:
            return run(ins)
        if key not in self.seen:  # the inputs are kept, so that no other gets the name of one
            self.seen[key] = ins, run(ins)
        return self.seen[key][1]

    @staticmethod
    def _key(equation: Any, ins: list) -> tuple | None:
        if equation.effects:
            return None
        names = map(_name, ins)
        kinds = [v.aval for v in equation.invars]
        key = (equation.primitive, *names, *kinds, *sorted(equation.params.items()))
        try:
            hash(key)
        except TypeError:
            return None
        return key


def _name(value: Any) -> Any:
    """Return what is equal for equal inputs: of numbers their bytes, of arrays who they are."""
    if isinstance(value, jax.Array) or np.ndim(value):
        return id(value)
    number = np.asarray(value)
    return number.dtype, number.tobytes()
