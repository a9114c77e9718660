"""Raise from a running program: a failure is an exception, in compiled code too."""

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

    Raised from within ``jit``, JAX wraps it into an error of its own, whose text ends with this
    message.
    """


def raise_if(
    x: PyTree,
    failed: Bool[Array, ""],
    advice: Sequence[str],
    which: Int[Array, ""] | int = 0,
) -> PyTree:
    """Return `x`, unless `failed` holds: then raise `SolveError` with ``advice[which]``.

    Parameters
    ----------
    x : pytree of arrays
        What the rest of the program goes on with; the check runs where it is used.
    failed : bool
        Whether to raise; with ``vmap``, for any member of the batch.
    advice : sequence of str
        The messages.
    which : integer
        The message to choose.

    Raises
    ------
    SolveError
        At once where `failed` is known, else when the compiled program gets there.
    """
    if not tree.is_traced(failed):
        if bool(failed):
            raise SolveError(advice[int(which)])
        return x

    def alarm(failed: Any, which: Any) -> np.ndarray:
        # What JAX hands over are arrays of its own, whose methods would compute on the device
        # that waits for us.
        failed, which = np.asarray(failed), np.asarray(which)
        if np.any(failed):
            first = int(np.argmax(failed))
            raise SolveError(advice[int(np.broadcast_to(which, failed.shape).flat[first])])
        return np.zeros(failed.shape, bool)

    def call() -> Bool[Array, ""]:
        shape = jax.ShapeDtypeStruct((), bool)
        which_ = jnp.asarray(which, jnp.int32)
        return jax.pure_callback(alarm, shape, failed, which_, vmap_method="broadcast_all")

    raised = only_if(failed, call, jnp.array(False))
    return jax.tree.map(lambda v: jnp.where(raised, jnp.nan, v), x)
