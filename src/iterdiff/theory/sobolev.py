r"""Residual polynomials that are optimal for the Jacobian instead of the iterate.

The error of the Jacobian on a quadratic involves :math:`P - \lambda P'` and :math:`P'` (see
`iterdiff.theory.error_formula`), so the natural measure of a polynomial is a Sobolev norm. Among
the polynomials of degree t with :math:`P(0) = 1`, the scaled reproducing kernel at 0 has the
smallest norm:

.. math::

    P_t(\lambda) = \frac{\sum_{k \le t} S_k(0) S_k(\lambda)}{\sum_{k \le t} S_k(0)^2}

for orthonormal :math:`S_k`. Here one dense QR factorisation at Gauss points gives the
:math:`S_k`, which is simple and stable. `iterdiff.Sobolev` computes the same polynomials by a
recurrence with one gradient per step, and the tests compare the two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
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

    Among polynomials with :math:`P(0) = 1` they minimise the norm of

    .. math::

        \langle p, q \rangle_B = \int (p - \lambda p')(q - \lambda q')\,d\mu
            + \eta \int p' q'\,d\mu

    or, with norm "A", of

    .. math::

        \langle p, q \rangle_A = \int p q\,d\mu + \eta \int p' q'\,d\mu,

    where :math:`\mu` is the Gegenbauer weight :math:`(1 - \sigma^2)^{\alpha - 1/2}` on the
    interval of the spectrum, mapped to :math:`[-1, 1]`. With `alpha` = 1/2 all eigenvalues have
    the same weight.

    Parameters
    ----------
    steps : int
        The largest degree, a Python int. The cost is one QR factorisation of a matrix of about
        2 `steps` rows and `steps` columns.
    eigenvalue : float array of shape (...)
        Where to evaluate, in any units.
    smallest, largest : float
        The bounds :math:`0 < \ell < L` of the spectrum that the method is given, scalars.
    alpha : float
        Exponent of the weight, above -1/2, dimensionless.
    eta : float, optional
        Weight of the derivative term, positive, in units of the eigenvalue squared. The default
        is :math:`\ell L`. With :math:`\eta = 0` norm B would not distinguish :math:`P` from
        :math:`P + c\lambda`.
    norm : {"B", "A"}
        The scalar product.

    Returns
    -------
    ResidualPolynomial
        Arrays of shape (steps + 1, ...): values and derivatives for each degree.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling*, NeurIPS 2022,
    for the idea of a Sobolev-optimal method.

    Examples
    --------
    The E-factor of degree 20 on a grid, compared with Chebyshev's:

    >>> import jax.numpy as jnp
    >>> from iterdiff import theory
    >>> eigenvalue = jnp.linspace(0.01, 1.0, 100)
    >>> sobolev = theory.sobolev_polynomials(20, eigenvalue, 0.01, 1.0)
    >>> chebyshev = theory.chebyshev_polynomial(20, eigenvalue, 0.01, 1.0)
    >>> E_factor = lambda P: round(float(abs(theory.jacobian_part(P, eigenvalue)).max()), 1)
    >>> E_factor(theory.ResidualPolynomial(sobolev.value[20], sobolev.derivative[20]))
    0.7
    >>> E_factor(chebyshev)
    29.2
    """
    _checks.require_scalars(steps=steps, smallest=smallest, largest=largest)
    _checks.require_count("steps", steps)
    steps = int(steps)
    _checks.require("alpha", alpha, lambda v: v > -0.5, "above -1/2")
    if norm not in ("A", "B"):
        raise ValueError(f'`norm` must be "A" or "B", not {norm!r}.')
    low, high = _checks.as_spectrum(smallest, largest, strict=True)
    weight = low * high if eta is None else _checks.as_positive("eta", eta)
    lam = _checks.as_real("eigenvalue", eigenvalue)
    dtype = jnp.result_type(lam, low, high, weight)
    lam, low, high, weight = (a.astype(dtype) for a in (lam, low, high, weight))
    center, radius = (high + low) / 2, (high - low) / 2
    decay = chebyshev_rate(low, high)
    product = _ScalarProduct(steps, alpha, center / radius, decay, weight / radius**2)
    factor, at_zero = _factor(product, norm)
    basis, slope = _basis(product.beta, (center - lam.reshape(-1)) / radius, steps, 1.0)
    # Orthonormal polynomials: at the eigenvalues, and at 0 relative to decay**-degree.
    degree = jnp.arange(steps + 1)
    relative = factor * jnp.tril(
        _checks.power(decay, jnp.maximum(degree[:, None] - degree[None, :], 0))
    )
    at_zero = _forward_substitution(relative, at_zero)
    both = jnp.concatenate([basis, -slope / radius], 1)
    value, slope = jnp.split(jax.scipy.linalg.solve_triangular(factor, both, lower=True), 2, 1)

    def add_degree(sums, row):
        square, value, slope = sums
        S_zero, S, S_slope, k = row
        square = decay**2 * square + S_zero**2
        value, slope = decay * value + S_zero * S, decay * slope + S_zero * S_slope
        scale = _checks.power(decay, k) / square
        return (square, value, slope), (scale * value, scale * slope)

    start = jnp.zeros_like(at_zero[0]), jnp.zeros_like(value[0]), jnp.zeros_like(slope[0])
    _, (value, slope) = jax.lax.scan(add_degree, start, (at_zero, value, slope, degree))
    shape = (steps + 1, *lam.shape)
    return ResidualPolynomial(value.reshape(shape), slope.reshape(shape))


