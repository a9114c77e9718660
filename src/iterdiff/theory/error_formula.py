r"""The exact error of the unrolled Jacobian on quadratics.

Assumptions throughout: :math:`f(x, \theta) = \tfrac12 x^\top H(\theta) x + b(\theta)^\top x`, and
the coefficients of the method do not depend on :math:`\theta`. Notation: :math:`E_t =
\partial_\theta x_t - \partial_\theta x^*` and :math:`e_0 = x_0 - x^*`.

If a step size depends on :math:`\theta`, the error has an additional term :math:`(\partial_h
P_t)(H) e_0\, \partial_\theta h`. `jax.lax.stop_gradient` on the step size removes the term. This
is always legitimate, because the solution does not depend on the step size.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks
from iterdiff.theory.polynomials import ResidualPolynomial

Polynomial = Callable[[Float[Array, "..."]], ResidualPolynomial]
"""A residual polynomial as a function of the eigenvalue."""

_CLOSE_MAX_RELATIVE_GAP = 1e-3
"""Up to this gap, relative to the largest eigenvalue, quadrature replaces the quotient."""

_QUADRATURE_POINTS = 16
"""Number of Gauss points between two close eigenvalues."""


def jacobian_part(polynomial: ResidualPolynomial, eigenvalue: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`P_t(\lambda) - \lambda P_t'(\lambda)`, the factor of the initial error.

    Parameters
    ----------
    polynomial : ResidualPolynomial
        Values and derivatives at `eigenvalue`.
    eigenvalue : float array
        Where the polynomial was evaluated.

    Returns
    -------
    float array
        Dimensionless, of the broadcast shape.
    """
    return polynomial.value - _checks.as_real("eigenvalue", eigenvalue) * polynomial.derivative


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

    Assumptions: quadratic objective; coefficients independent of :math:`\theta`;
    :math:`H\,dH = dH\,H` for every direction (as for ridge regression in its regularisation).

    If :math:`H` and :math:`dH` do not commute, the formula can be wrong by any factor. With
    :math:`H = \mathrm{diag}(0.2, 1)`, :math:`dH = (1, -1; -1, 1)`, :math:`e_0 = (1, 1)`,
    :math:`E_0 = 0` both terms vanish, while two gradient steps of size 1 leave an error of norm
    1.13. Use `noncommuting_error` in that case.

    Parameters
    ----------
    polynomial : callable
        Maps eigenvalues to a `ResidualPolynomial`, for example
        ``lambda eigenvalue: chebyshev_polynomial(30, eigenvalue, smallest, largest)``.
    hessian : float array of shape (n, n)
        :math:`H`, symmetric.
    initial_error : float array of shape (n, p)
        :math:`E_0`, absolute.
    gradient_derivative : float array of shape (n, p)
        The total derivative of :math:`\nabla f(x_0(\theta), \theta)` with respect to
        :math:`\theta`.

    Returns
    -------
    float array of shape (n, p)
        :math:`E_t`, absolute.

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling*, NeurIPS 2022.
    """
    eigenvalue, vectors = jnp.linalg.eigh(jnp.asarray(hessian))
    P = polynomial(eigenvalue)
    error_term = jacobian_part(P, eigenvalue)[:, None] * (vectors.T @ initial_error)
    gradient_term = P.derivative[:, None] * (vectors.T @ gradient_derivative)
    return vectors @ (error_term + gradient_term)


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

    Assumptions: quadratic objective; coefficients independent of :math:`\theta`.

    Parameters
    ----------
    polynomial : callable
        Maps eigenvalues of any shape to a `ResidualPolynomial`.
    hessian : float array of shape (n, n)
        :math:`H`, symmetric.
    hessian_derivative : float array of shape (n, n, p)
        :math:`dH / d\theta_k` along the last axis, symmetric in the first two.
    initial_error : float array of shape (n, p)
        :math:`E_0`, absolute.
    initial_iterate_error : float array of shape (n,)
        :math:`e_0 = x_0 - x^*`, absolute.

    Returns
    -------
    float array of shape (n, p)
        :math:`E_t`, absolute.

    References
    ----------
    Y. L. Daleckii, S. G. Krein, 1965; N. J. Higham, *Functions of Matrices*, SIAM 2008,
    theorem 3.11 for the derivative of a matrix function.
    """
    eigenvalue, vectors = jnp.linalg.eigh(jnp.asarray(hessian))
    differences = divided_differences(polynomial, eigenvalue)
    rotated = jnp.einsum("ki,klp,lj->ijp", vectors, jnp.asarray(hessian_derivative), vectors)
    change_term = jnp.einsum(
        "ij,ijp,j->ip", differences, rotated, vectors.T @ initial_iterate_error
    )
    error_term = polynomial(eigenvalue).value[:, None] * (vectors.T @ initial_error)
    return vectors @ (error_term + change_term)


def divided_differences(
    polynomial: Polynomial, eigenvalue: Float[Array, " n"]
) -> Float[Array, "n n"]:
    r"""Return the divided differences :math:`P[\lambda_i, \lambda_j]`.

    The diagonal, and every pair of equal eigenvalues, holds the derivative. For eigenvalues that
    are close, the quotient would cancel; there the function returns Gauss quadrature of
    :math:`\int_0^1 P'(\lambda_i + s(\lambda_j - \lambda_i))\,ds`.

    Parameters
    ----------
    polynomial : callable
        Maps eigenvalues of any shape to a `ResidualPolynomial`.
    eigenvalue : float array of shape (n,)
        The spectrum.

    Returns
    -------
    float array of shape (n, n)
        In units of one over the eigenvalue.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from iterdiff import theory
    >>> two_steps = lambda z: theory.gradient_descent_polynomial(2, z, 1.0)
    >>> theory.divided_differences(two_steps, jnp.array([0.5, 1.0])).tolist()
    [[-1.0, -0.5], [-0.5, 0.0]]
    """
    lam = jnp.asarray(eigenvalue)
    value = polynomial(lam).value
    gap = lam[:, None] - lam[None, :]
    close = jnp.abs(gap) <= _CLOSE_MAX_RELATIVE_GAP * jnp.max(jnp.abs(lam))
    quotient = (value[:, None] - value[None, :]) / jnp.where(close, 1.0, gap)
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
    position = jnp.asarray((nodes + 1) / 2, lam.dtype)[:, None, None]
    between = polynomial(lam[None, None, :] + position * gap[None]).derivative
    mean = jnp.tensordot(jnp.asarray(weights / 2, lam.dtype), between, 1)
    return jnp.where(close, mean, quotient)
