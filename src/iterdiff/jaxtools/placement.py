"""Where arrays live: on one device, or spread over several.

An array is *spread* if each device holds a part of it. JAX knows that of an array with a value, and
of a traced one on an explicit mesh, whose type says so. On automatic meshes the compiler decides,
after the trace: then we learn it from the compiler.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from iterdiff.jaxtools import manual_axes, tree
from iterdiff.jaxtools.tree import T


def on_accelerator() -> bool:
    """Return whether programs run on another device than a processor of the host, by default.

    There, a loop whose end depends on data waits at every step until the host has read the
    condition; a loop of known length does not.
    """
    chosen = getattr(jax.config, "jax_default_device")  # noqa: B009  (the type has no attributes)
    platform = jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)
    return platform != "cpu"


def is_spread(a: PyTree) -> bool:
    """Return whether JAX knows that some array of `a` is spread over several devices."""
    leaves = jax.tree.leaves(a)
    return any(_is_spread(leaf) or tree.axes_of(leaf) is not None for leaf in leaves)


def _is_spread(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or tree.is_traced(leaf):
        return False
    return on_several_devices(leaf) and not leaf.is_fully_replicated


def on_several_devices(array: Array) -> bool:
    """Return whether a known array has parts or copies on several devices."""
    return len(array.sharding.device_set) > 1


def watched(v: Array, message: str, batch_axes: int = 0) -> Array:
    """Return `v`; warn with `message` if the compiler spreads it over several devices.

    With one device there is nothing to ask, and nothing is added to the program. A batch whose
    members are each on one device is not spread.

    Parameters
    ----------
    v : array
        The array in question.
    message : str
        The warning.
    batch_axes : int
        How many of its first axes are those of batches.
    """
    if jax.device_count() == 1 or manual_axes.inside():
        return v

    def told(sharding: Any) -> None:
        axes = getattr(sharding, "spec", ())[batch_axes:]
        if any(axis is not None for axis in axes):
            warnings.warn(message, UserWarning, stacklevel=2)

    @jax.custom_batching.custom_vmap
    def look(v: Array) -> Array:
        jax.debug.inspect_array_sharding(v, callback=told)
        return v

    @look.def_vmap
    def _(size: int, in_batched: list, v: Array) -> tuple[Array, bool]:
        del size, in_batched
        return watched(v, message, batch_axes + 1), True

    return look(v)


def by_device_count(function: Callable) -> Callable:
    """Return the lowering rule of a primitive that ``function(*args, several=..., **params)`` is.

    `several` says whether the program is for several devices.
    """

    def rule(ctx: Any, *args: Any, **params: Any) -> Any:
        several = _count_devices(ctx.module_context.axis_context) > 1
        made = mlir.lower_fun(partial(function, several=several), multiple_results=False)
        return made(ctx, *args, **params)

    return rule


def _count_devices(context: Any) -> int:
    """Return for how many devices a program is lowered."""
    if hasattr(context, "mesh"):  # in `jax.shard_map`
        return context.mesh.size
    if hasattr(context, "axis_env"):  # in `jax.pmap`
        return context.axis_env.nreps
    return getattr(context, "num_devices", None) or 1


def each_product(rows: PyTree, v: PyTree) -> Float[Array, " m"]:
    """Return the inner products of `v` with m trees stacked along a first axis, on every device.

    The leaves of both may be spread alike.
    """

    def products(rows: Array, v: Array) -> Array:
        everywhere = None if tree.axes_of(v) is None else PartitionSpec(None)
        axes = tuple(range(v.ndim))
        contracted = (tuple(axis + 1 for axis in axes), axes), ((), ())
        return jax.lax.dot_general(rows, v, contracted, out_sharding=everywhere)

    return jax.tree.reduce(jnp.add, jax.tree.map(products, rows, v))


def combined(weights: Float[Array, " m"], rows: T) -> T:
    """Return the sum of m trees, stacked along a first axis, times their weights."""
    contracted = ((0,), (0,)), ((), ())
    return jax.tree.map(lambda rows: jax.lax.dot_general(weights, rows, contracted), rows)


def all_finite(array: Array) -> bool:
    """Return whether a known array is finite; every process that holds a part gets the answer."""
    return _for_all(array, np.isfinite, jnp.isfinite)


def has_nan(array: Array) -> bool:
    """Return whether a known array contains NaN, as `all_finite`."""
    return not _for_all(array, lambda v: ~np.isnan(v), lambda v: ~jnp.isnan(v))


def _for_all(array: Array, on_host: Callable, on_devices: Callable) -> bool:
    if not on_several_devices(array):
        return bool(np.all(on_host(np.asarray(array))))
    with jax.ensure_compile_time_eval():
        return bool(jnp.all(on_devices(array)))
