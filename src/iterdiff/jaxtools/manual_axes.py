"""Values inside `jax.shard_map` and `jax.pmap`, where JAX tracks over which mesh axes they vary.

The gradient with respect to a value that is the same on all devices is a sum over the devices. So a
start that does not vary, beside parameters that do, would turn every gradient of an objective into
the sum of the gradients of all devices' objectives. `aligned` makes the inputs of a solve vary
together. A loop has to start with values that vary as those that its body returns: `while_loop` and
its siblings see to that. Outside of such functions, nothing here changes anything.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from iterdiff.jaxtools.tree import T


def aligned(a: T, besides: PyTree = ()) -> T:
    """Return `a`, its arrays varying over the mesh axes over which any of them, or `besides`, does.

    Leaves that are no JAX arrays pass through. Arrays from outside the mapped function are brought
    inside.
    """
    if not inside():
        return a
    return _varying(a, _axes((a, besides)))


def varying_as(like: PyTree, value: Any) -> Any:
    """Return an array that does not vary as one that varies over the axes of `like`."""
    axes = _axes(like) if inside() else frozenset()
    return jax.lax.pcast(value, tuple(sorted(axes)), to="varying") if axes else value


def linear_transpose(function: Callable[[T], T], v: T) -> T:
    """Return the product of `v` with the transpose of a linear map of a space to itself.

    The transpose of a map from values that do not vary to values that do is a sum over the devices.
    So the map's input varies as its output does.
    """
    like = aligned(v, jax.eval_shape(function, v)) if inside() else v
    return jax.linear_transpose(function, like)(like)[0]


def while_loop(condition: Callable, body: Callable, init: T) -> T:
    """Return what `jax.lax.while_loop` returns; the values may start to vary inside the loop."""
    if inside():
        body, init = _steady(body, init, condition)
    return jax.lax.while_loop(condition, body, init)


def fori_loop(lower: Any, upper: Any, body: Callable, init: T) -> T:
    """Return what `jax.lax.fori_loop` returns; the values may start to vary inside the loop."""
    if not inside():
        return jax.lax.fori_loop(lower, upper, body, init)
    start = (jnp.asarray(lower, jnp.int32), jnp.asarray(upper, jnp.int32), init)

    def counted(carry: Any) -> Any:
        i, upper, value = carry
        return i + 1, upper, body(i, value)

    return while_loop(lambda carry: carry[0] < carry[1], counted, start)[2]


def scan(body: Callable, init: T, length: int) -> T:
    """Return the last carry of a scan; the values may start to vary inside the loop."""
    if inside():
        body, init = _steady(body, init)
    return jax.lax.scan(lambda carry, _: (body(carry), None), init, None, length)[0]


def cond(condition: Any, if_true: Callable, if_false: Callable, given: PyTree) -> Any:
    """Return what `jax.lax.cond` returns; the values of only one branch may vary."""
    if inside():
        shapes = [jax.eval_shape(branch, given) for branch in (if_true, if_false)]
        axes = _axes((condition, shapes))
        branches = [lambda v, f=f: _varying(f(v), axes) for f in (if_true, if_false)]
        return jax.lax.cond(condition, *branches, given)
    return jax.lax.cond(condition, if_true, if_false, given)


def _steady(
    body: Callable[[T], T], init: T, condition: Callable | None = None
) -> tuple[Callable[[T], T], T]:
    """Return a loop's body and its start, such that all values vary over the same axes."""
    init = _varying(init, frozenset())
    decision = None if condition is None else jax.eval_shape(condition, init)
    axes = _axes((init, jax.eval_shape(body, init), decision))
    return lambda carry: _varying(body(carry), axes), _varying(init, axes)


def inside() -> bool:
    """Return whether JAX is tracing a function that it maps over a mesh."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _axes(a: PyTree) -> frozenset:
    """Return the mesh axes over which any array of `a` varies."""
    return frozenset().union(*(_axes_of(leaf) for leaf in jax.tree.leaves(a)))


def _axes_of(leaf: Any) -> frozenset:
    kind: Any = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
    found = getattr(kind, "manual_axis_type", None)
    return frozenset() if found is None else found.varying


def _varying(a: T, axes: frozenset) -> T:
    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        kind: Any = jax.typeof(leaf)
        if not kind.sharding.mesh.manual_axes:
            leaf = _brought_inside(leaf)
        missing = axes - _axes_of(leaf)
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(cast, a)


def _brought_inside(leaf: Array) -> Array:
    # Any operation does that; this one exists for all dtypes.
    return jax.lax.select_n(jnp.zeros((), bool), leaf, leaf)
