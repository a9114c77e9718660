r"""Bounds of the error of the unrolled Jacobian on quadratics with spectrum in [l, L].

The master identity (`iterdiff.theory.commuting_error`) gives
:math:`\|E_t\|_F \le \max|P_t - \lambda P_t'|\,\|E_0\|_F + \max|P_t'|\,\mathsf G` with
:math:`\mathsf G = \|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`, the maxima being over
:math:`[\ell, L]`. The functions ``*_factors`` return those maxima, exactly where a closed form
is known, and ``*_bound`` the bound. Norms are Frobenius norms, errors absolute.

**When H and dH do not commute, these bounds do not hold**: in the counterexample of
`iterdiff.theory.commuting_error` they are 0 and the error is 1.13. What holds always is
`noncommuting_bound`, from the same factors.
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

    Assumptions: quadratic objective, :math:`H` and :math:`dH` commute, coefficients of the
    method independent of :math:`\theta`.

    Parameters
    ----------
    factors : Factors
        From one of the ``*_factors`` functions.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`.

    Returns
    -------
    float array
        A bound of :math:`\|E_t\|_F`, absolute.
    """
    error = _checks.nonnegative("initial_error", initial_error)
    return factors.jacobian * error + factors.gradient * _checks.nonnegative("G", G)


def noncommuting_bound(
    factors: Factors,
    initial_error: ArrayLike,
    hessian_derivative: ArrayLike,
    initial_distance: ArrayLike,
) -> Float[Array, "..."]:
    r"""Return :math:`\max|P_t|\,\|E_0\|_F + \max|P_t'|\,\|dH\|_F\,\|e_0\|`.

    It holds whether or not :math:`H` and :math:`dH` commute, since a divided difference of
    :math:`P_t` is a value of :math:`P_t'` in between. Assumptions: quadratic objective,
    coefficients of the method independent of :math:`\theta`.

    Parameters
    ----------
    factors : Factors
        From one of the ``*_factors`` functions.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    hessian_derivative : float
        :math:`\|dH\|_F`, over all entries and all parameters.
    initial_distance : float
        :math:`\|x_0 - x^*\|`.

    Returns
    -------
    float array
        A bound of :math:`\|E_t\|_F`, absolute.
    """
    error = _checks.nonnegative("initial_error", initial_error)
    change = _checks.nonnegative("hessian_derivative", hessian_derivative)
    distance = _checks.nonnegative("initial_distance", initial_distance)
    return factors.iterate * error + factors.gradient * change * distance


def gradient_descent_bound(
    t: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    step_size: ArrayLike,
    initial_error: ArrayLike,
    G: ArrayLike,
) -> Float[Array, "..."]:
    r"""Return the bound of the Jacobian's error under gradient descent.

    .. math::

        \|E_t\|_F \le \max_{\lambda \in \{\ell, L\}} |1 - h\lambda|^{t-1}
        \big\{ (1 + (t-1) h\lambda)\, \|E_0\|_F + h t\, \mathsf G \big\}, \qquad t \ge 1 .

    At :math:`h = 1/L` that is :math:`(1 - \kappa)^{t-1}\{(1 + \kappa(t-1)) \|E_0\|_F +
    t\,\mathsf G / L\}` with :math:`\kappa = \ell/L`. It is attained: by an error :math:`E_0` and
    a gradient derivative along the worst eigenvector, of opposite signs.

    Assumptions: quadratic objective with spectrum in :math:`[\ell, L]`, :math:`H` and
    :math:`dH` commute, step independent of :math:`\theta`. Without commutation it can be
    wrong by any factor; use `noncommuting_bound`.

    Parameters
    ----------
    t : int array
        Iterations, nonnegative.
    smallest, largest : float
        Bounds :math:`0 < \ell \le L` of the spectrum.
    step_size : float
        The step :math:`h`, positive.
    initial_error : float
        :math:`\|E_0\|_F`, absolute.
    G : float
        :math:`\|d_\theta[\nabla f(x_0(\theta), \theta)]\|_F`.

    Returns
    -------
    float array
        A bound of :math:`\|E_t\|_F`, absolute.

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
    """Return `jacobian_bound` for heavy ball with Polyak's parameters.

    Parameters are those of `gradient_descent_bound` without the step, and `damped_start` as in
    `heavy_ball_polynomial`; assumptions and what fails without them are the same. From rest
    both parts are largest at the largest eigenvalue, so that the bound is attained.
    """
    factors = heavy_ball_factors(t, smallest, largest, damped_start=damped_start)
    return jacobian_bound(factors, initial_error, G)


def nesterov_bound(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> Float[Array, "..."]:
    """Return `jacobian_bound` for Nesterov's method with its usual parameters.

    Parameters are those of `gradient_descent_bound` without the step; assumptions and what
    fails without them are the same. Not attained in general: its two parts are largest at
    different eigenvalues.
    """
    return jacobian_bound(nesterov_factors(t, smallest, largest), initial_error, G)


def chebyshev_bound(
    t: ArrayLike, smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> Float[Array, "..."]:
    r"""Return `jacobian_bound` for the Chebyshev method.

    .. math::

        \|E_t\|_F \le \frac{2}{\xi^t + \xi^{-t}} \Big\{ \Big(\frac{2t^2}{1-\kappa} - 1\Big)
        \|E_0\|_F + \frac{2t^2}{L - \ell}\, \mathsf G \Big\}, \qquad t \ge 1,

    attained at :math:`\lambda = L`. Parameters are those of `gradient_descent_bound` without
    the step; assumptions and what fails without them are the same.
    """
    return jacobian_bound(chebyshev_factors(t, smallest, largest), initial_error, G)


def sobolev_bound(
    steps: int, smallest: ArrayLike, largest: ArrayLike, initial_error: ArrayLike, G: ArrayLike
) -> Float[Array, "..."]:
    """Return `jacobian_bound` for the Sobolev method, for every t from 0 to `steps`.

    Parameters are those of `gradient_descent_bound` without the step, with the static number
    `steps` in place of t; assumptions and what fails without them are the same.
    """
    return jacobian_bound(sobolev_factors(steps, smallest, largest), initial_error, G)
