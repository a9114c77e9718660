"""Arithmetic and norms of pytrees: the vector space of the iterates.

Every function takes pytrees of real floating arrays of one structure. Scalars are cast to
each leaf's dtype, so that a float64 step size never turns a float32 iterate into float64.
"""

import functools
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, PyTree, Shaped

T = TypeVar("T", bound=PyTree)

MAX_CONSTANT_SIZE = 20_000
"""Fixed random vectors of up to this many numbers are constants of the program."""


def add(a: T, b: T) -> T:
    """Return ``a + b``, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: T, b: T) -> T:
    """Return ``a - b``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(s: Shaped[Array, ""] | float, a: T) -> T:
    """Return ``s * a`` for a scalar `s`, in the dtypes of `a`."""
    return jax.tree.map(lambda leaf: jnp.asarray(s, leaf.dtype) * leaf, a)


def mul(a: T, b: T) -> T:
    """Return ``a * b``, entry by entry."""
    return jax.tree.map(jnp.multiply, a, b)


def over(a: T, s: Shaped[Array, ""]) -> T:
    """Return ``a / s`` for a scalar `s` of the dtype of all leaves."""
    return jax.tree.map(lambda leaf: leaf / s, a)


def row(stacked: T, k: Any) -> T:
    """Return number `k` of trees that are stacked along a first axis."""
    return jax.tree.map(lambda leaf: leaf[k], stacked)


def axpy(s: Shaped[Array, ""] | float, a: T, b: T) -> T:
    """Return ``s * a + b`` for a scalar `s`, in the dtypes of `b`."""
    return jax.tree.map(lambda u, v: jnp.asarray(s, v.dtype) * u + v, a, b)


def where(condition: Bool[Array, ""], a: T, b: T) -> T:
    """Return `a` where the scalar `condition` holds, else `b`."""
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), a, b)


def zeros_like(a: T) -> T:
    """Return zeros of the shapes and dtypes of `a`."""
    return jax.tree.map(jnp.zeros_like, a)


def zero_rows(a: T, count: int) -> T:
    """Return zeros of the shapes of `a`, stacked `count` times along a new first axis.

    They are spread over devices as `a` is.
    """
    return jax.tree.map(lambda v: jnp.broadcast_to(jnp.zeros_like(v), (count, *v.shape)), a)


def full_like(a: T, value: float) -> T:
    """Return `value` in the shapes and dtypes of `a`."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), a)


def dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Return the Euclidean inner product ``<a, b>`` over all leaves."""
    products = jax.tree.map(lambda u, v: jnp.sum(u * v), a, b)
    return jax.tree.reduce(jnp.add, products)


