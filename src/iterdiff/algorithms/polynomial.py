"""First-order methods made from polynomials: they know the bounds of the Hessian's spectrum."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from iterdiff.algorithms.base import Algorithm, State
from iterdiff.jaxtools import tree
from iterdiff.jaxtools.arguments import check_range, scalar
from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import Minimization, Problem


def _check_interval(smallest: Array, largest: Array) -> None:
    """Refuse bounds of a spectrum that are known and nonpositive, equal or swapped."""
    check_range("smallest", smallest, 0.0)
    check_range("largest", largest, 0.0)
    gap = largest - smallest
    try:
        check_range("largest - smallest", gap, 0.0)
    except ValueError:
        raise ValueError(
            f"`smallest` must be below `largest`, but {smallest} is not below {largest}."
        ) from None


class _ChebyshevState(State):
    """The iterate, the one before it, and the factor of the next step."""

    x: PyTree
    previous: PyTree
    relaxation: Float[Array, ""]
    steps: Int[Array, ""]


class Chebyshev(Algorithm):
    r"""The Chebyshev semi-iterative method.

    .. math::

        x_{t+1} = x_t + (\omega_t - 1)(x_t - x_{t-1})
                  - \tfrac{2\omega_t}{L + \ell} \nabla f(x_t), \qquad
        \omega_0 = 1, \quad \omega_1 = \frac{1}{1 - \mu^2/2}, \quad
        \omega_{t+1} = \frac{1}{1 - \mu^2 \omega_t / 4},

    with :math:`\mu = (L - \ell)/(L + \ell)`. On a quadratic with spectrum in
    :math:`[\ell, L]` no method has a smaller worst-case error after t gradients; the rate is
    :math:`(\sqrt L - \sqrt\ell)/(\sqrt L + \sqrt\ell)`. The error of its unrolled Jacobian
    may grow like :math:`t^2` first, to about half of :math:`L/\ell` times its start
    (`iterdiff.theory.chebyshev_burn_in`); `Sobolev` does not do that. One gradient a step.

    Outside quadratics it may diverge when an eigenvalue of the Hessian anywhere on the path,
    not only at the solution, exceeds `largest`. A linear system must be symmetric positive
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
    accepts: ClassVar[tuple[type[Problem], ...]] = (Minimization, LinearSystem)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Refuse an interval that is empty or not positive."""
        _check_interval(self.smallest, self.largest)

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _ChebyshevState:
        """Return the state at `x0`, before any step."""
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
        # Counting stops at one: only the first step is special.
        steps = jnp.minimum(state.steps + 1, 1)
        return _ChebyshevState(x, state.x, 1 / (1 - share * omega), steps)


class _Scalars(eqx.Module):
    """The scalar recurrences of the Sobolev method, after n steps.

    ``ratio`` is g_{n-1}/g_n in 0 for the Gegenbauer polynomials g, and what depends on the
    value of a polynomial in 0 is kept relative to g_n there, so that nothing overflows.
    ``w0, w1`` are entries of the banded matrix of the basis, ``u0, u1`` of the banded Cholesky
    factor of its Gram matrix; ``s`` is S_n(0), ``total`` the sum of squares of S_k(0).
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
    """The iterate, the Gegenbauer iterates y and the orthogonalised ones z, last one first."""

    x: PyTree
    y: tuple[PyTree, PyTree]
    z: tuple[PyTree, PyTree]
    scalars: _Scalars


