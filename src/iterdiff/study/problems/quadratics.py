"""Quadratic objectives: one unknown with a closed form, and many with a chosen spectrum."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

import iterdiff as itd
from iterdiff.study.bounds import QuadraticBounds
from iterdiff.study.config import Curve, PosedProblem, Theory
from iterdiff.study.settings import ProblemOptions


def as_tuple(value: Any) -> Any:
    """Return a list, or a single value, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class ScalarQuadratic(ProblemOptions):
    r"""The objective :math:`f(x, \theta) = \tfrac12 \theta x^2 - b x`.

    Attributes
    ----------
    theta : float
        The parameter, positive.
    x0 : float
        The start.
    b : float or list of float
        Several values pose several problems.
    """

    theta: PositiveFloat = 0.05
    x0: float = 0.5
    b: Annotated[tuple[float, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (0.0, 1.0)

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return one problem for each b."""
        posed = tuple(self._pose_one(b) for b in self.b)
        if len(posed) > 1:
            return posed
        return tuple(dataclasses.replace(p, coordinate=None) for p in posed)

    def _pose_one(self, b: float) -> PosedProblem:
        return PosedProblem(
            problem=itd.Minimization(_Parabola(jnp.asarray(b))),
            x0=jnp.asarray(self.x0),
            theta=jnp.asarray(self.theta),
            title=f"f = ½θx² − bx, θ = {self.theta:g}, x₀ = {self.x0:g}",
            spectrum=(self.theta, self.theta),
            coordinate=b,
            reference=jnp.asarray(b / self.theta),
            theory=ScalarClosedForm(self.theta, self.x0, b),
        )


class _Parabola(eqx.Module):
    """The objective. b is an array, so that one compiled program serves every b."""

    b: Float[Array, ""]

    def __call__(self, x: Array, theta: Array) -> Float[Array, ""]:
        return theta * x**2 / 2 - self.b * x


@dataclasses.dataclass(frozen=True)
class ScalarClosedForm(Theory):
    r"""The exact unrolled Jacobian error of gradient descent on the scalar quadratic.

    With :math:`\rho = 1 - \eta\theta` and :math:`e_0 = x_0 - b/\theta` the error is
    :math:`|\rho^t\, b/\theta^2 - \eta t \rho^{t-1} e_0|`. For b = 0 it is the product of a
    linear factor, :math:`\eta t |x_0|`, and an exponential factor, :math:`\rho^{t-1}`.

    Attributes
    ----------
    theta, x0, b : float
        As in `ScalarQuadratic`.
    """

    theta: float
    x0: float
    b: float

    def curves(
        self, posed: PosedProblem, algorithm: itd.Algorithm, modes: Mapping[str, itd.Mode]
    ) -> Mapping[str, Curve]:
        """Return the closed form, and its two factors for b = 0; nothing for other algorithms."""
        del posed, modes
        if not isinstance(algorithm, itd.GradientDescent):
            return {}
        eta, theta, b = float(algorithm.step_size), self.theta, self.b
        rho = 1 - eta * theta

        def power(t: np.ndarray) -> np.ndarray:
            return np.float64(rho) ** (t - 1.0)

        def closed_form(t: np.ndarray) -> np.ndarray:
            decay = power(t)
            return np.abs(rho * decay * b / theta**2 - eta * t * decay * (self.x0 - b / theta))

        curves: dict[str, Curve] = {"closed_form": closed_form}
        if b == 0 and 0 < rho < 1:
            curves["linear_factor"] = lambda t: eta * t * abs(self.x0)
            curves["exponential_factor"] = power
        return curves

    def rate(self, posed: PosedProblem, algorithm: itd.Algorithm) -> float | None:
        """Return None: late starts are not measured."""
        del posed, algorithm
        return None


class Quadratic(ProblemOptions):
    r"""A quadratic objective with a chosen spectrum.

    .. math::

        f(x, \theta) = \tfrac12 x^\top Q D(\theta) Q^\top x - b^\top x, \qquad
        D(\theta) = \mathrm{diag}(\lambda_j e^{\theta_j}),

    with a random orthogonal Q, and a random solution at :math:`\theta = 0`. The derivatives of
    the Hessian commute with the Hessian, so the sharper bounds of the theory hold.

    Attributes
    ----------
    size : int
        Number of unknowns and of parameters, at least 2.
    condition : float
        L/ℓ, above 1; L is 1.
    spectrum : {"logarithmic", "uniform", "ends"}
        Position of the eigenvalues: evenly spaced on a logarithmic or a linear scale, or half
        of them at either end (the worst case).
    start : float
        Standard deviation of the entries of the start.
    seed : int
        Seed of Q, the solution and the start.
    """

    size: Annotated[int, Field(ge=2)] = 20
    condition: Annotated[float, Field(gt=1)] = 1000.0
    spectrum: Literal["logarithmic", "uniform", "ends"] = "logarithmic"
    start: NonNegativeFloat = 0.0
    seed: NonNegativeInt = 0

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem."""
        draw = np.random.default_rng(self.seed)
        basis = jnp.asarray(np.linalg.qr(draw.standard_normal((self.size, self.size)))[0])
        values = jnp.asarray(self._eigenvalues())
        solution = jnp.asarray(draw.standard_normal(self.size))
        linear = basis @ (values * (basis.T @ solution))

        def objective(x: Array, theta: Array) -> Float[Array, ""]:
            rotated = basis.T @ x
            return jnp.sum(values * jnp.exp(theta) * rotated**2) / 2 - jnp.dot(linear, x)

        def exact(theta: Array) -> Array:
            return basis @ ((basis.T @ linear) / (values * jnp.exp(theta)))

        posed = PosedProblem(
            problem=itd.Minimization(objective),
            x0=jnp.asarray(self.start * draw.standard_normal(self.size)),
            theta=jnp.zeros(self.size),
            title=(
                f"quadratic, {self.size} unknowns, {self.spectrum} spectrum, "
                f"L/ℓ = {self.condition:g}"
            ),
            spectrum=(1.0 / self.condition, 1.0),
            reference=exact,
            theory=QuadraticBounds(commuting=True),
        )
        return (posed,)

    def _eigenvalues(self) -> Float[np.ndarray, " size"]:
        low = 1.0 / self.condition
        if self.spectrum == "logarithmic":
            return np.geomspace(low, 1.0, self.size)
        if self.spectrum == "uniform":
            return np.linspace(low, 1.0, self.size)
        return np.where(np.arange(self.size) < self.size // 2, low, 1.0)
