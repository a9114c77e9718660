"""Small least-squares problems whose columns may be zero or linearly dependent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iterdiff.jaxtools import tree


def safe_length(v: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Return Euclidean norms along the last axis; 1, with derivative 0, for zero vectors."""
    length = jax.vmap(tree.norm)(v) if v.ndim > 1 else tree.norm(v)
    return jnp.where(length == 0, 1, length)


def least_squares(
    columns: Float[Array, "k n"], b: Float[Array, " n"], damping: float
) -> Float[Array, " k"]:
    r"""Return the minimiser of a damped least-squares problem, by QR.

    The columns are first scaled to unit length (zero columns stay zero). Then
    :math:`\|C^\top g - b\|^2 + \delta^2 \|g\|^2` is minimised over :math:`g`. The damping gives the
    stacked matrix full rank, so value and derivative are finite for all columns. The weight of a
    zero column is zero.

    Parameters
    ----------
    columns : array, shape (k, n)
        The columns of the matrix, as rows.
    b : array, shape (n,)
        The right-hand side.
    damping : float
        :math:`\delta`, positive, relative to columns of unit length.
    """
    k = columns.shape[0]
    lengths = safe_length(columns)
    scaled = columns / lengths[:, None]
    stacked = jnp.concatenate([scaled.T, damping * jnp.eye(k, dtype=b.dtype)])
    q, r = jnp.linalg.qr(stacked)
    padded = jnp.concatenate([b, jnp.zeros(k, b.dtype)])
    return jax.scipy.linalg.solve_triangular(r, q.T @ padded) / lengths