class Sobolev(Algorithm):
    r"""The first-order method whose polynomial is chosen for the Jacobian's error.

    On a quadratic :math:`x_t - x^* = P_t(H)(x_0 - x^*)`, and the error of the unrolled Jacobian
    is governed by :math:`P_t - \lambda P_t'` and :math:`P_t'` (`iterdiff.theory`). This method
    takes, at every degree, the :math:`P_t` with :math:`P_t(0) = 1` that is smallest in

    .. math::

        \|P\|_B^2 = \int (P - \lambda P')^2 \,d\mu + \eta \int (P')^2 \,d\mu,

    :math:`\mu` being the Gegenbauer weight :math:`(1 - \sigma^2)^{\alpha - 1/2}` on
    :math:`[\ell, L]`. With the defaults the worst case of :math:`|P_t - \lambda P_t'|` never
    exceeds its start: where the derivative of the starting gradient vanishes there is no
    burn-in. On random quadratics in general the error rose by a tenth at most (in 4 of 480),
    and the Jacobian reached a relative error of 1e-6 in at most the iterations of `Chebyshev`.

    The optimum is a reproducing kernel in 0. With the basis :math:`R_0 = 1`,
    :math:`R_n' = g_{n-1}` (g: orthonormal Gegenbauer polynomials) the Gram matrix has five
    diagonals, so that orthogonalising is a short recurrence: one gradient a step, taken at an
    iterate of its own and not at `x`, seven vectors, and numbers that stay of order one for
    thousands of steps. The first step returns `x0`, since no polynomial of degree one improves
    :math:`P - \lambda P' = 1`.

    **Limits.** It needs bounds of the spectrum that hold along the whole path: with
    the spectrum at the solution alone a nonlinear problem can diverge, and with `smallest` too
    large it stalls, as Chebyshev does. Where Chebyshev has no burn-in (for example a
    Hessian whose derivative does not commute with it) this method is worse for the
    first :math:`4\sqrt{L/\ell}` iterations, by up to a factor of nine. Its gain in
    iterations to 1e-6 is between 1 and a third, not orders of magnitude. Its iterate is less
    accurate than Chebyshev's: 5 to 14 times at :math:`t = 2\sqrt{L/\ell}`. The optimality
    is for quadratics with commuting :math:`H` and :math:`dH`.

    Parameters
    ----------
    smallest, largest : scalar
        Bounds :math:`0 < \ell < L` of the spectrum of the Hessian (or of the operator of a
        symmetric positive definite linear system).
    alpha : scalar
        Exponent of the weight, above -1/2. 1/2 weighs all eigenvalues alike.
    eta : scalar, optional
        Weight of :math:`P'`, positive, in units of the eigenvalue squared; :math:`\ell L` if
        None.
    norm : "A" or "B"
        "A" has :math:`P^2` in place of :math:`(P - \lambda P')^2`.

    Raises
    ------
    ValueError
        If an argument is known and out of range.

    References
    ----------
    D. Scieur, G. Gidel, Q. Bertrand, F. Pedregosa, *The Curse of Unrolling: Rate of
    Differentiating Through Optimization*, NeurIPS 2022, for the idea of a Sobolev-optimal
    method; F. Marcellán, Y. Xu, *On Sobolev orthogonal polynomials*, 2015, for the coherent
    pairs that make its recurrence short.
    """

    smallest: Float[Array, ""] = eqx.field(converter=scalar)
    largest: Float[Array, ""] = eqx.field(converter=scalar)
    alpha: Float[Array, ""] = eqx.field(converter=scalar, default=0.5)
    eta: Float[Array, ""] | None = eqx.field(
        converter=lambda eta: None if eta is None else scalar(eta), default=None
    )
    norm: str = eqx.field(static=True, default="B")
    accepts: ClassVar[tuple[type[Problem], ...]] = (Minimization, LinearSystem)
    consistent: ClassVar[bool] = True

    def __check_init__(self):
        """Refuse parameters out of range."""
        _check_interval(self.smallest, self.largest)
        check_range("alpha", self.alpha, -0.5)
        if self.eta is not None:
            check_range("eta", self.eta, 0.0)
        if self.norm not in ("A", "B"):
            raise ValueError(f'`norm` must be "A" or "B", not {self.norm!r}.')

    def init(self, problem: Problem, x0: PyTree, theta: PyTree) -> _SobolevState:
        """Return the state at `x0`, before any step."""
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
        # Three terms of the Gegenbauer recurrence, relative to its value in 0.
        gradient = problem.residual(y, theta)
        moved = tree.axpy(-1 / radius, gradient, tree.scale(origin, y))
        moved = tree.axpy(-beta_old * old.ratio, y_old, moved)
        y_new = tree.scale(new.ratio / beta, moved)
        # The basis polynomial, made orthogonal to the last two.
        both = new.ratio * old.ratio
        z_new = tree.axpy(-new.u1 * new.ratio, z, tree.scale(beta / new.n, y_new))
        z_new = tree.axpy(-both * b, y_old, tree.axpy(-both * u2, z_old, z_new))
        z_new = tree.scale(1 / new.u0, z_new)
        # The kernel: a weighted mean of all orthogonal iterates so far.
        correction = tree.axpy(-new.s, state.x, z_new)
        x = tree.axpy(new.s / new.total, correction, state.x)
        return _SobolevState(x, (y_new, y), (z_new, z), new)

    def _advance(
        self, old: _Scalars, origin: Array, radius: Array
    ) -> tuple[_Scalars, Array, Array, Array, Array]:
        """Return the next scalars, and the coefficients that only this step needs."""
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
    """Return the coefficient b of R_n = a g_n - b g_{n-2}, whose derivative is g_{n-1}."""
    safe = jnp.maximum(n, 3)
    square = (safe - 1) / ((safe + 2 * alpha - 2) * (safe - 2 + alpha) * (safe - 1 + alpha))
    return jnp.where(n >= 3, jnp.sqrt(square) / 2, 0.0)
