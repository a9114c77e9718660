"""Walk through what a function computes, equation by equation."""

import math
from collections.abc import Callable, Iterator
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


def flops(function: Callable, *examples: PyTree) -> int:
    """Return the work of ``function(*examples)``; a ``while`` loop counts as one round."""
    return flops_of(jax.make_jaxpr(function)(*examples).jaxpr)


def flops_of(jaxpr: Any) -> int:
    """Return the work of a jaxpr."""
    return sum(flops_of_equation(equation) for equation in jaxpr.eqns)


def flops_of_equation(equation: Any) -> int:
    """Return the work of one equation of a jaxpr."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    within = [flops_of(inner) for inner in _inner(equation)]
    if within:
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        return rounds * sum(within)
    return sum(getattr(v.aval, "size", 0) for v in equation.outvars)


def depends(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Return which outputs of a jaxpr may depend on those inputs that are marked."""
    marked = {v for v, yes in zip(jaxpr.invars, inputs, strict=True) if yes}

    def is_marked(v):
        return not hasattr(v, "val") and v in marked

    for equation in jaxpr.eqns:
        ins = [is_marked(v) for v in equation.invars]
        outs = [any(ins)] * len(equation.outvars)
        if equation.primitive.name in ("jit", "pjit"):
            outs = depends(equation.params["jaxpr"].jaxpr, ins)
        marked.update(v for v, yes in zip(equation.outvars, outs, strict=True) if yes)
    return [is_marked(v) for v in jaxpr.outvars]


def does(jaxpr: Any, names: tuple[str, ...]) -> bool:
    """Return whether one of these primitives occurs in a jaxpr, at any depth."""
    return any(
        equation.primitive.name in names or any(does(inner, names) for inner in _inner(equation))
        for equation in jaxpr.eqns
    )


def _inner(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs that an equation is made of."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


BRANCHES = ("cond", "while", "pure_callback", "io_callback", "debug_callback")


def has_branches(jaxpr: Any) -> bool:
    """Return whether a jaxpr branches or calls the host, so that ``vmap`` does unneeded work."""
    return does(jaxpr, BRANCHES)
