"""Problems of physics: a diffusion equation, and a nonlinear boundary value problem."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iterdiff.problems.linear_system import LinearSystem
from iterdiff.problems.problem import FixedPoint
from iterdiff.study.config import Setting


def diffusion(**options: Any) -> tuple[Setting, ...]:
    r"""Return :math:`-\nabla \cdot (\theta \nabla x) = 1` on the unit square, x = 0 around it.

    Finite volumes on `cells` by `cells` cells, the conductivity :math:`\theta` constant on
    each (dimensionless, as is x), with harmonic means on the faces in between. The
    conductivity is log-normal around 1, and around `contrast` in a square inclusion.

    With ``roughness = 0`` problem and start are symmetric about the diagonal. Conjugate
    gradients then know nothing of the antisymmetric eigenvectors, and their unrolled derivative,
    which has a share in these, grows by orders of magnitude while the iterate converges.

    Parameters
    ----------
    cells : int
        Cells in each direction, 3 or more.
    contrast : float
        Conductivity of the inclusion, positive.
    roughness : float
        Standard deviation of the conductivity's logarithm.
    seed : int
        Draws it.
    """
    cells, contrast = options["cells"], options["contrast"]
    roughness = options["roughness"]
    if isinstance(cells, bool) or not isinstance(cells, int) or cells < 3:
        raise ValueError(f"`problem.cells` must be a whole number of 3 or more, not {cells!r}.")
    if isinstance(contrast, bool) or not isinstance(contrast, int | float) or not contrast > 0:
        raise ValueError(f"`problem.contrast` must be a positive number, not {contrast!r}.")
    inside = (np.arange(cells) >= cells // 4) & (np.arange(cells) < cells // 2)
    theta = np.where(inside[:, None] & inside[None, :], float(contrast), 1.0)
    noise = np.random.default_rng(int(options["seed"])).standard_normal((cells, cells))
    theta = jnp.asarray(theta * np.exp(float(roughness) * noise))
    width = 1.0 / cells
    source = jnp.full((cells, cells), width**2)
    problem = LinearSystem(_flow, lambda _: source, positive_definite=True)
    units = jnp.eye(cells**2).reshape(-1, cells, cells)

    def solution(theta: Array) -> Array:
        matrix = jax.vmap(lambda v: _flow(v, theta))(units).reshape(cells**2, cells**2)
        return jnp.linalg.solve(matrix, source.ravel()).reshape(cells, cells)

    rows = jax.vmap(lambda v: _flow(v, theta))(units).reshape(cells**2, cells**2)
    spectrum = np.linalg.eigvalsh(np.asarray(rows))
    low, high = float(spectrum[0]), float(spectrum[-1])
    setting = Setting(
        problem=problem,
        x0=jnp.zeros((cells, cells)),
        theta=theta,
        title=(
            f"2-D diffusion, {cells} x {cells} cells, conductivity 1 and {contrast:g}, "
            f"condition number {high / low:.3g}"
        ),
        spectrum=(low, high),
        reference=solution,
    )
    return (setting,)


def _flow(x: Float[Array, "m m"], theta: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return what flows out of every cell: the sum over its faces of conductance times drop."""
    return _flow_down(x, theta) + _flow_down(x.T, theta.T).T


def _flow_down(x: Array, theta: Array) -> Array:
    between = 2 * theta[1:] * theta[:-1] / (theta[1:] + theta[:-1]) * (x[1:] - x[:-1])
    # The boundary is half a cell away from the centres of the outer cells.
    first, last = 2 * theta[:1] * x[:1], 2 * theta[-1:] * x[-1:]
    return jnp.concatenate([first, between]) - jnp.concatenate([between, -last])


def bratu(**options: Any) -> tuple[Setting, ...]:
    r"""Return :math:`-u'' = \theta(s) e^u` on (0, 1), u = 0 at both ends, as a fixed point.

    Central differences at `points` inner points; the update is :math:`u \mapsto
    K (\theta e^u)`, K the inverse of the difference operator, known in closed form. The source
    :math:`\theta`, one number a point, is `source` everywhere; for a constant source there is
    a solution up to 3.51 (dimensionless), and Picard's iteration is the slower the nearer.

    Parameters
    ----------
    points : int
        Inner points, 2 or more.
    source : float
        Between 0 and 3.5.

    References
    ----------
    J. Jacobsen, K. Schmitt, *The Liouville-Bratu-Gelfand problem for radial operators*, 2002.
    """
    points, source = options["points"], options["source"]
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"`problem.points` must be a whole number of 2 or more, not {points!r}.")
    if isinstance(source, bool) or not isinstance(source, int | float) or not 0 < source <= 3.5:
        raise ValueError(f"`problem.source` must be a number between 0 and 3.5, not {source!r}.")
    width = 1.0 / (points + 1)
    s = width * np.arange(1, points + 1)
    inverse = width * np.minimum(s[:, None], s) * (1 - np.maximum(s[:, None], s))
    kernel = jnp.asarray(inverse)
    setting = Setting(
        problem=FixedPoint(lambda u, theta: kernel @ (theta * jnp.exp(u))),
        x0=jnp.zeros(points),
        theta=jnp.full(points, float(source)),
        title=f"boundary value problem −u″ = θ exp(u), {points} points, θ = {source:g}",
    )
    return (setting,)
