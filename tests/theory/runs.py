"""Measured errors for the tests of the theory.

`recurrence` follows a method on one eigenvector at a time, in NumPy. `Measured` differentiates
the algorithms of the library on small quadratics. Their objective is
``x' H(theta) x / 2 + b(theta)' x`` with ``H = H0 + sum_k theta_k S_k``, ``b = b0 + B theta`` and
the start ``x0 = c0 + C theta``, at theta = 0.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from iterdiff import theory
from iterdiff.algorithms.polynomial import Chebyshev, Sobolev

# One eigenvector at a time


def recurrence(method: str, eigenvalue: np.ndarray, steps: int, **parameters: float) -> np.ndarray:
    """Return P_t and P_t' at some eigenvalues, of shape (2, steps + 1, eigenvalues).

    A dual number is multiplied by the eigenvalue by the product rule, and otherwise the
    recurrence is the method's own definition with gradient ``eigenvalue * x``.
    """
    lam = np.asarray(eigenvalue, float)

    def gradient(x):
        return np.stack([lam * x[0], lam * x[1] + x[0]])

    first, step = RECURRENCES[method](gradient, **parameters)
    x = [np.stack([np.ones_like(lam), np.zeros_like(lam)])]
    x.append(first(x[0]))
    while len(x) <= steps:
        x.append(step(x[-1], x[-2], len(x)))
    return np.stack(x, 1)


def _gradient_descent(gradient, h):
    return lambda x: x - h * gradient(x), lambda x, _, _t: x - h * gradient(x)


def _heavy_ball(gradient, h, beta, first_step=None):
    first_step = h if first_step is None else first_step
    return (
        lambda x: x - first_step * gradient(x),
        lambda x, old, _: x - h * gradient(x) + beta * (x - old),
    )


def _nesterov(gradient, h, beta):
    def step(x, old, _):
        y = x + beta * (x - old)
        return y - h * gradient(y)

    return lambda x: step(x, x, 1), step


def _chebyshev(gradient, low, high):
    sigma = (high + low) / (high - low)

    def ratio(t):  # T_{t-1}(sigma) / T_t(sigma) for sigma > 1
        angle = np.arccosh(sigma)
        return np.exp(-angle) * (1 + np.exp(-2 * (t - 1) * angle)) / (1 + np.exp(-2 * t * angle))

    def step(x, old, t):
        omega = 2 * sigma * ratio(t)
        return omega * (x - 2 / (high + low) * gradient(x)) + (1 - omega) * old

    return lambda x: x - 2 / (high + low) * gradient(x), step


RECURRENCES: dict[str, Callable] = {
    "gradient-descent": _gradient_descent,
    "heavy-ball": _heavy_ball,
    "nesterov": _nesterov,
    "chebyshev": _chebyshev,
}


def usual(method: str, low: float, high: float) -> tuple[str, dict[str, float]]:
    """Return the recurrence of a method of `METHODS`, and its parameters."""
    step, beta = (float(v) for v in theory.polyak_parameters(low, high))
    steps = {"1/L": 1 / high, "2/(L+l)": 2 / (low + high), "1.7/L": 1.7 / high}
    if method.startswith("gradient-"):
        return "gradient-descent", {"h": steps[method.removeprefix("gradient-")]}
    return method, {
        "heavy-ball": {"h": step, "beta": beta},
        "nesterov": {"h": 1 / high, "beta": beta**0.5},
        "chebyshev": {"low": low, "high": high},
    }[method]


def one_mode_errors(
    method: str, bounds: tuple[float, float], at: str, steps: int, *, error: float, G: float
) -> np.ndarray:
    """Return the errors of a Jacobian whose terms lie in one eigenvector and add up.

    `at` ("smallest" or "largest") names the eigenvector, `error` is E_0, and -`G` the derivative
    of the gradient at the start.
    """
    lam = bounds[["smallest", "largest"].index(at)]
    name, parameters = usual(method, *bounds)
    value, slope = recurrence(name, np.array([lam]), steps, **parameters)[..., 0]
    return np.abs((value - lam * slope) * error - slope * G)


# The library's algorithms on quadratics


class Quadratic(NamedTuple):
    """A quadratic, or a batch of them along a first axis of every field."""

    H: np.ndarray
    S: np.ndarray
    b: np.ndarray
    B: np.ndarray
    x0: np.ndarray
    C: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray


class Facts(NamedTuple):
    """The quantities in the bounds, in closed form."""

    solution: jax.Array
    jacobian: jax.Array
    initial_error: jax.Array
    gradient_derivative: jax.Array
    initial_iterate_error: jax.Array


METHODS = {
    "gradient-1/L": lambda _low, high: itd.GradientDescent(1 / high),
    "gradient-2/(L+l)": lambda low, high: itd.GradientDescent(2 / (low + high)),
    "gradient-1.7/L": lambda _low, high: itd.GradientDescent(1.7 / high),
    "heavy-ball": lambda low, high: itd.HeavyBall(*theory.polyak_parameters(low, high)),
    "nesterov": lambda low, high: itd.Nesterov(*theory.nesterov_parameters(low, high)),
    "chebyshev": Chebyshev,
    "sobolev": Sobolev,
}


def _objective(x, theta):
    H, b = theta
    return x @ H @ x / 2 + b @ x


def _jacobians(method: str, steps: int, problem: Quadratic) -> jax.Array:
    """Return the Jacobians of the iterates t = 0 to `steps` of one quadratic."""
    algorithm = METHODS[method](problem.smallest, problem.largest)
    minimization = itd.Minimization(_objective)

    def iterates(direction):
        H = problem.H + jnp.einsum("k,kij->ij", direction, problem.S)
        theta = (H, problem.b + problem.B @ direction)
        state = algorithm.init(minimization, problem.x0 + problem.C @ direction, theta)

        def advance(state, _):
            return algorithm.step(minimization, state, theta), state.x

        return jax.lax.scan(advance, state, None, length=steps + 1)[1]

    return jax.jacfwd(iterates)(jnp.zeros(problem.B.shape[-1]))


def facts(problem: Quadratic) -> Facts:
    """Return solution and Jacobian of one quadratic, and the errors at the start."""
    solution = -jnp.linalg.solve(problem.H, problem.b)
    change = jnp.einsum("kij,j->ik", problem.S, solution) + problem.B
    jacobian = -jnp.linalg.solve(problem.H, change)
    start = jnp.einsum("kij,j->ik", problem.S, problem.x0) + problem.B + problem.H @ problem.C
    return Facts(solution, jacobian, problem.C - jacobian, start, problem.x0 - solution)


COUNT, SIZE, PARAMETERS, STEPS = 20, 8, 2, 80


class Measured(NamedTuple):
    """Quadratics, their facts, and the Jacobians of every method, shape (COUNT, t, n, p)."""

    batch: Quadratic
    facts: Facts
    jacobians: dict[str, jax.Array]

    def errors(self, method: str) -> np.ndarray:
        """Return the Frobenius errors, absolute, of shape (COUNT, STEPS + 1)."""
        gap = self.jacobians[method] - self.facts.jacobian[:, None]
        return np.linalg.norm(gap, axis=(2, 3))


@functools.cache
def _program() -> Callable:
    """Return one compiled program for all methods."""

    def every(problem):
        return facts(problem), {m: _jacobians(m, STEPS, problem) for m in METHODS}

    return jax.jit(jax.vmap(every))


@functools.cache
def measured(*, commuting: bool) -> Measured:
    """Return what was measured on `COUNT` random quadratics."""
    batch = random_quadratics(COUNT, SIZE, PARAMETERS, commuting=commuting, seed=7)
    return Measured(batch, *_program()(batch))


def random_quadratics(count: int, n: int, p: int, *, commuting: bool, seed: int) -> Quadratic:
    """Return quadratics of random conditioning, scale, and share of both terms of the error.

    The bounds of the spectra depend only on the seed.
    """
    ends, rng = np.random.default_rng(seed), np.random.default_rng([seed, commuting])
    quadratics = []
    for _ in range(count):
        largest = 10 ** ends.uniform(-1, 1)
        smallest = largest * 10 ** ends.uniform(-3, -0.5)
        inside = np.exp(rng.uniform(np.log(smallest), np.log(largest), n - 2))
        spectrum = np.concatenate([[smallest, largest], inside])
        Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        H = (Q * spectrum) @ Q.T
        size = 10 ** rng.uniform(-2, 1)
        if commuting:
            S = np.stack([(Q * (spectrum * rng.normal(size=n) * size)) @ Q.T for _ in range(p)])
        else:
            S = size * largest * rng.normal(size=(p, n, n))
        S = (S + S.transpose(0, 2, 1)) / 2
        B, C = (rng.normal(size=(n, p)) * 10 ** rng.uniform(-2, 1) for _ in range(2))
        b, x0 = rng.normal(size=n), rng.normal(size=n)
        quadratics.append(Quadratic((H + H.T) / 2, S, b, B, x0, C, smallest, largest))
    return Quadratic(*(jnp.asarray(np.stack(field)) for field in zip(*quadratics, strict=True)))
