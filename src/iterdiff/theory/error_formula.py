r"""What differentiating the iterations adds to them: the exact error of the unrolled Jacobian.

Throughout, :math:`f(x, \theta) = \tfrac12 x^\top H(\theta) x + b(\theta)^\top x`, the method's
coefficients do not depend on :math:`\theta`, :math:`E_t = \partial_\theta x_t - \partial_\theta
x^*` and :math:`e_0 = x_0 - x^*`. Where a step size does depend on :math:`\theta`, a term
:math:`(\partial_h P_t)(H) e_0\, \partial_\theta h` comes on top; `jax.lax.stop_gradient` on the
step size removes it, rightly, as the solution does not depend on the step.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks
from iterdiff.theory.polynomials import ResidualPolynomial

Polynomial = Callable[[Float[Array, "..."]], ResidualPolynomial]
"""A residual polynomial as a function of the eigenvalue alone."""


def jacobian_part(polynomial: ResidualPolynomial, eigenvalue: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`P_t(\lambda) - \lambda P_t'(\lambda)`, what multiplies the initial error.

    Parameters
    ----------
    polynomial : ResidualPolynomial
        Value and derivative at `eigenvalue`.
    eigenvalue : float array
        Where they were evaluated.

    Returns
    -------
    float array
        Dimensionless.
    """
    return polynomial.value - _checks.real(eigenvalue) * polynomial.derivative


def commuting_error(
    polynomial: Polynomial,
    hessian: Float[Array, "n n"],
    initial_error: Float[Array, "n p"],
    gradient_derivative: Float[Array, "n p"],
) -> Float[Array, "n p"]:
    r"""Return the error of the unrolled Jacobian when H and dH commute.

    .. math::

        E_t = \big(P_t(H) - P_t'(H) H\big) E_0
              + P_t'(H)\, d_\theta\big[\nabla f(x_0(\theta), \theta)\big].

    Assumptions: quadratic objective, coefficients independent of :math:`\theta`, and
    :math:`H\,dH = dH\,H` for every direction (as for ridge regression in its regularisation).
    Without the last one it is wrong, by any factor: with :math:`H = \mathrm{diag}(0.2, 1)`,
    :math:`dH = (1, -1; -1, 1)`, :math:`e_0 = (1, 1)`, :math:`E_0 = 0` both terms vanish, while
    two gradient steps of length 1 leave an error of norm 1.13. Use `noncommuting_error` then.

    Parameters
    ----------
    polynomial : callable
        Eigenvalues to `ResidualPolynomial`, for example
        ``lambda lam: chebyshev_polynomial(30, lam, l, L)``.
    hessian : float array of shape (n, n)
        Symmetric.
    initial_error : float array of shape (n, p)
        :math:`E_0`.
    gradient_derivative : float array of shape (n, p)
        The total derivative of :math:`\nabla f(x_0(\theta), \theta)` in :math:`\theta`.

    Returns
    -------
    float array of shape (n, p)

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling*, NeurIPS 2022.
    """
    eigenvalue, vectors = jnp.linalg.eigh(jnp.asarray(hessian))
    at = polynomial(eigenvalue)
    first = jacobian_part(at, eigenvalue)[:, None] * (vectors.T @ initial_error)
    second = at.derivative[:, None] * (vectors.T @ gradient_derivative)
    return vectors @ (first + second)


def noncommuting_error(
    polynomial: Polynomial,
    hessian: Float[Array, "n n"],
    hessian_derivative: Float[Array, "n n p"],
    initial_error: Float[Array, "n p"],
    initial_iterate_error: Float[Array, " n"],
) -> Float[Array, "n p"]:
    r"""Return the error of the unrolled Jacobian, whether or not H and dH commute.

    With :math:`H = Q \Lambda Q^\top` and the divided differences
    :math:`P[\lambda, \mu] = (P(\lambda) - P(\mu)) / (\lambda - \mu)`,
    :math:`P[\lambda, \lambda] = P'(\lambda)`,

    .. math::

        E_t = P_t(H) E_0 + Q \big( P_t[\lambda_i, \lambda_j] \circ Q^\top dH\, Q \big)
              Q^\top e_0 .

    Assumptions: quadratic objective, coefficients independent of :math:`\theta`.

    Parameters
    ----------
    polynomial : callable
        Eigenvalues (of any shape) to `ResidualPolynomial`.
    hessian : float array of shape (n, n)
        Symmetric.
    hessian_derivative : float array of shape (n, n, p)
        :math:`dH / d\theta_k` along the last axis, symmetric in the first two.
    initial_error : float array of shape (n, p)
        :math:`E_0`.
    initial_iterate_error : float array of shape (n,)
        :math:`e_0 = x_0 - x^*`.

    Returns
    -------
    float array of shape (n, p)

    References
    ----------
    Y. L. Daleckii, S. G. Krein, 1965; N. J. Higham, *Functions of Matrices*, SIAM 2008,
    theorem 3.11 for the derivative of a matrix function.
    """
    eigenvalue, vectors = jnp.linalg.eigh(jnp.asarray(hessian))
    differences = divided_differences(polynomial, eigenvalue)
    rotated = jnp.einsum("ki,klp,lj->ijp", vectors, jnp.asarray(hessian_derivative), vectors)
    mixed = jnp.einsum("ij,ijp,j->ip", differences, rotated, vectors.T @ initial_iterate_error)
    kept = polynomial(eigenvalue).value[:, None] * (vectors.T @ initial_error)
    return vectors @ (kept + mixed)


def divided_differences(
    polynomial: Polynomial, eigenvalue: Float[Array, " n"]
) -> Float[Array, "n n"]:
    r"""Return :math:`P[\lambda_i, \lambda_j]`, the derivative where the two coincide.

    Eigenvalues that are close are joined by Gauss quadrature of
    :math:`\int_0^1 P'(\lambda_i + s(\lambda_j - \lambda_i))\,ds`, which does not cancel.

    Parameters
    ----------
    polynomial : callable
        Eigenvalues (of any shape) to `ResidualPolynomial`.
    eigenvalue : float array of shape (n,)
        The spectrum.

    Returns
    -------
    float array of shape (n, n)
    """
    lam = jnp.asarray(eigenvalue)
    value = polynomial(lam).value
    gap = lam[:, None] - lam[None, :]
    close = jnp.abs(gap) <= 1e-3 * jnp.max(jnp.abs(lam))
    quotient = (value[:, None] - value[None, :]) / jnp.where(close, 1.0, gap)
    nodes, weights = np.polynomial.legendre.leggauss(16)

    position = jnp.asarray((nodes + 1) / 2, lam.dtype)[:, None, None]
    between = polynomial(lam[None, None, :] + position * gap[None]).derivative
    mean = jnp.tensordot(jnp.asarray(weights / 2, lam.dtype), between, 1)
    return jnp.where(close, mean, quotient)
