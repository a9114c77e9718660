"""The program inside `iterdiff.trace`, taken out of a call so that it can be timed alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from iterdiff.diagnostics import trace as tracing


class _Reached(Exception):
    """Carries what `record` is called with."""


def compiled_core(call: Callable[[], Any]) -> Callable[[Any], Any]:
    """Return what ``call()``, a call of `iterdiff.trace`, records: a function to compile.

    The call is made up to where it calls `iterdiff.tracing.record`, to see with what. The function
    takes one argument and ignores it: its inputs are those of the call.
    """
    record = tracing.record

    def stop_here(*arguments):
        raise _Reached(arguments)

    tracing.record = stop_here
    try:
        call()
    except _Reached as reached:
        arguments = reached.args[0]
    finally:
        tracing.record = record
    arrays, static = eqx.partition(arguments, eqx.is_array)
    held = jax.tree.leaves(arrays)
    structure = jax.tree.structure(arrays)

    def core(_):
        # Behind a barrier, so that the compiler cannot compute with the values beforehand.
        inputs = jax.tree.unflatten(structure, jax.lax.optimization_barrier(held))
        return eqx.filter(record(*eqx.combine(inputs, static))[1], eqx.is_array)

    return core
