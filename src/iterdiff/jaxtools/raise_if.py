"""Raise from a running program: a failure is an exception, also in compiled code.

A compiled program cannot raise our exception: JAX turns what a callback raises into an error of its
own. Outside ``jit`` there is a way round it. The program records the failure and goes on with NaN,
and `surfaced`, through which inputs and outputs pass, raises it in Python: it is called whenever
their values or derivatives are computed. That is what `LATER` asks for.

A program on several devices must not raise at all. The device whose callback raises stops, the
others wait for it, and the runtime ends the process. Such a program warns, and goes on with NaN.
"""

import enum
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.lax import only_if
from iterdiff.jaxtools.placement import by_device_count


class SolveError(RuntimeError):
    """A solve, or a linear solve behind its derivative, failed; the message says what to do.

    From within ``jit``, JAX wraps it into an error of its own, whose text contains this message.
    """


class Raise(enum.Enum):
    """When a failure raises."""

    LATER = "recorded by the program, and raised by `surfaced`"


LATER = Raise.LATER

SEVERAL_DEVICES = "The result is NaN, because a program on several devices cannot raise."

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
        At once if `failed` is known, else when the compiled program gets there. A program on
        several devices warns instead.
    """
    if isinstance(failed, bool) or not tree.is_traced(failed):
        if bool(failed):
            raise SolveError(advice[int(which)])
        return x

    def report(failed: Any, which: Any, *, several: bool) -> np.ndarray:
        # Convert to NumPy first: a jax.Array's methods would dispatch to the device, which is
        # blocked waiting for this callback.
        failed, which = np.asarray(failed), np.asarray(which)
        if np.any(failed):
            first = int(np.argmax(failed))
            message = advice[int(np.broadcast_to(which, failed.shape).flat[first])]
            if throw is LATER:
                _recorded.append(SolveError(message))
            elif several:
                _warn(message)
            else:
                raise SolveError(message)
        return failed.astype(bool)

    given = manual_axes.aligned((failed, jnp.asarray(which, jnp.int32)))
    raised = only_if(failed, lambda: _reported.bind(*given, report=report), jnp.array(False))
    # A product, because the derivative of a selection would be zero, not NaN.
    factor = jnp.where(raised, jnp.nan, 1.0)
    return jax.tree.map(lambda v: v * factor.astype(v.dtype), x)


def _warn(message: str) -> None:
    warnings.warn(f"{message} {SEVERAL_DEVICES}", RuntimeWarning, stacklevel=2)


def _call_report(failed: Array, which: Array, *, report: Callable, several: bool) -> Array:
    call = partial(report, several=several)
    if not several:
        shape = jax.ShapeDtypeStruct(failed.shape, bool)
        return jax.pure_callback(call, shape, failed, which)
    # A batch may be spread over the devices: only its first failure is brought together.
    first = jnp.max(jnp.where(failed, which, -1))
    shape = jax.ShapeDtypeStruct((), bool)
    return failed & jax.pure_callback(call, shape, jnp.any(failed), first)


def _batched_report(args: Any, axes: Any, *, report: Callable) -> tuple[Array, int]:
    size = next(v.shape[axis] for v, axis in zip(args, axes, strict=True) if axis is not None)
    pairs = zip(args, axes, strict=True)
    rows = [batching.bdim_at_front(v, axis, size) for v, axis in pairs]
    return _reported.bind(*rows, report=report), 0


_reported = Primitive("reported")
_reported.def_impl(partial(_call_report, several=False))
_reported.def_abstract_eval(lambda failed, *_, **__: failed)
batching.primitive_batchers[_reported] = _batched_report
mlir.register_lowering(_reported, by_device_count(_call_report))


_recorded: deque[SolveError] = deque()
_lock = threading.Lock()


def surfaced(a: PyTree) -> PyTree:
    """Return `a`; raise what programs recorded when its values or derivatives are computed."""
    return jax.tree.map(lambda v: _surfaced.bind(v) if tree.is_floating(v) else v, a)


def _taken() -> SolveError | None:
    """Return the first recorded failure, and forget all."""
    with _lock:
        error = _recorded.popleft() if _recorded else None
        _recorded.clear()  # further failures of the same batch
    return error


def _raise_recorded() -> None:
    error = _taken()
    if error is not None:
        raise error


def _computed(value: Any) -> Any:
    """Return a value that Python computes, after the program that it comes from has ended."""
    jax.block_until_ready(value)
    _raise_recorded()
    return value


def _checked_by_program(value: Array, *, several: bool) -> Array:
    """Return a value that a program computes, as when the pullback of a solve is compiled."""

    def check(value: Any) -> np.ndarray:
        _raise_recorded()
        return np.asarray(value)

    def warn(failed: Any) -> np.ndarray:
        error = _taken() if np.any(failed) else None
        if error is not None:
            _warn(str(error))
        return np.asarray(failed)

    if not several:
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.pure_callback(check, shape, value, vmap_method="expand_dims")
    # The value may be spread over the devices: only whether it is NaN is brought together.
    failed = jnp.any(jnp.isnan(value))
    shape = jax.ShapeDtypeStruct((), bool)
    failed = jax.pure_callback(warn, shape, failed, vmap_method="expand_dims")
    return jnp.where(failed, jnp.nan, value)


_surfaced = Primitive("surfaced")
_surfaced.def_impl(_computed)
_surfaced.def_abstract_eval(lambda value: value)
ad.deflinear2(_surfaced, lambda cotangent, _: [_surfaced.bind(cotangent)])
batching.defvectorized(_surfaced)
mlir.register_lowering(_surfaced, by_device_count(_checked_by_program))
