"""Measured curves for the tests of the theory: every method unrolled on small quadratics.

The objective is ``x' H(theta) x / 2 + b(theta)' x`` with ``H = H0 + sum_k theta_k S_k``,
``b = b0 + B theta`` and a start ``x0 = c0 + C theta``, at theta = 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from iterdiff import theory
from iterdiff.algorithms.polynomial import Chebyshev, Sobolev


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
    """What the bounds are made of."""

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


@functools.cache
def runner(method: str, steps: int):
    """Return a compiled function of a batch: iterates and their Jacobians, t = 0 to steps."""

    def iterates(problem, direction):
        algorithm = METHODS[method](problem.smallest, problem.largest)
        minimization = itd.Minimization(_objective)
        H = problem.H + jnp.einsum("k,kij->ij", direction, problem.S)
        theta = (H, problem.b + problem.B @ direction)
        state = algorithm.init(minimization, problem.x0 + problem.C @ direction, theta)

        def advance(state, _):
            return algorithm.step(minimization, state, theta), state.x

        return jax.lax.scan(advance, state, None, length=steps + 1)[1]

    def one(problem):
        zero = jnp.zeros(problem.B.shape[-1])
        return iterates(problem, zero), jax.jacfwd(iterates, 1)(problem, zero)

    def every(batch):
        # One after the other where a problem fills the cache.
        large = batch.H.shape[-1] > 50
        return jax.lax.map(one, batch) if large else jax.vmap(one)(batch)

    return jax.jit(every)


@jax.jit
@jax.vmap
def facts(problem: Quadratic) -> Facts:
    """Return solution and Jacobian in closed form, and what the error starts with."""
    solution = -jnp.linalg.solve(problem.H, problem.b)
    change = jnp.einsum("kij,j->ik", problem.S, solution) + problem.B
    jacobian = -jnp.linalg.solve(problem.H, change)
    start = jnp.einsum("kij,j->ik", problem.S, problem.x0) + problem.B + problem.H @ problem.C
    return Facts(solution, jacobian, problem.C - jacobian, start, problem.x0 - solution)


def jacobian_errors(method: str, problem: Quadratic, steps: int) -> np.ndarray:
    """Return the absolute Frobenius errors of the Jacobian, shape (problems, steps + 1)."""
    jacobians = runner(method, steps)(problem)[1]
    return np.linalg.norm(jacobians - facts(problem).jacobian[:, None], axis=(2, 3))


def random_quadratics(count: int, n: int, p: int, *, commuting: bool, seed: int) -> Quadratic:
    """Return quadratics of random conditioning, scale, and share of either part of the error.

    The bounds of the spectra depend on the seed alone.
    """
    ends, rng = np.random.default_rng(seed), np.random.default_rng([seed, commuting])
    out = []
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
        out.append(Quadratic((H + H.T) / 2, S, b, B, x0, C, smallest, largest))
    return Quadratic(*(jnp.asarray(np.stack(field)) for field in zip(*out, strict=True)))


def worst_case(smallest: float, largest: float, at: str, error: float, G: float) -> Quadratic:
    """Return one quadratic whose error lies in one eigenvector, both of its parts adding up.

    With `at` "smallest" or "largest": E_0 = error along that eigenvector and the derivative
    of the starting gradient -G along it, by a suitable dH.
    """
    spectrum = np.array([smallest, largest])
    k = ["smallest", "largest"].index(at)
    # dG = dH e_0 + H E_0 with e_0 = 1 along the eigenvector, x* = 0, J* = 0.
    dH = np.zeros(2)
    dH[k] = -(G + spectrum[k] * error)
    x0, C = np.zeros(2), np.zeros((2, 1))
    x0[k], C[k] = 1.0, error
    fields = (np.diag(spectrum), np.diag(dH)[None], np.zeros(2), np.zeros((2, 1)), x0, C)
    return Quadratic(*(jnp.asarray(f)[None] for f in (*fields, smallest, largest)))
