"""Compile what a function computes, and reuse the program for another one that computes the same.

`iterdiff.jaxtools.jit.compiled` finds a program by the function's identity. Functions that are made
anew in every call have no identity to go by. But their traces can be compared (see `snapshot`): a
call costs one trace, and compiles only what was not compiled before.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
from jax.core import eval_jaxpr
from jaxtyping import PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.closures import without_constants
from iterdiff.jaxtools.jit import QUICK_OPTIONS, quick_max_numbers
from iterdiff.jaxtools.snapshot import snapshot

MAX_KEPT_PROGRAMS = 64
"""Number of programs that are kept; the least recently used one is dropped first."""


class Traced:
    """A function of pytrees of arrays, traced for arguments of one type.

    The arrays that the function closes over are inputs of the program.

    Parameters
    ----------
    function : callable
        The function.
    args : pytrees of arrays
        Give shapes and dtypes.
    quick : bool
        Whether to compile a small program quickly, as `quickly_compiled` does.
    """

    def __init__(self, function: Callable[..., PyTree], *args: PyTree, quick: bool = False):
        # A new function object, since JAX caches traces by the function's identity.
        made = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
        self.jaxpr, shapes = made
        self.structure = jax.tree.structure(shapes)
        small = tree.size((made[0].consts, args)) <= quick_max_numbers()
        self._run = self._program(QUICK_OPTIONS if quick and small else None)

    def __call__(self, *args: PyTree) -> PyTree:
        """Return what the function returns, from a program that may be another one's."""
        found = self._run(list(self.jaxpr.consts), jax.tree.leaves(args))
        return jax.tree.unflatten(self.structure, found)

    def temporary_bytes(self, *args: PyTree) -> int:
        """Return the temporary memory of the program that is compiled for these arguments."""
        plan = self._run.ahead(list(self.jaxpr.consts), jax.tree.leaves(args)).memory_analysis()
        return int(getattr(plan, "temp_size_in_bytes", 0))

    def _program(self, options: dict[str, Any] | None) -> "_Program":
        jaxpr = without_constants(self.jaxpr)

        def evaluate(constants, args):
            return eval_jaxpr(jaxpr, constants, *args)

        program = _Program(jax.jit(evaluate, compiler_options=options))
        taken = snapshot(self.jaxpr)
        own = [constant for constant in self.jaxpr.consts if isinstance(constant, jax.Array)]
        if len(own) < len(taken.arrays) or taken.traced or _calls_python(jaxpr):
            return program  # it depends on more than its inputs and its equations
        key = taken.content, options is None
        program = _kept.setdefault(key, program)
        _kept.move_to_end(key)
        if len(_kept) > MAX_KEPT_PROGRAMS:
            _kept.popitem(last=False)
        return program


class _Program:
    """A compiled function of constants and arguments."""

    def __init__(self, function: Any):
        self.function, self.executable = function, None

    def __call__(self, constants: list, args: list) -> list:
        if self.executable is not None:
            try:
                return self.executable(constants, args)
            except ValueError:  # other shardings than it was compiled for
                pass
        return self.function(constants, args)

    def ahead(self, constants: list, args: list) -> Any:
        """Return the executable, compiled ahead of a call."""
        if self.executable is None:
            self.executable = self.function.lower(constants, args).compile()
        return self.executable


class ByContent:
    """A function of pytrees of arrays, each of whose calls runs a `Traced` program.

    Parameters
    ----------
    function : callable
        It is traced once for each type of arguments.
    """

    def __init__(self, function: Callable[..., PyTree]):
        self.function = function
        self._traced: dict[Any, Traced] = {}

    def __call__(self, *args: PyTree) -> PyTree:
        """Return what the function returns."""
        leaves, structure = jax.tree.flatten(args)
        kind = structure, tuple(jax.typeof(v) for v in leaves)
        if kind not in self._traced:
            self._traced[kind] = Traced(self.function, *args, quick=True)
        return self._traced[kind](*args)


def _calls_python(jaxpr: Any) -> bool:
    """Return whether a jaxpr calls back to Python, at any depth."""
    for equation in jaxpr.eqns:
        if "callback" in equation.primitive.name:
            return True
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns") and _calls_python(inner):
                return True
    return False


_kept: OrderedDict[Any, _Program] = OrderedDict()
