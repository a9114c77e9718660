"""Gradients through bundle adjustment: points eliminated block by block, beside other solvers.

The truth is the implicit derivative by the true Hessian, from conjugate gradients at a
solution that Newton's method has polished; no mode and no linear solver of iterdiff is used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import lineax as lx
import numpy as np

import iterdiff as itd
from benchmarks.harness.measure import Comparison, Effort, compare
from benchmarks.harness.results import Section

SIZES = ((5, 200), (20, 5000))
"""Cameras and points: 630 and 15,120 unknowns."""

MOST_DENSE = 2_000
"""Most unknowns of the variant with dense matrices. With 15,120 the Hessian takes 1.8 GB, and one
factorisation 1e12 operations."""

VIEWS = 4
"""Cameras that see a point."""

NOISE, PRIOR = 1e-3, 0.1
"""Standard deviation of an observation, and the weight of the priors that fix the coordinates."""

CG_RTOL, CG_ATOL, CG_MAX_STEPS = 1e-6, 1e-14, 2000
"""The inner solves of the variant without elimination, and where they give up."""

RIVALS_TOL = 1e-8
"""The tolerance of other libraries' solvers, in their own criteria."""

TRUTH_RTOL = 1e-11
"""Relative residual of the solves behind the true gradient."""


class Scene(NamedTuple):
    """What the cameras saw: observation i is that of point ``point[i]`` by ``camera[i]``.

    Cameras are three numbers of rotation and three of translation; `cameras` and `points` are
    prior knowledge of them.
    """

    observed: Any
    camera: Any
    point: Any
    cameras: Any
    points: Any


def project(camera, point):
    """Return where a camera sees a point: rotated by Rodrigues' formula, moved, and projected."""
    squared = jnp.sum(camera[:3] ** 2) + 1e-20
    angle = jnp.sqrt(squared)
    axis = camera[:3] / angle
    along = axis * (axis @ point) * (1 - jnp.cos(angle))
    turned = point * jnp.cos(angle) + jnp.cross(axis, point) * jnp.sin(angle) + along
    moved = turned + camera[3:]
    return moved[:2] / moved[2]


def scene(cameras: int, points: int) -> tuple[Scene, dict[str, jax.Array]]:
    """Return a scene and a start."""
    rng = np.random.default_rng(points)
    place = rng.uniform(-1, 1, (points, 3))
    turn, shift = 0.2 * rng.standard_normal((cameras, 3)), 0.1 * rng.standard_normal((cameras, 3))
    camera = np.concatenate([turn, shift + np.array([0.0, 0.0, 4.0])], axis=1)
    seen = np.concatenate([rng.choice(cameras, VIEWS, replace=False) for _ in range(points)])
    which = np.repeat(np.arange(points), VIEWS)
    exact = jax.vmap(project)(camera[seen], place[which])
    observed = exact + NOISE * rng.standard_normal(exact.shape)
    start = {
        "cameras": jnp.asarray(camera + 0.01 * rng.standard_normal(camera.shape)),
        "points": jnp.asarray(place + 0.02 * rng.standard_normal(place.shape)),
    }
    return Scene(observed, *map(jnp.asarray, (seen, which, camera, place))), start


def residuals(x, theta, scene: Scene):
    """Return the residuals; `theta` is an offset of each camera's image."""
    seen = jax.vmap(project)(x["cameras"][scene.camera], x["points"][scene.point])
    return {
        "image": seen - scene.observed - theta[scene.camera],
        "cameras": PRIOR * (x["cameras"] - scene.cameras),
        "points": PRIOR * (x["points"] - scene.points),
    }


def loss(x) -> jax.Array:
    """Return the mean squared position of cameras and points."""
    return jnp.mean(x["cameras"][:, 3:] ** 2) + jnp.mean(x["points"] ** 2)


def variants(start: dict[str, jax.Array]) -> dict[str, Callable]:
    """Return the gradient of the loss in the offsets: ours, and where it fits other libraries'."""
    ours = by_linear_solvers(start)
    return {**ours, **rivals(start)} if small(start) else ours


def small(start: dict[str, jax.Array]) -> bool:
    """Return whether dense matrices fit."""
    return sum(leaf.size for leaf in start.values()) <= MOST_DENSE