class _ScalarProduct(NamedTuple):
    """The scalar product in the variable that runs over [-1, 1].

    Attributes
    ----------
    steps : int
        The largest degree.
    alpha : float
        Exponent of the Gegenbauer weight.
    origin : float array
        Where the eigenvalue 0 lies.
    decay : float array
        The Chebyshev rate: values at `origin` are kept relative to ``decay**-degree``.
    weight : float array
        Weight of the derivative term.
    """

    steps: int
    alpha: float
    origin: Float[Array, ""]
    decay: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def beta(self) -> Float[Array, " n"]:
        """Coefficients of the recurrence of the orthonormal polynomials, from index 0."""
        n, a = jnp.arange(1, self.steps + 3, dtype=self.origin.dtype), self.alpha
        if a == 0:  # the limit: the first coefficient of Chebyshev polynomials is special
            square = jnp.where(n == 1, 0.5, 0.25)
        else:
            square = n * (n + 2 * a - 1) / (4 * (n + a) * (n + a - 1))
        return jnp.concatenate([jnp.zeros(1, square.dtype), jnp.sqrt(square)])


def _factor(product: _ScalarProduct, norm: str) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
    """Return the Cholesky factor of the Gram matrix, and the scaled basis at the eigenvalue 0."""
    off = product.beta[1 : product.steps + 2]
    nodes, vectors = jnp.linalg.eigh(jnp.diag(off, 1) + jnp.diag(off, -1))
    root_weights = jnp.abs(vectors[0])  # square roots of the Gauss weights
    basis, slope = _basis(product.beta, nodes, product.steps, 1.0)
    first = basis + (product.origin - nodes)[None] * slope if norm == "B" else basis
    rows = (
        jnp.concatenate([first, jnp.sqrt(product.weight) * slope], 1).T
        * jnp.tile(root_weights, 2)[:, None]
    )
    factor = jnp.linalg.qr(rows, mode="r").T
    at_zero, _ = _basis(product.beta, product.origin[None], product.steps, product.decay)
    return factor, at_zero[:, 0]


def _forward_substitution(
    lower: Float[Array, "n n"], rhs: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Solve with a lower triangular matrix, row by row.

    LAPACK is not used here, because batched LAPACK calls of jaxlib 0.10 can deadlock: under
    ``vmap`` as many calls as cores may wait for each other (docs/faq.md).
    """

    def advance(x, row):
        k, weights, b = row
        return x.at[k].set((b - weights @ x) / weights[k]), None

    return jax.lax.scan(advance, jnp.zeros_like(rhs), (jnp.arange(len(rhs)), lower, rhs))[0]


def _basis(
    beta: Float[Array, " k"], sigma: Float[Array, " m"], steps: int, scale: ArrayLike
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """Return ``scale**k`` times the orthonormal Gegenbauer polynomials and their derivatives.

    Row k holds the values of degree k at `sigma`; `beta` are the recurrence coefficients.
    """

    def advance(carry, k):
        (g, dg), (g_old, dg_old) = carry
        g_new = scale * (sigma * g - scale * beta[k] * g_old) / beta[k + 1]
        dg_new = scale * (sigma * dg + g - scale * beta[k] * dg_old) / beta[k + 1]
        return ((g_new, dg_new), (g, dg)), (g, dg)

    one, zero = jnp.ones_like(sigma), jnp.zeros_like(sigma)
    _, (g, dg) = jax.lax.scan(advance, ((one, zero), (zero, zero)), jnp.arange(steps + 1))
    return g, dg
