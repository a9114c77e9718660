"""A fixed point whose rate is its parameter, with the closed form of its derivative's error."""

import dataclasses
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import iterdiff as itd
from iterdiff.study.config import Curve, PosedProblem, Theory
from iterdiff.study.settings import ProblemOptions


class AffineMap(ProblemOptions):
    r"""The fixed point of :math:`F(x, \theta) = \theta x + b`, whose rate is :math:`\theta`.

    The solution is :math:`b / (1 - \theta)`, its derivative :math:`b / (1 - \theta)^2`.

    Attributes
    ----------
    rate : float
        :math:`\theta`, the factor by which a step of Picard's iteration reduces the error. 1 is
        excluded: there is no fixed point.
    x0, b : float
        The start, and the constant.
    """

    rate: float = 0.95
    x0: float = 0.0
    b: float = 1.0

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem.

        Raises
        ------
        ValueError
            If the rate is 1.
        """
        if self.rate == 1:
            raise ValueError("`rate` = 1: the map x + b has no fixed point. Choose another rate.")
        b = jnp.asarray(self.b)
        posed = PosedProblem(
            problem=itd.FixedPoint(_Map(b)),
            x0=jnp.asarray(self.x0),
            theta=jnp.asarray(self.rate),
            title=f"fixed point of θx + b, rate θ = {self.rate:g}, b = {self.b:g}",
            reference=b / (1 - self.rate),
            theory=AffineClosedForm(self.rate, self.x0, self.b),
        )
        return (posed,)


class _Map(eqx.Module):
    """The map, in the same program for every b."""

    b: Float[Array, ""]

    def __call__(self, x: Array, theta: Array) -> Float[Array, ""]:
        return theta * x + self.b


@dataclasses.dataclass(frozen=True)
class AffineClosedForm(Theory):
    r"""The exact unrolled Jacobian error of Picard's iteration on the affine map.

    With :math:`e_0 = x_0 - x^*` and :math:`J^* = b / (1 - \theta)^2` the error is
    :math:`|t \theta^{t-1} e_0 - \theta^t J^*|`.

    Attributes
    ----------
    theta, x0, b : float
        As in `AffineMap`; `theta` is the rate.
    """

    theta: float
    x0: float
    b: float

    def curves(
        self, posed: PosedProblem, algorithm: itd.Algorithm, modes: Mapping[str, itd.Mode]
    ) -> Mapping[str, Curve]:
        """Return the closed form; nothing for other algorithms."""
        del posed, modes
        if not isinstance(algorithm, itd.Picard):
            return {}
        theta, gap = np.float64(self.theta), self.x0 - self.b / (1 - self.theta)
        slope = self.b / (1 - self.theta) ** 2

        def closed_form(t: np.ndarray) -> np.ndarray:
            # At t = 0 the first term is 0, also for the rate 0.
            first = np.where(t > 0, t * theta ** np.maximum(t - 1.0, 0.0) * gap, 0.0)
            return np.abs(first - theta**t * slope)

        return {"closed_form": closed_form}

    def rate(self, posed: PosedProblem, algorithm: itd.Algorithm) -> float | None:
        """Return None: late starts are not measured."""
        del posed, algorithm
        return None
