"""Problems of physics: a diffusion equation, and a nonlinear boundary value problem."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

import iterdiff as itd
from iterdiff.study.config import PosedProblem
from iterdiff.study.settings import ProblemOptions


class Diffusion(ProblemOptions):
    r"""The equation :math:`-\nabla \cdot (\theta \nabla x) = 1` on the unit square.

    x is 0 on the boundary. We use finite volumes on `cells` by `cells` cells. The conductivity
    :math:`\theta` is constant on each cell (dimensionless, as is x), with harmonic means on the
    faces between cells. The conductivity is log-normal around 1, and around `contrast` in a
    square inclusion.

    With ``roughness = 0`` the problem and the start are symmetric about the diagonal. Conjugate
    gradients then have no information about the antisymmetric eigenvectors. The unrolled
    derivative has components along them, and grows by orders of magnitude while the iterate
    converges.

    Attributes
    ----------
    cells : int
        Number of cells in each direction, at least 3.
    contrast : float
        Conductivity of the inclusion, positive.
    roughness : float
        Standard deviation of the logarithm of the conductivity.
    seed : int
        Seed of the conductivity.
    """

    cells: Annotated[int, Field(ge=3)] = 10
    contrast: PositiveFloat = 10.0
    roughness: NonNegativeFloat = 0.3
    seed: NonNegativeInt = 0

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem."""
        m, theta = self.cells, jnp.asarray(self._conductivity())
        source = jnp.full((m, m), (1.0 / m) ** 2)
        units = jnp.eye(m**2).reshape(-1, m, m)

        def matrix(theta: Array) -> Array:
            return jax.vmap(lambda v: _outflow(v, theta))(units).reshape(m**2, m**2)

        def solution(theta: Array) -> Array:
            return jnp.linalg.solve(matrix(theta), source.ravel()).reshape(m, m)

        eigenvalues = np.linalg.eigvalsh(np.asarray(matrix(theta)))
        low, high = float(eigenvalues[0]), float(eigenvalues[-1])
        posed = PosedProblem(
            problem=itd.LinearSystem(_outflow, lambda _: source, positive_definite=True),
            x0=jnp.zeros((m, m)),
            theta=theta,
            title=(
                f"2-D diffusion, {m} x {m} cells, conductivity 1 and {self.contrast:g}, "
                f"condition number {high / low:.3g}"
            ),
            spectrum=(low, high),
            reference=solution,
        )
        return (posed,)

    def _conductivity(self) -> Float[np.ndarray, "cells cells"]:
        place = np.arange(self.cells)
        inside = (place >= self.cells // 4) & (place < self.cells // 2)
        mean = np.where(inside[:, None] & inside[None, :], self.contrast, 1.0)
        noise = np.random.default_rng(self.seed).standard_normal((self.cells, self.cells))
        return mean * np.exp(self.roughness * noise)


def _outflow(x: Float[Array, "m m"], theta: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return the flow out of every cell: the sum over its faces of conductance times drop."""
    return _vertical_outflow(x, theta) + _vertical_outflow(x.T, theta.T).T


def _vertical_outflow(x: Array, theta: Array) -> Array:
    between = 2 * theta[1:] * theta[:-1] / (theta[1:] + theta[:-1]) * (x[1:] - x[:-1])
    # The boundary is half a cell away from the centres of the outer cells.
    first, last = 2 * theta[:1] * x[:1], 2 * theta[-1:] * x[-1:]
    return jnp.concatenate([first, between]) - jnp.concatenate([between, -last])


class Bratu(ProblemOptions):
    r"""The equation :math:`-u'' = \theta(s) e^u` on (0, 1) as a fixed point.

    u is 0 at both ends. We use central differences at `points` inner points. The update is
    :math:`u \mapsto K (\theta e^u)`, where K is the inverse of the difference operator, known in
    closed form. The source :math:`\theta` has one entry per point, all equal to `source`. For a
    constant source a solution exists up to 3.51 (dimensionless); the nearer the source to this
    limit, the slower Picard's iteration.

    Attributes
    ----------
    points : int
        Number of inner points, at least 2.
    source : float
        Above 0, at most 3.5.

    References
    ----------
    J. Jacobsen, K. Schmitt, *The Liouville-Bratu-Gelfand problem for radial operators*, 2002.
    """

    points: Annotated[int, Field(ge=2)] = 50
    source: Annotated[float, Field(gt=0, le=3.5)] = 3.4

    def pose(self) -> tuple[PosedProblem, ...]:
        """Return the problem."""
        width = 1.0 / (self.points + 1)
        s = width * np.arange(1, self.points + 1)
        inverse = width * np.minimum(s[:, None], s) * (1 - np.maximum(s[:, None], s))
        kernel = jnp.asarray(inverse)
        posed = PosedProblem(
            problem=itd.FixedPoint(lambda u, theta: kernel @ (theta * jnp.exp(u))),
            x0=jnp.zeros(self.points),
            theta=jnp.full(self.points, self.source),
            title=(
                f"boundary value problem −u″ = θ exp(u), {self.points} points, θ = {self.source:g}"
            ),
        )
        return (posed,)
