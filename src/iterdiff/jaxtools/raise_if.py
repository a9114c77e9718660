"""Raise from a running program: a failure is an exception, also in compiled code.

A compiled program cannot raise our exception: JAX turns what a callback raises into an error of its
own. Outside ``jit`` there is a way round it. The program records the failure and goes on with NaN,
and `surfaced`, through which inputs and outputs pass, raises it in Python: it is called whenever
their values or derivatives are computed. That is what `LATER` asks for.
"""

import enum
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if


class SolveError(RuntimeError):
    """A solve, or a linear solve behind its derivative, failed; the message says what to do.

    From within ``jit``, JAX wraps it into an error of its own, whose text contains this message.
    """


class Raise(enum.Enum):
    """When a failure raises."""

    LATER = "recorded by the program, and raised by `surfaced`"


LATER = Raise.LATER

Throw = bool | Raise
"""Whether a failure raises: never, at once, or later; `LATER` counts as True."""


def raise_if(
    x: PyTree,
    failed: Bool[Array, ""] | bool,
    advice: Sequence[str],
    which: Int[Array, ""] | int = 0,
    throw: Throw = True,
) -> PyTree:
    """Return `x`; raise `SolveError` with the message ``advice[which]`` if `failed` holds.

    Parameters
    ----------
    x : pytree of arrays
        The value that the rest of the program uses; the check runs where it is used.
    failed : bool
        Whether to raise; under ``vmap``, for any member of the batch.
    advice : sequence of str
        The messages.
    which : integer
        The index of the message.
    throw : True or LATER
        When to raise. With `LATER`, NaN is returned in place of `x`.

    Raises
    ------
    SolveError
        At once if `failed` is known, else when the compiled program gets there.
    """
    if isinstance(failed, bool) or not tree.is_traced(failed):
        if bool(failed):
            raise SolveError(advice[int(which)])
        return x

    def check(failed: Any, which: Any) -> np.ndarray:
        # Convert to NumPy first: a jax.Array's methods would dispatch to the device, which is
        # blocked waiting for this callback.
        failed, which = np.asarray(failed), np.asarray(which)
        if np.any(failed):
            first = int(np.argmax(failed))
            error = SolveError(advice[int(np.broadcast_to(which, failed.shape).flat[first])])
            if throw is not LATER:
                raise error
            _recorded.append(error)
        return failed.astype(bool)

    def call() -> Bool[Array, ""]:
        shape = jax.ShapeDtypeStruct((), bool)
        code = jnp.asarray(which, jnp.int32)
        return jax.pure_callback(check, shape, failed, code, vmap_method="broadcast_all")

    raised = only_if(failed, call, jnp.array(False))
    return jax.tree.map(lambda v: jnp.where(raised, jnp.nan, v), x)


_recorded: deque[SolveError] = deque()
_lock = threading.Lock()


def surfaced(a: PyTree) -> PyTree:
    """Return `a`; raise what programs recorded when its values or derivatives are computed."""
    return jax.tree.map(lambda v: _surfaced.bind(v) if tree.is_floating(v) else v, a)


def _raise_recorded() -> None:
    with _lock:
        error = _recorded.popleft() if _recorded else None
        _recorded.clear()  # further failures of the same batch
    if error is not None:
        raise error


def _computed(value: Any) -> Any:
    """Return a value that Python computes, after the program that it comes from has ended."""
    jax.block_until_ready(value)
    _raise_recorded()
    return value


def _checked_by_program(value: Array) -> Array:
    """Return a value that a program computes, as when the pullback of a solve is compiled."""

    def check(value: Any) -> np.ndarray:
        _raise_recorded()
        return np.asarray(value)

    shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
    return jax.pure_callback(check, shape, value, vmap_method="expand_dims")


_surfaced = Primitive("surfaced")
_surfaced.def_impl(_computed)
_surfaced.def_abstract_eval(lambda value: value)
ad.deflinear2(_surfaced, lambda cotangent, _: [_surfaced.bind(cotangent)])
batching.defvectorized(_surfaced)
mlir.register_lowering(_surfaced, mlir.lower_fun(_checked_by_program, multiple_results=False))
