"""Interpret jaxprs: walk through equations, share common subexpressions, count operations.

Primitives and their parameters are recognised by name, and JAX may rename these in any release.
What is not recognised is treated as one opaque equation: `shared` then shares less, `flops` counts
its outputs only, `depends` assumes that every output depends on every input.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.extend.core import Literal
from jaxtyping import PyTree

CALLS = {"jit": "jaxpr", "pjit": "jaxpr"}
"""Primitives that call a function, and the name of the parameter that holds its jaxpr."""

RULES = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
"""The same for functions with a custom derivative rule."""

Run = Callable[[list], list]
"""Computes the outputs of an equation from its inputs."""


@runtime_checkable
class Visitor(Protocol):
    """Interprets constants and equations; the values it passes on may be anything.

    Attributes
    ----------
    opened : dict
        The calls whose inner equations are visited, as in `CALLS`.
    """

    opened: dict[str, str]

    def given(self, value: Any) -> Any:
        """Return the interpretation of a constant."""
        ...

    def visit(self, run: Run, equation: Any, ins: list) -> list:
        """Return the interpretations of the equation's outputs, given those of its inputs.

        ``run`` computes the outputs from numerical inputs.
        """
        ...


def walk(jaxpr: Any, constants: list, inputs: list, visitor: Visitor) -> list:
    """Visit the equations of a jaxpr in order, and those of the functions that it calls."""
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def value(v):
        return visitor.given(v.val) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        ins = [value(v) for v in equation.invars]
        inner = equation.params.get(visitor.opened.get(equation.primitive.name))
        if inner is not None:
            outs = walk(inner.jaxpr, [visitor.given(c) for c in inner.consts], ins, visitor)
        else:
            outs = visitor.visit(partial(_run, jaxpr, equation), equation, ins)
        values.update(zip(equation.outvars, outs, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _run(jaxpr: Any, equation: Any, ins: list) -> list:
    """Return the outputs of one equation of a jaxpr, given its inputs."""
    pairs = zip(equation.invars, ins, strict=True)
    inputs = {v: value for v, value in pairs if not isinstance(v, Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(inputs), outvars=equation.outvars, eqns=[equation]
    )
    return eval_jaxpr(alone, (), *inputs.values())


def shared(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `function`, of pytrees of arrays, with common subexpressions computed once.

    XLA eliminates common subexpressions too, but not between a loop and what it has hoisted out of
    that loop. Do not differentiate the result: custom derivative rules are lost.
    """

    def call(*args):
        traced, out = jax.make_jaxpr(function, return_shape=True)(*args)
        values = walk(traced.jaxpr, traced.consts, jax.tree.leaves(args), _Sharing())
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return call


class _Sharing:
    """Evaluates equations, except those that an earlier equation has already evaluated."""

    opened = CALLS | RULES

    def __init__(self):
        self.seen: dict[tuple, tuple[list, list]] = {}

    @staticmethod
    def given(value: Any) -> Any:
        """Return a constant."""
        return value

    def visit(self, run: Run, equation: Any, ins: list) -> list:
        """Return the equation's outputs."""
        key = self._key(equation, ins)
        if key is None:
            return run(ins)
        if (
            key not in self.seen
        ):  # keeps the inputs alive, so that no other array gets the id of one
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
    """Return a key that is equal for equal inputs: the bytes of a number, the id of an array."""
    if isinstance(value, jax.Array) or np.ndim(value):
        return id(value)
    number = np.asarray(value)
    return number.dtype, number.tobytes()


def flops(function: Callable, *examples: PyTree) -> int:
    """Return the floating-point operations of ``function(*examples)``.

    Products count 2 m n k, everything else one operation for each output entry, and a ``while``
    loop as one round. Use the count to compare alternatives; it does not predict run time.
    """
    return flops_of(jax.make_jaxpr(function)(*examples).jaxpr)


