"""First-order methods built from polynomials, which need bounds of the Hessian's spectrum."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_range, check_word, is_known, scalar
from iterdiff.problems.least_squares import MINIMIZATIONS
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import Problem


def _check_interval(smallest: Array, largest: Array) -> None:
    """Raise ValueError unless ``0 < smallest < largest``; traced bounds pass.

    Raises
    ------
    ValueError
        If the bounds are known and not positive, or not in order.
    """
    check_range("smallest", smallest, 0.0)
    check_range("largest", largest, 0.0)
    if not (is_known(smallest) and is_known(largest)):
        return
    if not np.all(np.asarray(smallest) < np.asarray(largest)):
        raise ValueError(
            f"`smallest` must be below `largest`, but {smallest} is not below {largest}."
        )


class _ChebyshevState(State):
    """The iterate, the previous one, and the factor of the next step."""

    x: PyTree
    previous: PyTree
    relaxation: Float[Array, ""]
    steps: Int[Array, ""]


class Chebyshev(Algorithm):
    r"""The Chebyshev semi-iterative method.

    .. math::

        x_{t+1} = x_t + (\omega_t - 1)(x_t - x_{t-1})
                  - \tfrac{2\omega_t}{L + \ell} \nabla f(x_t),

    .. math::

        \omega_0 = 1, \quad \omega_1 = \frac{1}{1 - \mu^2/2}, \quad
        \omega_{t+1} = \frac{1}{1 - \mu^2 \omega_t / 4},

    with :math:`\mu = (L - \ell)/(L + \ell)`. On quadratics with spectrum in :math:`[\ell, L]` no
    first-order method has a smaller worst-case error after t gradients. The rate is
    :math:`(\sqrt L - \sqrt\ell)/(\sqrt L + \sqrt\ell)`. The error of the unrolled Jacobian may
    first grow like :math:`t^2`, to about :math:`L/(2\ell)` times its initial value
    (`iterdiff.theory.chebyshev_burn_in`); `Sobolev` avoids this. Cost: one gradient a step.

    On other objectives the method may diverge if an eigenvalue of the Hessian exceeds `largest`
    anywhere on the path, not only at the solution. A linear system must be symmetric positive
    definite.

    Parameters
    ----------
    smallest, largest : scalar
        Bounds :math:`0 < \ell < L` of the spectrum of the Hessian (or of the operator).

    Raises
    ------
    ValueError
        If the bounds are known and not positive, or not in order.

    References
    ----------
    G. H. Golub, R. S. Varga, *Chebyshev semi-iterative methods, successive overrelaxation
    iterative methods, and second order Richardson iterative methods*, 1961.
    """

    smallest: Float[Array, ""] = eqx.field(converter=scalar)
    largest: Float[Array, ""] = eqx.field(converter=scalar)
    accepts: ClassVar[tuple[type[Problem], ...]] = (*MINIMIZATIONS, LinearSystem)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check that ``0 < smallest < largest``."""
        _check_interval(self.smallest, self.largest)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _ChebyshevState:
        """Return the initial state."""
        del problem, theta
        one = jnp.ones_like(self.smallest + self.largest)
        return _ChebyshevState(x0, x0, one, jnp.zeros((), jnp.int32))

    def step(self, problem: Problem, state: _ChebyshevState, theta: PyTree) -> _ChebyshevState:
        """Return the state after one step."""
        total = self.largest + self.smallest
        omega = state.relaxation
        gradient = problem.residual(state.x, theta)
        velocity = tree.sub(state.x, state.previous)
        moved = tree.axpy(omega - 1, velocity, state.x)
        x = tree.axpy(-2 * omega / total, gradient, moved)
        contraction = ((self.largest - self.smallest) / total) ** 2
        share = jnp.where(state.steps == 0, contraction / 2, contraction / 4)
        # Only the first step is special, so that the count need not exceed one.
        steps = jnp.minimum(state.steps + 1, 1)
        return _ChebyshevState(x, state.x, 1 / (1 - share * omega), steps)


class _Scalars(eqx.Module):
    """The scalar recurrences of the Sobolev method, after n steps.

    ``ratio`` is g_{n-1}(0) / g_n(0) for the Gegenbauer polynomials g. Values of other polynomials
    at 0 are stored relative to g_n(0), so that nothing overflows. ``w0, w1`` are entries of the
    banded matrix of the basis, and ``u0, u1`` of the banded Cholesky factor of its Gram matrix.
    ``s`` is S_n(0), and ``total`` the sum of the squares of S_k(0).
    """

    n: Float[Array, ""]
    ratio: Float[Array, ""]
    w0: Float[Array, ""]
    w0_old: Float[Array, ""]
    w1: Float[Array, ""]
    u0: Float[Array, ""]
    u0_old: Float[Array, ""]
    u1: Float[Array, ""]
    s: Float[Array, ""]
    s_old: Float[Array, ""]
    total: Float[Array, ""]


