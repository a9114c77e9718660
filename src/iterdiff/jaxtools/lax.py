"""Control flow, linear solves and derivative guards that `jax.lax` does not offer."""

from collections.abc import Callable

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jaxtyping import Array, Bool, Float, PyTree

from iterdiff.jaxtools.manual_axes import inside, while_loop
from iterdiff.jaxtools.tree import T, from_vector, to_vector


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
    one = jnp.ones((1, 1), vector.dtype)
    solve = jax.lax.linalg.triangular_solve
    return solve(one, vector[None], left_side=True, lower=True, unit_diagonal=True)[0]


def custom_solve(
    matvec: Callable[[T], T],
    b: T,
    solve: Callable[[T], T],
    transposed: Callable[[T], T],
    no_transpose: str | None = None,
) -> T:
    """Return ``solve(b)``; JAX differentiates it as the solution of ``matvec(x) = b``.

    This is `jax.lax.custom_linear_solve` on one vector that holds all leaves. On several leaves,
    JAX transposes the solve only if every leaf has a tangent.

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

    def on_vectors(function):
        return lambda vector: to_vector(function(from_vector(vector, b)))

    def solved(transpose_solve: Callable | None) -> Array:
        return jax.lax.custom_linear_solve(
            on_vectors(matvec),
            to_vector(b),
            lambda _, vector: on_vectors(solve)(vector),
            transpose_solve,
        )

    try:
        return from_vector(solved(lambda _, vector: on_vectors(transposed)(vector)), b)
    except (TypeError, ValueError, NotImplementedError):
        if no_transpose is None:
            raise
        # If the error was one of `matvec` or `solve`, they raise it again.
        return forward_only(from_vector(solved(None), b), no_transpose)


def any_in_batch(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """Return whether `condition` holds for any member of the batch, as one unbatched value."""
    return eqxi.unvmap_any(condition)


def forward_only(tangents: PyTree, message: str) -> PyTree:
    """Return `tangents`; reverse mode raises a RuntimeError with this message."""
    return eqxi.nondifferentiable_backward(tangents, msg=message, symbolic=True)