def flops_of(jaxpr: Any) -> int:
    """Return the floating-point operations of a jaxpr."""
    return sum(flops_of_equation(equation) for equation in jaxpr.eqns)


def flops_of_equation(equation: Any) -> int:
    """Return the floating-point operations of one equation."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general" and "dimension_numbers" in params:
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    within = [flops_of(inner) for inner in _inner(equation)]
    if within:
        rounds = params.get("length", 1) if name == "scan" else 1
        return rounds * sum(within)
    return sum(getattr(v.aval, "size", 0) for v in equation.outvars)


def depends(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Return which outputs of a jaxpr may depend on the marked inputs."""
    marked = {v for v, yes in zip(jaxpr.invars, inputs, strict=True) if yes}

    def is_marked(v):
        return not hasattr(v, "val") and v in marked

    for equation in jaxpr.eqns:
        ins = [is_marked(v) for v in equation.invars]
        outs = [any(ins)] * len(equation.outvars)
        called = equation.params.get(CALLS.get(equation.primitive.name))
        if called is not None:
            outs = depends(called.jaxpr, ins)
        marked.update(v for v, yes in zip(equation.outvars, outs, strict=True) if yes)
    return [is_marked(v) for v in jaxpr.outvars]


def does(jaxpr: Any, names: tuple[str, ...]) -> bool:
    """Whether one of the named primitives occurs in a jaxpr, at any depth."""
    return any(
        equation.primitive.name in names or any(does(inner, names) for inner in _inner(equation))
        for equation in jaxpr.eqns
    )


KINKED = (
    *("abs", "sign", "max", "min", "clamp", "reduce_max", "reduce_min", "sort", "argmax", "argmin"),
    *("round", "floor", "ceil", "cummax", "cummin", "reduce_window_max", "reduce_window_min"),
)
"""Primitives that have kinks or jumps."""

COMPARISONS = ("lt", "le", "gt", "ge")
"""Primitives whose results have jumps if they compare real numbers."""


def may_have_kinks(jaxpr: Any) -> bool:
    """Return whether the function of a jaxpr may have kinks in real numbers: not whether it has."""

    def kinked(equation: Any) -> bool:
        floating = any(
            jnp.issubdtype(v.aval.dtype, jnp.floating)
            for v in equation.invars
            if hasattr(v.aval, "dtype")
        )
        name = equation.primitive.name
        return floating and name in KINKED + COMPARISONS

    return any(
        kinked(equation) or any(may_have_kinks(inner) for inner in _inner(equation))
        for equation in jaxpr.eqns
    )


def narrowest_float(jaxpr: Any) -> np.dtype | None:
    """Return the floating dtype with the fewest digits that a jaxpr computes in; None if none."""
    found = [
        np.dtype(v.aval.dtype)
        for equation in jaxpr.eqns
        for v in equation.outvars
        if jnp.issubdtype(getattr(v.aval, "dtype", int), jnp.floating)
    ]
    within = (narrowest_float(inner) for equation in jaxpr.eqns for inner in _inner(equation))
    found += [dtype for dtype in within if dtype is not None]
    return max(found, key=lambda dtype: float(jnp.finfo(dtype).eps), default=None)


def _inner(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs among the parameters of an equation."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


BRANCHES = ("cond", "while", "pure_callback", "io_callback", "debug_callback")


def has_branches(jaxpr: Any) -> bool:
    """Return whether a jaxpr branches or calls the host, so that ``vmap`` does unneeded work."""
    return does(jaxpr, BRANCHES)


FACTORISATIONS = ("cholesky", "eig", "eigh", "geqrf", "hessenberg", "lu", "qr", "schur", "svd")
"""Primitives that take far more operations than their results have entries."""


def is_small(jaxpr: Any, max_flops: int) -> bool:
    """Return whether a jaxpr takes few operations, and neither branches nor calls the host."""
    return not does(jaxpr, BRANCHES + FACTORISATIONS) and flops_of(jaxpr) <= max_flops