class _SobolevState(State):
    """The iterate, and the last two Gegenbauer and orthogonal iterates y and z, newest first."""

    x: PyTree
    y: tuple[PyTree, PyTree]
    z: tuple[PyTree, PyTree]
    scalars: _Scalars


class Sobolev(Algorithm):
    r"""The first-order method whose polynomials minimise the error of the unrolled Jacobian.

    On a quadratic :math:`x_t - x^* = P_t(H)(x_0 - x^*)`, and :math:`P_t - \lambda P_t'` and
    :math:`P_t'` determine the error of the unrolled Jacobian (`iterdiff.theory`). For every degree
    this method uses the polynomial :math:`P_t` with :math:`P_t(0) = 1` that minimises

    .. math::

        \|P\|_B^2 = \int (P - \lambda P')^2 \,d\mu + \eta \int (P')^2 \,d\mu,

    where :math:`\mu` is the Gegenbauer weight :math:`(1 - \sigma^2)^{\alpha - 1/2}` on
    :math:`[\ell, L]`. With the default parameters the worst case of :math:`|P_t - \lambda P_t'|`
    never exceeds its initial value: there is no burn-in if the derivative of the gradient at `x0`
    vanishes. On 960 random quadratics with :math:`L/\ell` of 100 and 1000, the Jacobian error rose
    above its initial value in 10, by at most 22 %. It reached a relative error of 1e-6 in 11 to
    31 % fewer iterations than with `Chebyshev` (medians by kind of problem).

    The optimal polynomial is a reproducing kernel at 0. In the basis :math:`R_0 = 1`,
    :math:`R_n' = g_{n-1}` (g: orthonormal Gegenbauer polynomials) the Gram matrix has five
    diagonals, so that orthogonalisation is a short recurrence whose numbers stay of order one for
    thousands of steps. Cost: one gradient a step, evaluated at an auxiliary iterate, not at `x`.
    Memory: seven vectors. The first step returns `x0`, since no polynomial of degree one improves
    on :math:`P - \lambda P' = 1`.

    **Limits.** The bounds of the spectrum must hold along the whole path. With bounds that hold
    only at the solution, a nonlinear problem can diverge; with `smallest` too large the method
    stalls, as Chebyshev does. On problems where Chebyshev has no burn-in (for example, if the
    Hessian does not commute with its derivative) this method is worse for the first
    :math:`4\sqrt{L/\ell}` iterations: at the worst of them by a factor of 5 to 12 in the median,
    and up to 33. It never saved more than 38 % of the iterations to 1e-6, and once took 1 % more.
    Its iterate is 5 to 14 times less accurate than Chebyshev's at :math:`t = 2\sqrt{L/\ell}`.
    The polynomials are optimal only for quadratics with commuting :math:`H` and :math:`dH`.

    Parameters
    ----------
    smallest, largest : scalar
        Bounds :math:`0 < \ell < L` of the spectrum of the Hessian (or of the operator of a
        symmetric positive definite linear system).
    alpha : scalar
        Exponent of the weight, above -1/2, dimensionless; 1/2 weights all eigenvalues equally.
    eta : scalar, optional
        Weight of :math:`P'`, positive, in units of the eigenvalues squared; by default
        :math:`\ell L`.
    norm : "A" or "B"
        The norm to minimise: "B" is the one above; "A" has :math:`P^2` instead of
        :math:`(P - \lambda P')^2`.

    Raises
    ------
    ValueError
        If a parameter is known and out of range, or `norm` is neither "A" nor "B".

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling: Rate of
    Differentiating Through Optimization*, NeurIPS 2022, for the idea of a Sobolev-optimal
    method; F. Marcellán, Y. Xu, *On Sobolev orthogonal polynomials*, 2015, for the coherent
    pairs that make the recurrence short.
    """

    smallest: Float[Array, ""] = eqx.field(converter=scalar)
    largest: Float[Array, ""] = eqx.field(converter=scalar)
    alpha: Float[Array, ""] = eqx.field(converter=scalar, default=0.5)
    eta: Float[Array, ""] | None = eqx.field(
        converter=lambda eta: None if eta is None else scalar(eta), default=None
    )
    norm: str = eqx.field(static=True, default="B")
    accepts: ClassVar[tuple[type[Problem], ...]] = (*MINIMIZATIONS, LinearSystem)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Check the ranges of the parameters."""
        _check_interval(self.smallest, self.largest)
        check_range("alpha", self.alpha, -0.5)
        if self.eta is not None:
            check_range("eta", self.eta, 0.0)
        check_word("norm", self.norm, ("A", "B"))

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _SobolevState:
        """Return the initial state."""
        del problem, theta
        one = jnp.ones((), jnp.result_type(self.smallest, self.largest, self.alpha))
        zero = jnp.zeros_like(one)
        scalars = _Scalars(
            n=zero,
            ratio=zero,
            w0=one,
            w0_old=zero,
            w1=zero,
            u0=one,
            u0_old=one,
            u1=zero,
            s=one,
            s_old=zero,
            total=one,
        )
        nothing = tree.zeros_like(x0)
        return _SobolevState(x0, (x0, nothing), (x0, nothing), scalars)

    def step(self, problem: Problem, state: _SobolevState, theta: PyTree) -> _SobolevState:
        """Return the state after one step."""
        radius = (self.largest - self.smallest) / 2
        origin = (self.largest + self.smallest) / (self.largest - self.smallest)
        old = state.scalars
        new, u2, b, beta, beta_old = self._advance(old, origin, radius)
        (y, y_old), (z, z_old) = state.y, state.z
        # The three-term recurrence of the Gegenbauer polynomials, relative to their value at 0.
        gradient = problem.residual(y, theta)
        moved = tree.axpy(-1 / radius, gradient, tree.scale(origin, y))
        moved = tree.axpy(-beta_old * old.ratio, y_old, moved)
        y_new = tree.scale(new.ratio / beta, moved)
        # Orthogonalise the basis polynomial against the last two.
        both = new.ratio * old.ratio
        z_new = tree.axpy(-new.u1 * new.ratio, z, tree.scale(beta / new.n, y_new))
        z_new = tree.axpy(-both * b, y_old, tree.axpy(-both * u2, z_old, z_new))
        z_new = tree.scale(1 / new.u0, z_new)
        # The reproducing kernel: a weighted mean of all orthogonalised iterates so far.
        correction = tree.axpy(-new.s, state.x, z_new)
        x = tree.axpy(new.s / new.total, correction, state.x)
        return _SobolevState(x, (y_new, y), (z_new, z), new)

    def _advance(
        self, old: _Scalars, origin: Array, radius: Array
    ) -> tuple[_Scalars, Array, Array, Array, Array]:
        """Return the next scalars, and the coefficients that only this step uses."""
        n = old.n + 1
        beta, beta_old = _gegenbauer(n, self.alpha), _gegenbauer(old.n, self.alpha)
        a, b = beta / n, _coherence(n, self.alpha)
        if self.norm == "B":
            w0, w1, w2 = a - beta, origin, -jnp.where(n >= 2, b + beta_old, 0.0)
        else:
            w0, w1, w2 = a, jnp.zeros_like(origin), -b
        eta = self.smallest * self.largest if self.eta is None else self.eta
        u2 = old.w0_old * w2 / old.u0_old
        u1 = (old.w0 * w1 + old.w1 * w2 - old.u1 * u2) / old.u0
        u0 = jnp.sqrt(w0**2 + w1**2 + w2**2 + eta / radius**2 - u1**2 - u2**2)
        ratio = beta / (origin - beta_old * old.ratio)
        s = (a - u1 * ratio * old.s - ratio * old.ratio * (b + u2 * old.s_old)) / u0
        new = _Scalars(
            n=n,
            ratio=ratio,
            w0=w0,
            w0_old=old.w0,
            w1=w1,
            u0=u0,
            u0_old=old.u0,
            u1=u1,
            s=s,
            s_old=old.s,
            total=s**2 + ratio**2 * old.total,
        )
        return new, u2, b, beta, beta_old


def _gegenbauer(n: Float[Array, ""], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Return the n-th recurrence coefficient of the orthonormal Gegenbauer polynomials."""
    safe = jnp.maximum(n, 2)
    later = safe * (safe + 2 * alpha - 1) / (4 * (safe + alpha) * (safe + alpha - 1))
    return jnp.where(n > 1, jnp.sqrt(later), jnp.where(n > 0, 1 / jnp.sqrt(2 + 2 * alpha), 0.0))


def _coherence(n: Float[Array, ""], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Return the coefficient b in R_n = a g_n - b g_{n-2}, whose derivative is g_{n-1}."""
    safe = jnp.maximum(n, 3)
    square = (safe - 1) / ((safe + 2 * alpha - 2) * (safe - 2 + alpha) * (safe - 1 + alpha))
    return jnp.where(n >= 3, jnp.sqrt(square) / 2, 0.0)
