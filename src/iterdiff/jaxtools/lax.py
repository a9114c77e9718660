"""Control flow and linear solves that `jax.lax` does not offer as such."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jaxtyping import Array, Bool, Float

from iterdiff.jaxtools.tree import T, from_vector, to_vector


def only_if(condition: Bool[Array, ""], compute: Callable[[], T], otherwise: T) -> T:
    """Return ``compute()`` where `condition` holds, else `otherwise`, without wasted work.

    ``lax.cond`` under ``vmap`` computes both sides for every member of the batch; this loop of
    at most one round runs only if some member needs it. What `compute` closes over is tied to the
    round: the compiler moves what no round changes out of a loop, where it would run always.
    """
    traced, shape = jax.make_jaxpr(compute, return_shape=True)()
    structure = jax.tree.structure(shape)

    def body(carry):
        going_on, constants = jax.lax.optimization_barrier((carry[0], traced.consts))
        values = eval_jaxpr(traced.jaxpr, constants)
        return jnp.zeros_like(going_on), jax.tree.unflatten(structure, values)

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, otherwise))[1]


def computed_once(vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return `vector` such that the compiler does not compute it anew for every use.

    Where it does, two uses may differ by rounding, with and without fused multiply-add. An
    optimisation barrier does not hold up to there; a triangular solve (with the number 1) does,
    since the compiler does not look inside.
    """
    one = jnp.ones((1, 1), vector.dtype)
    solve = jax.lax.linalg.triangular_solve
    return solve(one, vector[None], left_side=True, lower=True, unit_diagonal=True)[0]


def custom_solve(
    matvec: Callable[[T], T],
    b: T,
    solve: Callable[[T], T],
    transposed: Callable[[T], T],
) -> T:
    """Return ``solve(b)``; JAX differentiates it as the solution of ``matvec(x) = b``.

    As `jax.lax.custom_linear_solve`, on one vector of all leaves: of several, JAX transposes the
    solve only if each has a tangent. `transposed` solves with the transpose of `matvec`.
    """

    def on_vectors(function):
        return lambda vector: to_vector(function(from_vector(vector, b)))

    solved = jax.lax.custom_linear_solve(
        on_vectors(matvec),
        to_vector(b),
        lambda _, vector: on_vectors(solve)(vector),
        lambda _, vector: on_vectors(transposed)(vector),
    )
    return from_vector(solved, b)
