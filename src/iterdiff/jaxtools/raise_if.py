"""Raise from a running program: a failure is an exception, also in compiled code."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from iterdiff.jaxtools import tree
from iterdiff.jaxtools.lax import only_if


class SolveError(RuntimeError):
    """A solve, or a linear solve behind its derivative, failed; the message says what to do.

    From within ``jit``, JAX wraps it into an error of its own, whose text ends with this message.
    """


def raise_if(
    x: PyTree,
    failed: Bool[Array, ""],
    advice: Sequence[str],
    which: Int[Array, ""] | int = 0,
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

    Raises
    ------
    SolveError
        At once if `failed` is known, else when the compiled program gets there.
    """
    if not tree.is_traced(failed):
        if bool(failed):
            raise SolveError(advice[int(which)])
        return x

    def check(failed: Any, which: Any) -> np.ndarray:
        # Convert to NumPy first: a jax.Array's methods would dispatch to the device, which is
        # blocked waiting for this callback.
        failed, which = np.asarray(failed), np.asarray(which)
        if np.any(failed):
            first = int(np.argmax(failed))
            raise SolveError(advice[int(np.broadcast_to(which, failed.shape).flat[first])])
        return np.zeros(failed.shape, bool)

    def call() -> Bool[Array, ""]:
        shape = jax.ShapeDtypeStruct((), bool)
        code = jnp.asarray(which, jnp.int32)
        return jax.pure_callback(check, shape, failed, code, vmap_method="broadcast_all")

    raised = only_if(failed, call, jnp.array(False))
    return jax.tree.map(lambda v: jnp.where(raised, jnp.nan, v), x)
