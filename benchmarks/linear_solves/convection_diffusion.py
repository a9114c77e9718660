"""A convection-diffusion equation on a square, its fast preconditioner, and its exact gradient.

On a grid of n by n inner points with spacing h, and u = 0 on the boundary:

    - div(k grad u) + b . grad u + c u = f,

with a coefficient k that varies by a factor of `CONTRAST`, and a velocity field b that turns. The
parameters are c, and the strengths of two sources in f. The matrix is not symmetric.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import iterdiff as itd

CONTRAST = 4.0
"""The largest value of k over the smallest."""
VELOCITY = 40.0
"""The largest speed."""

Grid = Float[Array, "n n"]


@dataclasses.dataclass
class Products:
    """How many products with the matrix or its transpose have run."""

    count: int = 0

    def take(self) -> int:
        """Return the count, and begin again."""
        jax.effects_barrier()
        count, self.count = self.count, 0
        return count


def _faces(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return k on the faces of both directions, and b at the points."""
    inner = np.arange(1, n + 1) / (n + 1)
    middle = (np.arange(n + 1) + 0.5) / (n + 1)

    def k(x, y):
        return CONTRAST ** np.sin(3 * np.pi * x) ** 2 * (1 + 0.0 * y)

    down = k(middle[:, None], inner[None])
    across = k(inner[:, None], middle[None])
    x, y = inner[:, None], inner[None]
    turn = VELOCITY * np.sin(np.pi * x) * np.sin(np.pi * y)
    return down, across, turn * (y - 0.5), turn * (0.5 - x)


@dataclasses.dataclass(frozen=True)
class Case:
    """The equation on one grid.

    Attributes
    ----------
    n : int
        Points in a row.
    products : Products
        Counts the products.
    """

    n: int
    products: Products = dataclasses.field(default_factory=Products)

    @functools.cached_property
    def coefficients(self) -> tuple[np.ndarray, ...]:
        """Return k on the faces, over h squared, and b, over 2 h."""
        down, across, b_down, b_across = _faces(self.n)
        h = 1 / (self.n + 1)
        return down / h**2, across / h**2, b_down / (2 * h), b_across / (2 * h)

    @functools.cached_property
    def sources(self) -> np.ndarray:
        """The right-hand sides of unit strength."""
        x = np.arange(1, self.n + 1) / (self.n + 1)
        bump = [np.exp(-(((x - centre) / 0.1) ** 2)) for centre in (0.3, 0.7)]
        return np.stack([np.outer(bump[0], bump[1]), np.outer(bump[1], bump[1])])

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """The loss is their sum of products with u: the mean over a quarter of the square."""
        weights = np.zeros((self.n, self.n))
        weights[: self.n // 2, : self.n // 2] = 4 / self.n**2
        return weights

    def _counted(self, u: Grid) -> Grid:
        """Return `u`, and count that the program gets here, forward and transposed.

        The products of a batch are all counted.
        """

        def same(_, v):
            self._counter(1)(v[0, 0])
            return v

        # A linear solve with the identity: JAX transposes and batches it.
        return jax.lax.custom_linear_solve(lambda v: v, u, same, same)

    def _counter(self, products: int) -> Callable:
        """Return a function that adds to the count when the program calls it.

        JAX makes one callback for each member of a batch of callbacks, and a matrix is formed by a
        batch of as many products as it has columns: ten times as long to compile. So a batch is one
        callback.
        """

        @jax.custom_batching.custom_vmap
        def count(entries: Array) -> Array:
            jax.debug.callback(functools.partial(self._add, products), entries)
            return entries

        @count.def_vmap
        def _(size: int, in_batched: list, entries: Array) -> tuple[Array, bool]:
            return self._counter(size * products)(entries), in_batched[0]

        return count

    def _add(self, products: int, entries: object) -> None:
        del entries
        self.products.count += products

    def operator(self, u: Grid, reaction: Float[Array, ""]) -> Grid:
        """Return the left-hand side."""
        down, across, b_down, b_across = map(jnp.asarray, self.coefficients)
        p = jnp.pad(self._counted(u), 1)
        flow_down = down * (p[1:, 1:-1] - p[:-1, 1:-1])
        flow_across = across * (p[1:-1, 1:] - p[1:-1, :-1])
        diffusion = jnp.diff(flow_down, axis=0) + jnp.diff(flow_across, axis=1)
        convection = b_down * (p[2:, 1:-1] - p[:-2, 1:-1])
        convection += b_across * (p[1:-1, 2:] - p[1:-1, :-2])
        return convection - diffusion + reaction * u

    def problem(self) -> itd.Problem:
        """Return the equation; theta is c and the two strengths."""
        sources = jnp.asarray(self.sources)
        return itd.LinearSystem(
            lambda u, theta: self.operator(u, theta[0]),
            lambda theta: jnp.tensordot(theta[1:], sources, 1),
        )

    def fast(self, problem: itd.Problem, u: Grid, theta: Float[Array, "3"]):
        """Return the solution with constant k and without convection, by sine transforms."""
        del problem, u, theta
        h, mean = 1 / (self.n + 1), CONTRAST**0.5
        waves = 4 * np.sin(np.arange(1, self.n + 1) * np.pi * h / 2) ** 2 / h**2
        inverse = jnp.asarray(1 / (mean * (waves[:, None] + waves[None])) * (2 * h) ** 2)

        def sines(v, axis):
            zero = jnp.zeros_like(jax.lax.slice_in_dim(v, 0, 1, axis=axis))
            odd = jnp.concatenate([zero, v, zero, -jnp.flip(v, axis)], axis)
            transformed = -0.5 * jnp.fft.rfft(odd, axis=axis).imag
            return jax.lax.slice_in_dim(transformed, 1, self.n + 1, axis=axis)

        def apply(v):
            both = sines(sines(v, 0), 1)
            return sines(sines(inverse * both, 0), 1)

        return apply

    def matrix(self):
        """Return the matrix for c = 0, as a sparse matrix of SciPy."""
        import scipy.sparse as sp

        n = self.n
        down, across, b_down, b_across = self.coefficients
        centre = down[1:] + down[:-1] + across[:, 1:] + across[:, :-1]
        north, south = -down[:-1] - b_down, -down[1:] + b_down
        west, east = -across[:, :-1] - b_across, -across[:, 1:] + b_across
        west[:, 0] = east[:, -1] = 0.0  # the neighbours of another row
        parts = [centre.ravel(), north.ravel()[n:], south.ravel()[:-n]]
        parts += [west.ravel()[1:], east.ravel()[:-1]]
        return sp.diags(parts, [0, -n, n, -1, 1], format="csc")

    def exactly(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the solution, the adjoint and the gradient of the loss, by a sparse LU."""
        import scipy.sparse as sp
        from scipy.sparse.linalg import splu

        lu = splu(self.matrix() + theta[0] * sp.identity(self.n**2, format="csc"))
        shape = self.n, self.n
        u = lu.solve(np.tensordot(theta[1:], self.sources, 1).ravel()).reshape(shape)
        adjoint = lu.solve(self.weights.ravel(), trans="T").reshape(shape)
        gradient = [-np.vdot(adjoint, u), *(np.vdot(adjoint, s) for s in self.sources)]
        return u, adjoint, np.array(gradient)

    def gradient(self, mode: itd.Implicit):
        """Return ``(theta, u) -> gradient in theta`` of the loss, compiled."""
        weights, problem = jnp.asarray(self.weights), self.problem()

        def loss(theta, u):
            return jnp.vdot(weights, mode.attach(problem, u, theta, throw=False))

        return jax.jit(jax.grad(loss))
