r"""Bounds on the error of the unrolled Jacobian on quadratics with spectrum in [l, L].

The formula of `iterdiff.theory.commuting_error` gives :math:`\|E_t\|_F \le \max|P_t - \lambda
P_t'|\,\|E_0\|_F + \max|P_t'|\,\mathsf G` with :math:`\mathsf G = \|d_\theta[\nabla
f(x_0(\theta), \theta)]\|_F` and maxima over :math:`[\ell, L]`. The functions ``*_factors`` return
the maxima, and the functions ``*_bound`` return the bound. Norms are Frobenius norms; errors are
absolute.

**If H and dH do not commute, these bounds do not hold**: in the counterexample of
`iterdiff.theory.commuting_error` they are 0, and the error is 1.13. `noncommuting_bound` holds in
every case, with the same factors.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from iterdiff.theory import _checks
from iterdiff.theory.worst_cases import (
    Factors,
    chebyshev_factors,
    gradient_descent_ends,
    heavy_ball_factors,
    nesterov_factors,
    sobolev_factors,
)


def jacobian_bound(factors: Factors, initial_error: ArrayLike, G: ArrayLike) -> Float[Array, "..."]:
    r"""Return :math:`\max|P_t - \lambda P_t'|\,\|E_0\|_F + \max|P_t'|\,\mathsf G`.

    Assumptions: quadratic objective; :math:`H` and :math:`dH` commute; the coefficients of the
    method do not depend on :math:`\theta`.

    Parameters
    ----------
    factors : Factors
        From one of the ``*_factors`` functions.
    initial_error : float
        :math:`\|E_0\|_F`, absolute, nonnegative.
    G : float
        :math:`\mathsf G = \|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`, absolute.

    Returns
    -------
    float array
        An upper bound on :math:`\|E_t\|_F`, absolute.

    Raises
    ------
    ValueError
        If `initial_error` or `G` is known and negative.

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling*, NeurIPS 2022.
    """
    error = _checks.as_nonnegative("initial_error", initial_error)
    slope = _checks.as_nonnegative("G", G)
    try:
        jnp.broadcast_shapes(factors.jacobian.shape, error.shape, slope.shape)
    except ValueError as mismatch:
        raise ValueError(
            f"`initial_error` of shape {error.shape} and `G` of shape {slope.shape} must broadcast "
            f"against the iterations, of shape {factors.jacobian.shape}."
        ) from mismatch
    return factors.jacobian * error + factors.gradient * slope


def noncommuting_bound(
    factors: Factors,
    initial_error: ArrayLike,
    hessian_derivative: ArrayLike,
    initial_distance: ArrayLike,
) -> Float[Array, "..."]:
    r"""Return :math:`\max|P_t|\,\|E_0\|_F + \max|P_t'|\,\|dH\|_F\,\|e_0\|`.

    It holds whether or not :math:`H` and :math:`dH` commute, because each divided difference of
    :math:`P_t` is a value of :math:`P_t'` in :math:`[\ell, L]`.

    Assumptions: quadratic objective; the coefficients of the method do not depend on
    :math:`\theta`.

    Parameters
    ----------
    factors : Factors
        From one of the ``*_factors`` functions.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    hessian_derivative : float
        :math:`\|dH\|_F` over all entries and all parameters, absolute.
    initial_distance : float
        :math:`\|x_0 - x^*\|`, absolute.

    Returns
    -------
    float array
        An upper bound on :math:`\|E_t\|_F`, absolute.

    Raises
    ------
    ValueError
        If an argument is known and negative.

    Examples
    --------
    The counterexample of `commuting_error`, whose true error is 1.13:

    >>> from iterdiff import theory
    >>> factors = theory.gradient_descent_factors(2, 0.2, 1.0, 1.0)
    >>> float(theory.jacobian_bound(factors, initial_error=0.0, G=0.0))
    0.0
    >>> round(float(theory.noncommuting_bound(factors, 0.0, 2.0, 2**0.5)), 2)
    4.53
    """
    error = _checks.as_nonnegative("initial_error", initial_error)
    change = _checks.as_nonnegative("hessian_derivative", hessian_derivative)
    distance = _checks.as_nonnegative("initial_distance", initial_distance)
    return factors.iterate * error + factors.gradient * change * distance


def gradient_descent_bound(
    t: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    step_size: ArrayLike,
    initial_error: ArrayLike,
    G: ArrayLike,
) -> Float[Array, "..."]:
    r"""Return the bound on the error of the Jacobian under gradient descent.

    .. math::

        \|E_t\|_F \le \max_{\lambda \in \{\ell, L\}} |1 - h\lambda|^{t-1}
        \big\{ (1 + (t-1) h\lambda)\, \|E_0\|_F + h t\, \mathsf G \big\}, \qquad t \ge 1 .

    With :math:`h = 1/L` and :math:`\kappa = \ell/L` it is :math:`(1 - \kappa)^{t-1}\{(1 +
    \kappa(t-1)) \|E_0\|_F + t\,\mathsf G / L\}`. The bound is attained by an error :math:`E_0` and
    a gradient derivative along the worst eigenvector, with opposite signs.

    Assumptions: quadratic objective with spectrum in :math:`[\ell, L]`; :math:`H` and
    :math:`dH` commute; the step size does not depend on :math:`\theta`. If :math:`H` and
    :math:`dH` do not commute, the bound can be wrong by any factor; use `noncommuting_bound`.

    Parameters
    ----------
    t : int array
        Numbers of iterations, nonnegative. The arguments broadcast against each other.
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum.
    step_size : float
        The step size :math:`h`, positive, in units of one over the eigenvalue.
    initial_error : float
        :math:`\|E_0\|_F`, absolute, nonnegative.
    G : float
        :math:`\mathsf G = \|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`, absolute.

    Returns
    -------
    float array
        An upper bound on :math:`\|E_t\|_F`, absolute.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling*, NeurIPS 2022.

    Examples
    --------
    >>> from iterdiff import theory
    >>> float(theory.gradient_descent_bound(2, 0.5, 1.0, 1.0, 1.0, 1.0))
    1.75
    """
    ends = gradient_descent_ends(t, smallest, largest, step_size)
    return jnp.maximum(*(jacobian_bound(end, initial_error, G) for end in ends))


def heavy_ball_bound(
    t: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    initial_error: ArrayLike,
    G: ArrayLike,
    *,
    damped_start: bool = False,
) -> Float[Array, "..."]:
    r"""Return `jacobian_bound` for heavy ball with Polyak's parameters.

    From rest, both terms are largest at the largest eigenvalue, so the bound is attained.

    Assumptions are those of `gradient_descent_bound`; so are parameters, result and errors, with
    these exceptions: there is no step size, :math:`\ell < L`, and `damped_start` chooses a first
    step of :math:`h / (1 + \beta)`, see `heavy_ball_polynomial`. The factors are those of
    `heavy_ball_factors`.
    """
    factors = heavy_ball_factors(t, smallest, largest, damped_start=damped_start)
    return jacobian_bound(factors, initial_error, G)


def nesterov_bound(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> Float[Array, "..."]:
    r"""Return `jacobian_bound` for Nesterov's method with the parameters of `nesterov_parameters`.

    It is not attained in general, because its two terms are largest at different eigenvalues.

    Assumptions are those of `gradient_descent_bound`; so are parameters, result and errors,
    except that there is no step size and that :math:`\ell < L` are scalars. The factors are those
    of `nesterov_factors`.
    """
    return jacobian_bound(nesterov_factors(t, smallest, largest), initial_error, G)


def chebyshev_bound(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> Float[Array, "..."]:
    r"""Return `jacobian_bound` for the Chebyshev method.

    .. math::

        \|E_t\|_F \le \frac{2}{\xi^t + \xi^{-t}} \Big\{ \Big(\frac{2t^2}{1-\kappa} - 1\Big)
        \|E_0\|_F + \frac{2t^2}{L - \ell}\, \mathsf G \Big\}, \qquad t \ge 1,

    It is attained at :math:`\lambda = L`.

    Assumptions are those of `gradient_descent_bound`; so are parameters, result and errors,
    except that there is no step size and that :math:`\ell < L`. The factors are those of
    `chebyshev_factors`.
    """
    return jacobian_bound(chebyshev_factors(t, smallest, largest), initial_error, G)


def sobolev_bound(
    steps: int, smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> Float[Array, "..."]:
    r"""Return `jacobian_bound` for the Sobolev method, for t = 0, ..., `steps`.

    Assumptions are those of `gradient_descent_bound`; so are parameters, result and errors, with
    these exceptions: there is no step size, :math:`\ell < L` are scalars, and the Python int
    `steps` replaces t, so that the result has the shape (steps + 1,). The factors are those of
    `sobolev_factors`.
    """
    return jacobian_bound(sobolev_factors(steps, smallest, largest), initial_error, G)