def length(a: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm of vectors whose squares are representable, by one sum."""
    return jnp.sqrt(dot(a, a))


def largest(a: PyTree) -> Float[Array, ""]:
    """Return the largest modulus of all entries; zero if there are none."""
    sizes = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(a)]
    return functools.reduce(jnp.maximum, sizes)


@jax.jit
def norm(a: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm over all leaves, with derivative zero at zero.

    It is accurate for all normal numbers, also where their squares leave the range. If an entry is
    not finite, the result is NaN. Compiled as one function, which is traced once for each shape.
    """
    return _norm(a)


def norms(*trees: PyTree) -> list[Float[Array, ""]]:
    """Return the norms of pytrees of one structure, by one reduction: one norm to compile."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return list(jax.vmap(norm)(stacked))


# If a scan drops this rule (see `closures`), only the derivatives of extreme norms suffer.
@jax.custom_jvp
def _norm(a: PyTree) -> Float[Array, ""]:
    dtype = result_dtype(a)
    if size(a) == 1:  # squares take as long as a step of a scalar problem
        (entry,) = (leaf.astype(dtype).reshape(()) for leaf in jax.tree.leaves(a) if leaf.size)
        return jnp.where(jnp.isfinite(entry), jnp.abs(entry), jnp.nan)
    units = _units(dtype)
    squares = [_sums_of_squares(leaf.astype(dtype), units) for leaf in jax.tree.leaves(a)]
    small, middle, large = functools.reduce(jnp.add, squares)
    limit = 2.0 ** (jnp.finfo(dtype).maxexp * 3 // 4)

    def chosen(in_units: Any) -> Float[Array, ""]:
        return jnp.where(
            middle < 1 / limit, in_units[0], jnp.where(middle > limit, in_units[2], in_units[1])
        )

    square = chosen((small, middle, large))
    # A quotient, no choice between two results: the compiler may compute the entries twice, with
    # different rounding, so that two comparisons with zero need not agree.
    return chosen(units) * (square / jnp.sqrt(jnp.where(square == 0, 1, square)))


@_norm.defjvp
def _norm_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    dtype = result_dtype(primals[0])
    a, tangent = (jax.tree.map(lambda leaf: leaf.astype(dtype), v) for v in (*primals, *tangents))
    length = _norm(a)
    # In units of about the length, for derivatives of higher order.
    _, exponent = jnp.frexp(jax.lax.stop_gradient(length))
    normal = jnp.minimum(exponent, jnp.finfo(dtype).maxexp - 4)
    per_unit = jnp.ldexp(jnp.ones_like(length), -normal)
    scaled = jnp.where(length == 0, 1, per_unit * length)
    direction = jax.tree.map(lambda leaf: (per_unit * leaf) / scaled, a)
    return length, dot(direction, tangent)


def _units(dtype: np.dtype) -> np.ndarray:
    """Return three units, such that every normal number has a normal square in one of them.

    They are powers of two, so that a change of units does not round.
    """
    exponent = int(jnp.finfo(dtype).maxexp) * 5 // 8
    return np.array([2.0**-exponent, 1.0, 2.0**exponent]).astype(dtype)


def _sums_of_squares(leaf: Array, units: np.ndarray) -> Float[Array, "3"]:
    """Return the sum of squares in each of three units.

    All three in one pass: a compiler makes one kernel of it. A scale that depends on the entries
    would need two, and twice the time to compile.
    """
    # Behind a barrier, or the compiler would multiply the factors first, which overflows.
    factors = jax.lax.optimization_barrier((1 / units).reshape(3, *(1,) * leaf.ndim))
    scaled = leaf[None] * factors
    return jnp.sum(scaled * scaled, axis=range(1, scaled.ndim))


def all_finite(a: PyTree) -> Bool[Array, ""]:
    """Return whether every entry of every floating leaf is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(a) if is_floating(leaf)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def is_floating(leaf: object) -> bool:
    """Return whether `leaf` is an array (or NumPy scalar) of real floating dtype."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def axes_of(leaf: Any, stacked: int = 0) -> PartitionSpec | None:
    """Return over which mesh axes the type of `leaf` spreads it; None if over none.

    Pass it as `out_sharding`, for an array of the same shape. `stacked` axes come before its own.
    """
    sharding = getattr(jax.typeof(leaf) if eqx.is_array(leaf) else leaf, "sharding", None)
    axes = () if sharding is None else tuple(sharding.spec)
    known = [axis not in (None, PartitionSpec.UNCONSTRAINED) for axis in axes]
    return PartitionSpec(*[None] * stacked, *axes) if any(known) else None


def is_traced(leaf: object) -> bool:
    """Return whether JAX is tracing `leaf`, so that it has no value yet."""
    return isinstance(leaf, Tracer)


def size(a: PyTree) -> int:
    """Return the number of scalars in `a` (static)."""
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(a))


def nbytes(a: PyTree) -> int:
    """Return the memory of the array leaves of `a` in bytes (static)."""
    leaves = [leaf for leaf in jax.tree.leaves(a) if eqx.is_array(leaf)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def result_dtype(a: PyTree) -> np.dtype:
    """Return the dtype of a single vector that holds all leaves of `a`.

    JAX's weak types count as what they are: the float64 that a Python number becomes is no
    narrower than any other.
    """
    dtypes = [getattr(leaf, "dtype", None) or jnp.result_type(leaf) for leaf in jax.tree.leaves(a)]
    return np.dtype(jnp.result_type(*dtypes))


def basis(a: T) -> T:
    """Return the standard basis of the space of `a`, stacked along a new first axis.

    Each leaf of shape ``s`` becomes shape ``(size(a), *s)``; slice ``i`` is the unit vector
    of the i-th scalar, counted leaf by leaf in row-major order.
    """
    leaves, structure = jax.tree.flatten(a)
    total, start, out = size(a), 0, []
    for leaf in leaves:
        count = int(np.prod(jnp.shape(leaf)))
        unit = jnp.eye(total, count, k=-start, dtype=leaf.dtype)
        out.append(unit.reshape(total, *jnp.shape(leaf)))
        start += count
    return jax.tree.unflatten(structure, out)


def random_directions(key: Array, a: T, count: int) -> T:
    """Return `count` Gaussian vectors in the space of `a`, stacked along a new first axis."""
    leaves, structure = jax.tree.flatten(a)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, (count, *leaf.shape), leaf.dtype, out_sharding=axes_of(leaf, 1))
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def fixed_directions(a: T, count: int) -> T:
    """Return `count` Gaussian vectors in the space of `a`, stacked, the same at every call.

    Few numbers are constants of the program: to draw them would cost more than to use them.
    """
    if count * size(a) > MAX_CONSTANT_SIZE:
        return random_directions(jax.random.key(0), a, count)
    random = np.random.default_rng(0)

    def drawn(leaf):
        numbers = random.standard_normal((count, *leaf.shape)).astype(leaf.dtype)
        return jnp.zeros_like(leaf)[None] + numbers  # spread over devices as the leaf is

    return jax.tree.map(drawn, a)


def irregular(like: T) -> T:
    """Return fixed factors of both signs, of sizes between 1/2 and 1.

    A sum whose terms are multiplied by them is about as large as the terms, even if these cancel.
    Few numbers are constants of the program, as in `fixed_directions`.
    """

    def factors(leaf):
        few = leaf.size <= MAX_CONSTANT_SIZE
        axes = axes_of(leaf) if leaf.ndim == 1 else None
        numbers: Any = np.arange(leaf.size)
        if not few:
            numbers = jnp.arange(leaf.size, dtype=leaf.dtype, out_sharding=axes)
        library: Any = np if few else jnp
        waves = library.cos(1.3 * numbers + 0.4)
        sizes = waves / 2 + library.where(waves >= 0, 0.5, -0.5)
        return jnp.asarray(sizes.reshape(leaf.shape), leaf.dtype)

    return jax.tree.map(factors, like)


def stack_to_matrix(stacked: PyTree) -> Float[Array, "k n"]:
    """Return k stacked vectors, in the layout of `basis`, as the rows of one matrix."""
    leaves = jax.tree.leaves(stacked)
    dtype = result_dtype(stacked)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], 1)


def to_vector(a: PyTree) -> Float[Array, " n"]:
    """Return all scalars of `a` as one vector of dtype ``result_dtype(a)``."""
    dtype = result_dtype(a)
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(a)])


def from_vector(vector: Float[Array, " n"], like: T) -> T:
    """Return `vector` in the structure, shapes and dtypes of `like`: the inverse of `to_vector`."""
    leaves, structure = jax.tree.flatten(like)
    out, start = [], 0
    for leaf in leaves:
        count = int(np.prod(jnp.shape(leaf)))
        part = jax.lax.slice_in_dim(vector, start, start + count)
        out.append(part.reshape(jnp.shape(leaf)).astype(leaf.dtype))
        start += count
    return jax.tree.unflatten(structure, out)


def floating_part(a: PyTree) -> tuple[PyTree, PyTree]:
    """Split a pytree into its floating array leaves and the rest (None in their place)."""
    return eqx.partition(a, is_floating)
