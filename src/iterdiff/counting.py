"""Count, before anything runs, what a traced function does and what its outputs depend on.

Work is counted in floating-point operations, from shapes: two for each multiply-add of a matrix
product, one for each entry that another operation puts out. It ranks ways to compute the same
thing; it is no time.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jaxtyping import PyTree


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
