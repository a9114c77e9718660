r"""The residual polynomials that are best for the Jacobian instead of for the iterate.

The Jacobian's error on a quadratic involves :math:`P - \lambda P'` and :math:`P'` (see
`iterdiff.theory.identity`), so the natural measure of a polynomial is a Sobolev norm. Among
the polynomials of degree t with :math:`P(0) = 1`, the smallest in the norm of a scalar product
is its reproducing kernel in 0, scaled:

.. math::

    P_t(\lambda) = \frac{\sum_{k \le t} S_k(0) S_k(\lambda)}{\sum_{k \le t} S_k(0)^2}

for orthonormal :math:`S_k`. Here the :math:`S_k` come from one dense QR factorisation at Gauss
points, which is plain and stable; `iterdiff.Sobolev` reaches the same polynomials by a
recurrence with one gradient a step, and the tests hold the two against each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks
from iterdiff.theory.polynomials import ResidualPolynomial
from iterdiff.theory.rates import chebyshev_rate


def sobolev_polynomials(
    steps: int,
    eigenvalue: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    *,
    alpha: float = 0.5,
    eta: ArrayLike | None = None,
    norm: str = "B",
) -> ResidualPolynomial:
    r"""Return the Sobolev-optimal residual polynomials of degree 0 to `steps`.

    They minimise, among polynomials with :math:`P(0) = 1`, the norm of

    .. math::

        \langle p, q \rangle_B = \int (p - \lambda p')(q - \lambda q')\,d\mu
            + \eta \int p' q'\,d\mu

    or, with norm "A", of

    .. math::

        \langle p, q \rangle_A = \int p q\,d\mu + \eta \int p' q'\,d\mu,

    where :math:`\mu` is the Gegenbauer weight :math:`(1 - \sigma^2)^{\alpha - 1/2}` on the
    spectrum's interval, mapped to :math:`[-1, 1]`. `alpha` = 1/2 weighs all eigenvalues alike.

    Parameters
    ----------
    steps : int
        The largest degree, static. Cost: one QR factorisation of about 2 `steps` by `steps`.
    eigenvalue : float array of shape (...)
        Where to evaluate.
    smallest, largest : float
        The bounds :math:`0 < \ell < L` that the method is given.
    alpha : float
        Exponent of the weight, above -1/2.
    eta : float, optional
        Weight of the derivative term, positive, in units of the eigenvalue squared;
        :math:`\ell L` by default. With :math:`\eta = 0` norm B would not tell :math:`P` from
        :math:`P + c\lambda`.
    norm : "A" or "B"
        Which scalar product.

    Returns
    -------
    ResidualPolynomial
        Arrays of shape (steps + 1, ...): value and derivative for each degree.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling*, NeurIPS 2022,
    for the idea of a Sobolev-optimal method.
    """
    whole = "a nonnegative whole number"
    _checks.require("steps", steps, lambda v: (v >= 0) & (v == np.floor(v)), whole)
    steps = int(steps)
    _checks.require("alpha", alpha, lambda v: v > -0.5, "above -1/2")
    if norm not in ("A", "B"):
        raise ValueError(f'`norm` must be "A" or "B", not {norm!r}.')
    low, high = _checks.interval(smallest, largest, strict=True)
    weight = low * high if eta is None else _checks.positive("eta", eta)
    lam = _checks.real(eigenvalue)
    dtype = jnp.result_type(lam, low, high, weight)
    lam, low, high, weight = (a.astype(dtype) for a in (lam, low, high, weight))
    center, radius = (high + low) / 2, (high - low) / 2
    decay = chebyshev_rate(low, high)
    grid = _Grid(steps, alpha, center / radius, decay, weight / radius**2)
    factor, at_zero = _factor(grid, norm)
    basis, slope = _basis(grid.beta, (center - lam.reshape(-1)) / radius, steps, 1.0)
    # Orthonormal polynomials at the eigenvalues, and at 0 relative to decay**-k.
    degree = jnp.arange(steps + 1)
    relative = factor * jnp.tril(
        _checks.power(decay, jnp.maximum(degree[:, None] - degree[None, :], 0))
    )
    zero = _forward_substitution(relative, at_zero)
    both = jnp.concatenate([basis, -slope / radius], 1)
    value, slope = jnp.split(jax.scipy.linalg.solve_triangular(factor, both, lower=True), 2, 1)

    def kernel(carry, row):
        total, value, slope = carry
        z, v, s, k = row
        total = decay**2 * total + z * z
        value, slope = decay * value + z * v, decay * slope + z * s
        scale = _checks.power(decay, k) / total
        return (total, value, slope), (scale * value, scale * slope)

    start = jnp.zeros_like(zero[0]), jnp.zeros_like(value[0]), jnp.zeros_like(slope[0])
    _, (value, slope) = jax.lax.scan(kernel, start, (zero, value, slope, degree))
    shape = (steps + 1, *lam.shape)
    return ResidualPolynomial(value.reshape(shape), slope.reshape(shape))


class _Grid(NamedTuple):
    """What the scalar product needs, in the variable that runs over [-1, 1]."""

    steps: int
    alpha: float
    origin: Float[Array, ""]
    decay: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def beta(self) -> Float[Array, " n"]:
        """Recurrence coefficients of the orthonormal Gegenbauer polynomials, from index 0."""
        n, a = jnp.arange(1, self.steps + 3, dtype=self.origin.dtype), self.alpha
        if a == 0:  # the limit: Chebyshev polynomials, whose first coefficient is special
            square = jnp.where(n == 1, 0.5, 0.25)
        else:
            square = n * (n + 2 * a - 1) / (4 * (n + a) * (n + a - 1))
        return jnp.concatenate([jnp.zeros(1, square.dtype), jnp.sqrt(square)])


def _factor(grid: _Grid, norm: str) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
    """Return the Cholesky factor of the Gram matrix of the basis, and the basis in 0, scaled."""
    off = grid.beta[1 : grid.steps + 2]
    nodes, vectors = jnp.linalg.eigh(jnp.diag(off, 1) + jnp.diag(off, -1))
    root = jnp.abs(vectors[0])  # square roots of the Gauss weights
    basis, slope = _basis(grid.beta, nodes, grid.steps, 1.0)
    shown = basis + (grid.origin - nodes)[None] * slope if norm == "B" else basis
    rows = jnp.concatenate([shown, jnp.sqrt(grid.weight) * slope], 1).T * jnp.tile(root, 2)[:, None]
    factor = jnp.linalg.qr(rows, mode="r").T
    at_zero, _ = _basis(grid.beta, grid.origin[None], grid.steps, grid.decay)
    return factor, at_zero[:, 0]


def _forward_substitution(
    lower: Float[Array, "n n"], rhs: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Solve with a lower triangular matrix, row by row.

    Not by LAPACK: under `vmap`, jaxlib 0.10 waits for ever where as many of its calls are ready at
    once as there are cores (docs/faq.md), and another one is.
    """

    def advance(x, row):
        k, weights, b = row
        return x.at[k].set((b - weights @ x) / weights[k]), None

    return jax.lax.scan(advance, jnp.zeros_like(rhs), (jnp.arange(len(rhs)), lower, rhs))[0]


def _basis(
    beta: Float[Array, " k"], sigma: Float[Array, " m"], steps: int, scale: ArrayLike
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """Return scale**k times the orthonormal Gegenbauer polynomials k and their derivatives."""

    def advance(carry, k):
        (g, dg), (g_old, dg_old) = carry
        g_new = scale * (sigma * g - scale * beta[k] * g_old) / beta[k + 1]
        dg_new = scale * (sigma * dg + g - scale * beta[k] * dg_old) / beta[k + 1]
        return ((g_new, dg_new), (g, dg)), (g, dg)

    one, zero = jnp.ones_like(sigma), jnp.zeros_like(sigma)
    _, (g, dg) = jax.lax.scan(advance, ((one, zero), (zero, zero)), jnp.arange(steps + 1))
    return g, dg