def rivals(start: dict[str, jax.Array]) -> dict[str, Callable]:
    """Return the gradient by optimistix and by jaxopt, with their own implicit derivatives."""
    import jaxopt
    import optimistix as optx

    def by_optimistix(theta, scene):
        cholesky = lx.Normal(lx.Cholesky())  # faster than QR, its default
        solver = optx.LevenbergMarquardt(RIVALS_TOL, RIVALS_TOL, linear_solver=cholesky)
        found = optx.least_squares(
            lambda x, theta: residuals(x, theta, scene), solver, start, theta, throw=False
        )
        return loss(found.value)

    def by_jaxopt(theta, scene):
        flat, unravel = jax.flatten_util.ravel_pytree(start)

        def stacked(flat, theta):
            return jax.flatten_util.ravel_pytree(residuals(unravel(flat), theta, scene))[0]

        solver = jaxopt.LevenbergMarquardt(
            stacked, maxiter=50, tol=RIVALS_TOL, xtol=RIVALS_TOL, gtol=RIVALS_TOL
        )
        return loss(unravel(solver.run(flat, theta).params))

    return {
        "optimistix, Levenberg-Marquardt": jax.grad(by_optimistix),
        "jaxopt, Levenberg-Marquardt": jax.grad(by_jaxopt),
    }


def by_linear_solvers(start: dict[str, jax.Array]) -> dict[str, Callable]:
    """Return our gradient for each pair of linear solvers: of the steps, of the derivative."""
    blocks = itd.BlockElimination(start, lambda x: x["points"])
    conjugate = lx.Normal(lx.CG(CG_RTOL, CG_ATOL, max_steps=CG_MAX_STEPS))
    dense = lx.Normal(lx.Cholesky())
    pairs = {
        "iterdiff, points eliminated": (blocks, blocks),
        "iterdiff, conjugate gradients": (conjugate, None),
    }
    if small(start):
        pairs["iterdiff, dense matrices"] = (dense, lx.LU())
    stop = itd.ResidualBelow(rtol=1e-8, max_steps=50)

    def gradient(of_step, of_derivative):
        algorithm = itd.LevenbergMarquardt(linear_solver=of_step)
        mode = itd.Implicit(linear_solver=of_derivative)

        def of_offsets(theta, scene):
            problem = itd.LeastSquares(lambda x, theta: residuals(x, theta, scene))
            return loss(itd.solve(problem, algorithm, start, theta, stop=stop, mode=mode).x)

        return jax.grad(of_offsets)

    return {name: gradient(*pair) for name, pair in pairs.items()}


def truth(scene: Scene, start: dict[str, jax.Array], theta: jax.Array) -> jax.Array:
    """Return the gradient by conjugate gradients with the true Hessian."""

    @jax.jit
    def adjoint(x, theta, scene):
        def slope(x, theta):
            def objective(x):
                parts = jax.tree.leaves(residuals(x, theta, scene))
                return sum(jnp.sum(part**2) for part in parts) / 2

            return jax.grad(objective)(x)

        def solve(b):
            hessian = jax.linearize(lambda x: slope(x, theta), x)[1]
            return jax.scipy.sparse.linalg.cg(hessian, b, tol=TRUTH_RTOL, maxiter=CG_MAX_STEPS)[0]

        x = jax.tree.map(jnp.subtract, x, solve(slope(x, theta)))
        pull = jax.vjp(lambda theta: slope(x, theta), theta)[1]
        return x, -pull(solve(jax.grad(loss)(x)))[0]

    blocks = itd.BlockElimination(start, lambda x: x["points"])
    problem = itd.LeastSquares(lambda x, theta: residuals(x, theta, scene))
    algorithm = itd.LevenbergMarquardt(linear_solver=blocks)
    x = itd.solve(problem, algorithm, start, theta, stop=itd.ResidualBelow(1e-8)).x
    return adjoint(adjoint(x, theta, scene)[0], theta, scene)[1]


def run(effort: Effort) -> Section:
    """Measure."""
    section = Section("Bundle adjustment")
    for cameras, points in ((3, 10),) if effort.toy else SIZES:
        data, start = scene(cameras, points)
        theta = jnp.zeros((cameras, 2))
        title = f"Gradient through {cameras} cameras and {points} points"
        inputs = (theta, data)
        comparison = Comparison(title, variants(start), inputs, truth(data, start, theta))
        compare(section, comparison, effort)
    return section
