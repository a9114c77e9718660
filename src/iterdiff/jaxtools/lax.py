"""Control flow, linear solves and derivative guards that `jax.lax` does not offer."""

from collections.abc import Callable

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools.closures import hoist
from iterdiff.jaxtools.manual_axes import aligned, inside, while_loop
from iterdiff.jaxtools.tree import T, is_traced, result_dtype


def only_if(condition: Bool[Array, ""], compute: Callable[[], T], otherwise: T) -> T:
    """Return ``compute()`` where `condition` holds, else `otherwise`, without wasted work.

    Under ``vmap``, ``lax.cond`` computes both sides for every member of the batch. This function
    is a loop of at most one round, which runs only if some member needs it. The values that
    `compute` closes over are tied to the round: otherwise the compiler would move work that no
    round changes out of the loop, where it would always run. (Where JAX tracks over which mesh axes
    values vary, the tie would change that, and we do without.)
    """
    if inside():
        return while_loop(
            lambda carry: carry[0],
            lambda carry: (jnp.zeros_like(carry[0]), compute()),
            (condition, otherwise),
        )[1]
    traced, shape = jax.make_jaxpr(compute, return_shape=True)()
    structure = jax.tree.structure(shape)

    def body(carry):
        running, constants = jax.lax.optimization_barrier((carry[0], traced.consts))
        values = eval_jaxpr(traced.jaxpr, constants)
        return jnp.zeros_like(running), jax.tree.unflatten(structure, values)

    return while_loop(lambda carry: carry[0], body, (condition, otherwise))[1]


def computed_once(vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return `vector` such that the compiler does not recompute it at every use.

    Recomputed values may differ by rounding, with and without fused multiply-add. An optimisation
    barrier does not prevent that at every optimisation level; a triangular solve with the
    1-by-1 identity does, because the compiler does not look inside.
    """
    return _through_solves(vector)


@jax.custom_batching.custom_vmap
def _through_solves(vectors: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    if vectors.shape[-1] == 1:  # many scalar systems: one call instead of one for each
        one, solve = jnp.ones((1, 1), vectors.dtype), jax.lax.linalg.triangular_solve
        row = solve(one, vectors.reshape(1, -1), left_side=True, lower=True, unit_diagonal=True)
        return row.reshape(vectors.shape)
    ones = jnp.ones((*vectors.shape[:-1], 1, 1), vectors.dtype)
    solve, rows = jax.lax.linalg.triangular_solve, vectors[..., None, :]
    return solve(ones, rows, left_side=True, lower=True, unit_diagonal=True)[..., 0, :]


@_through_solves.def_vmap
def _(size: int, in_batched: list, vectors: Array) -> tuple[Array, bool]:
    # As a batch of solves; JAX would make one of it, and bring the members of the batch together.
    del size, in_batched
    return _through_solves(vectors), True


def custom_solve(
    matvec: Callable[[T], T],
    b: T,
    solve: Callable[[T], T],
    transposed: Callable[[T], T],
    no_transpose: str | None = None,
) -> T:
    """Return ``solve(b)``; JAX differentiates it as the solution of ``matvec(x) = b``.

    This is `jax.lax.custom_linear_solve`, which JAX transposes only if every leaf of `b` has a
    tangent. So each leaf depends, in name, on all of them: before the solve and, for derivatives
    of higher order, after it and in `matvec`.

    Parameters
    ----------
    matvec : callable
        The linear operator, of pytrees like `b`.
    b : pytree of real floating arrays
        The right-hand side.
    solve, transposed : callable
        Solve with the operator and with its transpose.
    no_transpose : str, optional
        The message of the RuntimeError that reverse mode raises if JAX cannot transpose `matvec` or
        trace `transposed`; forward mode then works all the same. By default JAX's error is raised
        in either mode.
    """
    b = tied(b)
    product, solve, transposed = (_aligned(f, b) for f in (matvec, solve, transposed))

    def solved(transpose_solve: Callable | None) -> T:
        linear_solve = jax.lax.custom_linear_solve
        tied_product = lambda v: tied(product(tied(v)))  # noqa: E731
        return tied(linear_solve(tied_product, b, lambda _, v: solve(v), transpose_solve))

    try:
        return solved(lambda _, w: transposed(w))
    except (TypeError, ValueError, NotImplementedError):
        if no_transpose is None:
            raise
        # If the error was one of `matvec` or `solve`, they raise it again.
        return forward_only(solved(None), no_transpose)


def _aligned(function: Callable[[T], T], like: T) -> Callable[[T], T]:
    """Return `function`; inside `jax.shard_map` what it closes over varies as `like` does.

    There, JAX makes all values that a linear solve closes over vary, after it has traced how they
    are used. Constants that do not vary are therefore kept inside a compiled function.
    """
    if not inside():
        return function
    converted, closed_over = hoist(function, like)
    places = [i for i, value in enumerate(closed_over) if is_traced(value)]
    given = aligned([closed_over[i] for i in places], like)

    @jax.jit
    def call(given: list, v: T) -> T:
        values = list(closed_over)
        for i, value in zip(places, given, strict=True):
            values[i] = value
        return converted(values, v)

    return lambda v: call(given, v)


def tied(a: T) -> T:
    """Return `a` such that the tangent of each leaf is one of all leaves."""
    leaves, structure = jax.tree.flatten(a)
    if len(leaves) == 1:
        return a
    dtype = result_dtype(leaves)
    total = sum((jnp.sum(leaf).astype(dtype) for leaf in leaves), jnp.zeros((), dtype))
    nothing = jax.lax.select(jnp.zeros((), bool), total, jnp.zeros_like(total))
    return jax.tree.unflatten(structure, [leaf + nothing.astype(leaf.dtype) for leaf in leaves])


def any_in_batch(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """Return whether `condition` holds for any member of the batch, as one unbatched value."""
    return eqxi.unvmap_any(condition)


def largest_in_batch(number: Array) -> Array:
    """Return the largest number of the batch, as one unbatched value."""
    return eqxi.unvmap_max(number)


def forward_only(tangents: PyTree, message: str) -> PyTree:
    """Return `tangents`; reverse mode raises a RuntimeError with this message."""
    return eqxi.nondifferentiable_backward(tangents, msg=message, symbolic=True)
