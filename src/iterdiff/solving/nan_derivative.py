"""Mark an answer as one without a derivative: every derivative through it is NaN."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def nan_derivative_where(failed: Bool[Array, ""], x: PyTree, theta: PyTree) -> PyTree:
    """Return `x`; where `failed` holds, every derivative of it is NaN.

    A mode may find finite numbers for the derivative of a run that solved nothing: a linear
    residual, for example, has a finite Jacobian at NaN.

    Parameters
    ----------
    failed : bool scalar
        Whether the answer has no derivative; may be traced.
    x : pytree of real floating arrays
        The answer, returned unchanged.
    theta : pytree of real floating arrays
        Parameters. The derivative with respect to them is NaN even where `x` does not depend on
        them.
    """

    @jax.custom_jvp
    def unchanged(x, theta, failed):
        del theta, failed
        return x

    def rule(primals, tangents):
        (*_, failed), (dx, dtheta, _) = primals, tangents
        # Multiply rather than select: the transpose of a selection would give 0, not NaN.
        through_x, through_theta = jnp.where(failed, jnp.nan, 1.0), jnp.where(failed, jnp.nan, 0.0)
        total = sum(jnp.sum(leaf).astype(through_theta.dtype) for leaf in jax.tree.leaves(dtheta))

        def tangent(leaf):
            return through_x.astype(leaf.dtype) * leaf + (through_theta * total).astype(leaf.dtype)

        return unchanged(*primals), jax.tree.map(tangent, dx)

    unchanged.defjvp(rule)
    return unchanged(x, theta, failed)
