"""Tell which kind of JAX transformation is running."""

import functools
import threading
from typing import Any

import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from iterdiff.jaxtools import tree


def transforming() -> bool:
    """Return whether JAX is tracing, differentiating or batching the caller.

    If not, every value in reach is known, and no derivative can be asked for.
    """
    return get_opaque_trace_state() != _untransformed_state()


def compiling() -> bool:
    """Return whether JAX is tracing a program, in ``jit`` or a loop, rather than running Python."""
    return tree.is_traced(jnp.zeros(()))


@functools.cache
def _untransformed_state() -> Any:
    """Return JAX's trace state outside all transformations.

    We read it in a new thread, because the first caller may itself be inside a transformation,
    and a new thread starts outside.
    """
    states = []
    thread = threading.Thread(target=lambda: states.append(get_opaque_trace_state()))
    thread.start()
    thread.join()
    return states[0]
