"""Cases whose problem is misstated, or whose iteration behaves badly."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.wrong_derivatives.group import Data, Group, Setup, builder, case, fixed, grid
from benchmarks.wrong_derivatives.slow_cases import (
    BOTH,
    IMPLICIT,
    THREE,
    hessian,
    newton,
    quadratic,
    quadratic_case,
    right_side,
)

# Misstated residuals


class ForeignDescent(itd.Algorithm):
    """A user's algorithm whose step solves the problem `true`."""

    true: itd.Problem
    accepts: ClassVar[tuple[type[itd.Problem], ...]] = (itd.Problem,)

    def init(self, problem: itd.Problem, x0: jax.Array, theta: jax.Array) -> itd.Iterate:
        """Return the iterate."""
        del problem, theta
        return itd.Iterate(x0)

    def step(self, problem: itd.Problem, state: itd.Iterate, theta: jax.Array) -> itd.Iterate:
        """Step down the residual of `true` instead of the problem's."""
        del problem
        return itd.Iterate(state.x - 0.5 * self.true.residual(state.x, theta))


FAULTS = {
    "penalty x 1.1": (1.1, 1.0, 0.0),
    "penalty x 2": (2.0, 1.0, 0.0),
    "penalty / 2": (0.5, 1.0, 0.0),
    "no penalty": (0.0, 1.0, 0.0),
    "rhs halved": (1.0, 0.5, 0.0),
    "sign of rhs": (1.0, -1.0, 0.0),
    "cubic forgotten": (1.0, 1.0, 0.1),
    "penalty x 1.00001": (1.00001, 1.0, 0.0),
}
"""Factors of the penalty and of the right-hand side, and of a cubic term that is left out."""


def misstated(data: Data) -> Setup:
    """Return a solver by Newton's method of another problem than the one stated."""
    penalty, rhs, cubic = data["fault"]

    def residual(x, theta, penalty, rhs, cubic):
        left = data["h"] @ x + 0.1 * penalty * jnp.exp(theta[0]) * x + cubic * x**3
        return left - rhs * right_side(data, theta)

    true = itd.RootFinding(lambda x, theta: residual(x, theta, 1.0, 1.0, cubic))
    stated = itd.RootFinding(lambda x, theta: residual(x, theta, penalty, rhs, 0.0))

    def solver(x0, theta):
        def step(_, x):
            jacobian = jax.jacfwd(true.residual)(x, theta)
            return x - jnp.linalg.solve(jacobian, true.residual(x, theta))

        return jax.lax.fori_loop(0, 60, step, x0)

    return Setup(stated, solver, data["x0"], data["theta"], true)


def misstated_step(data: Data) -> Setup:
    """Return an algorithm whose steps solve another problem than the one stated."""
    setup = misstated(data)
    assert setup.true is not None
    return setup._replace(algorithm=ForeignDescent(setup.true))


def wrong_residuals() -> list[Group]:
    """Return solvers that solve another problem than the one stated."""

    def maker(rng, fault, kappa):
        return quadratic_case(rng, kappa, 0.0, 8) | {"fault": np.array(FAULTS[fault])}

    family, stop = "wrong residuals", itd.Steps(400)
    wrong = grid("wrong", maker, fault=FAULTS, kappa=(1e1, 1e3))
    steps = grid("wrong-step", maker, fault=FAULTS, kappa=(1e1, 1e3))
    return [
        Group(family, "wrong-residual", misstated, wrong, IMPLICIT),
        Group(family, "wrong-step", misstated_step, steps, IMPLICIT, stop=stop, foreign=True),
    ]


# Iterations that diverge, cycle or grow before they converge


def diverging() -> list[Group]:
    """Return gradient descent with too long steps."""

    def maker(rng, h_over_L, kappa):
        return quadratic_case(rng, kappa, 0.0, 6) | {"factor": h_over_L}

    def too_long(data: Data) -> itd.Algorithm:
        largest = jnp.linalg.norm(hessian(data, data["theta"]), 2)
        return itd.GradientDescent(data["factor"] / largest)

    cases = grid("diverging", maker, h_over_L=(2.0, 2.1, 3.0), kappa=(1e1, 1e3))
    return [
        Group("diverging", "gd-diverges", quadratic(too_long), cases, THREE, stop=itd.Steps(40))
    ]


def cycling() -> list[Group]:
    """Return fixed-point iterations and Newton's method that cycle."""

    def gain_case(rng, gain, away, n=6):
        u, b, guess = rng.standard_normal((n, 2)), 0.1 * rng.standard_normal(n), np.zeros(n)
        for _ in range(2000):
            guess = 0.8 * guess + 0.2 * (b - gain * np.tanh(guess))
        start = guess + away * rng.standard_normal(n)
        return case(rng, np.zeros(2), start, gain=gain, u=u, b=b, guess=guess)

    def gain(data: Data) -> itd.Problem:
        return itd.FixedPoint(
            lambda x, theta: data["b"] + data["u"] @ theta - data["gain"] * jnp.tanh(x)
        )

    def cubic_case(rng, x0):
        given = {"guess": np.full(1, -1.77), "w": np.ones(1)}
        return case(rng, np.full(1, 2.0), np.full(1, x0), **given)

    def cubic(_: Data) -> itd.Problem:
        return itd.RootFinding(lambda x, theta: x**3 - 2 * x + theta)

    circles = grid("cycling", gain_case, gain=(1.1, 1.5, 3.0), away=(0.01, 1.0))
    cubics = grid("newton-cycle", cubic_case, x0=(0.0, 0.1, 1.0, 0.5))
    build, at = builder(gain, fixed(itd.Picard())), itd.Steps(40)
    by_newton = builder(cubic, newton)
    return [
        Group("cycling", "picard-cycles", build, circles, THREE, stop=at, peer="fixed_point"),
        Group("cycling", "newton-cycles", by_newton, cubics, THREE, stop=itd.Steps(7)),
    ]


def non_normal() -> list[Group]:
    """Return contractions with triangular Jacobians of norm above 1."""

    def maker(rng, coupling, rtol, n=10):
        upper = coupling * np.triu(rng.uniform(0.5, 1.0, (n, n)), 1) + 0.5 * np.eye(n)
        u, b, guess = rng.standard_normal((n, 2)), rng.standard_normal(n), np.zeros(n)
        for _ in range(4000):
            guess = guess + 0.05 * (upper @ np.sin(guess) + b - guess)
        arrays = {"upper": upper, "u": u, "b": b, "guess": guess, "rtol": rtol}
        return case(rng, np.zeros(2), np.zeros(n), **arrays)

    def curved(data: Data) -> itd.Problem:
        return itd.FixedPoint(
            lambda x, theta: data["upper"] @ jnp.sin(x) + data["u"] @ theta + data["b"]
        )

    def straight(data: Data) -> itd.Problem:
        matrix = jnp.eye(10) - data["upper"]
        return itd.LinearSystem(
            lambda x, theta: matrix @ x + 0.1 * theta[0] * jnp.roll(x, 1),
            lambda theta: data["b"] + data["u"] @ theta,
        )

    family = "non-normal"
    rtol = (1e-1, 1e-3, 1e-6)
    bent = grid("bent", maker, coupling=(0.1, 0.5, 1.0), rtol=rtol)
    linear = grid("straight", maker, coupling=(0.1, 0.5, 2.0), rtol=rtol)
    picard = builder(curved, fixed(itd.Picard()))
    richardson = builder(straight, fixed(itd.Richardson(1.0)))
    return [
        Group(family, "non-normal-bent", picard, bent, THREE, "jacobian", peer="fixed_point"),
        Group(family, "non-normal-linear", richardson, linear, THREE, "tangent"),
    ]


# Saddle points


def games() -> list[Group]:
    """Return min-max problems."""

    def maker(rng, coupling, rtol, n=5):
        k, u = rng.standard_normal((n, n)), rng.standard_normal((2 * n, 2))
        arrays = {"k": k, "coupling": coupling, "u": u, "rtol": rtol}
        return case(rng, 0.1 * rng.standard_normal(2), np.zeros(2 * n), **arrays)

    def game(data: Data) -> itd.Problem:
        def field(z, theta):
            x, y = z[:5], z[5:]
            k = data["coupling"] * data["k"]
            slope = jnp.concatenate([x + 0.1 * x**3 + k @ y, y + 0.1 * y**3 - k.T @ x])
            return slope - data["u"] @ theta - jnp.sum(theta) * jnp.cos(z)

        step = 0.5 / (1 + data["coupling"] * jnp.linalg.norm(data["k"], 2)) ** 2
        return itd.FixedPoint(lambda z, theta: z - step * field(z, theta))

    cases = grid("minmax", maker, coupling=(0.3, 3.0), rtol=(1e-1, 1e-3, 1e-6))
    return [Group("saddle points", "min-max", builder(game, fixed(itd.Picard())), cases, THREE)]


def multipliers() -> list[Group]:
    """Return quadratics with linear constraints and their multipliers."""

    def maker(rng, kappa, rtol):
        data = quadratic_case(rng, kappa, rtol, 8)
        data |= {"e": rng.standard_normal((3, 8)), "x0": np.zeros(11), "guess": np.zeros(11)}
        return {**data, "w": rng.standard_normal(11)}

    def stationarity(data: Data) -> itd.Problem:
        def operator(z, theta):
            x, y = z[:8], z[8:]
            return jnp.concatenate([hessian(data, theta) @ x + data["e"].T @ y, data["e"] @ x])

        def rhs(theta):
            return jnp.concatenate([right_side(data, theta), theta])

        return itd.LinearSystem(operator, rhs, symmetric=True)

    cases = grid("multipliers", maker, kappa=(1e2, 1e6), rtol=(1e-1, 1e-3, 1e-8))
    build = builder(stationarity, fixed(itd.GMRES(6)))
    return [Group("saddle points", "multipliers", build, cases, BOTH, "jacobian", 10)]


def _well_gradient(z: np.ndarray, k: np.ndarray, theta: np.ndarray) -> np.ndarray:
    u, v = z[0], z[1:]
    return np.concatenate([[u**3 - u - 0.3 * (k @ v)], v - theta - 0.3 * k * u])


def _double_well_case(rng, away: float, stays: bool) -> Data:
    """Return a double well in the first coordinate: a saddle near 0 between two minima."""
    k, theta = rng.standard_normal(3) / 2, 0.3 * rng.standard_normal(3)
    saddle, h = np.concatenate([[0.0], theta]), np.eye(4)
    h[0, 1:] = h[1:, 0] = -0.3 * k
    for _ in range(50):  # Newton's method, to the saddle
        h[0, 0] = 3 * saddle[0] ** 2 - 1
        saddle = saddle - np.linalg.solve(h, _well_gradient(saddle, k, theta))
    h[0, 0] = 3 * saddle[0] ** 2 - 1
    _, vectors = np.linalg.eigh(h)
    x0 = saddle + vectors[:, 1:] @ rng.standard_normal(3) * 0.1 + away * vectors[:, 0]
    guess = saddle.copy()
    if not stays:
        guess = x0.copy()
        for _ in range(3000):
            guess = guess - 0.1 * _well_gradient(guess, k, theta)
    return case(rng, theta, x0, k=k, guess=guess)


def _double_well(data: Data) -> itd.Problem:
    def objective(z, theta):
        u, v = z[0], z[1:]
        well = u**4 / 4 - u**2 / 2 - 0.3 * u * (data["k"] @ v)
        return well + jnp.sum((v - theta) ** 2) / 2

    return itd.Minimization(objective)


def double_wells() -> list[Group]:
    """Return Newton's method near a saddle, and descent that lingers there."""
    family = "saddle points"
    near = grid("at-saddle", _double_well_case, away=(1e-1, 1e-3), stays=(True,))
    passing = grid("passing", _double_well_case, away=(1e-2, 1e-4, 1e-6, 1e-8), stays=(False,))
    by_newton = builder(_double_well, newton)
    by_descent = builder(_double_well, fixed(itd.GradientDescent(0.4)))
    return [
        Group(family, "newton-to-saddle", by_newton, near, BOTH, stop=itd.Steps(8)),
        Group(family, "descent-passes", by_descent, passing, BOTH, stop=itd.Steps(12)),
    ]


# Active sets that are not settled, or hardly


def lassos() -> list[Group]:
    """Return the lasso."""

    def maker(rng, penalty, rtol, n=12):
        design = rng.standard_normal((24, n)) @ np.diag(np.logspace(-0.7, 0, n)) / 5
        design /= np.linalg.norm(design, 2)
        target = design @ (rng.standard_normal(n) * (rng.uniform(size=n) < 0.4) * 3)
        target = target + 0.05 * rng.standard_normal(24)
        level = penalty * np.max(np.abs(design.T @ target))
        shift, x = rng.standard_normal(24) / 5, np.zeros(n)
        for _ in range(30000):
            z = x - design.T @ (design @ x - target - 0.1 * shift)
            x = np.sign(z) * np.maximum(np.abs(z) - level, 0)
        arrays = {"design": design, "target": target, "shift": shift, "guess": x, "rtol": rtol}
        return case(rng, np.array([np.log(level), 0.1]), np.zeros(n), **arrays)

    def lasso(data: Data) -> itd.Problem:
        def smooth(x, theta):
            gap = data["design"] @ x - data["target"] - theta[1] * data["shift"]
            return gap @ gap / 2

        def prox(x, step, theta):
            return itd.prox.soft_threshold(x, step * jnp.exp(theta[0]))

        return itd.CompositeMinimization(smooth, prox)

    cases = grid("lasso", maker, penalty=(0.5, 0.1, 0.02), rtol=(1e-1, 1e-2, 1e-4, 1e-8))
    build = builder(lasso, fixed(itd.ProximalGradient(1.0)))
    return [Group("active sets", "lasso", build, cases, THREE, peer="composite")]


def boxes() -> list[Group]:
    """Return quadratics in a box."""

    def maker(rng, kappa, rtol, n=10):
        data = quadratic_case(rng, kappa, rtol, n)
        h = data["h"] + (data["s"].T * np.exp(data["theta"])) @ data["s"]
        data["b"] = h @ (1.5 * rng.standard_normal(n))  # so that some coordinates stay free
        data["c"] = h @ data["c"] / 5
        slope, x = data["b"] + data["c"] @ data["theta"], np.zeros(n)
        for _ in range(40000):
            x = np.clip(x - 0.8 * (h @ x - slope), -1, 1)
        return {**data, "guess": x}

    def box(data: Data) -> itd.Problem:
        def smooth(x, theta):
            return x @ (hessian(data, theta) @ x) / 2 - right_side(data, theta) @ x

        return itd.CompositeMinimization(smooth, lambda x, *_: itd.prox.box(x, -1.0, 1.0))

    cases = grid("box", maker, kappa=(1e1, 1e3), rtol=(1e-1, 1e-2, 1e-4, 1e-8))
    build = builder(box, fixed(itd.ProximalGradient(0.8)))
    return [Group("active sets", "box", build, cases, BOTH, "jacobian")]


def margins() -> list[Group]:
    """Return soft thresholding of two numbers that are close to the threshold."""

    def maker(rng, margin, away, n=6):
        b = rng.uniform(1.5, 3.0, n)
        b[0], b[1] = 1.0 + margin, 1.0 - margin
        solution = np.sign(b) * np.maximum(np.abs(b) - 1, 0)
        x0 = solution + away * rng.uniform(-1, 1, n)
        arrays = {"b": b, "guess": solution, "w": rng.uniform(0.5, 1.5, n), "v": np.ones(2)}
        return case(rng, np.ones(2), x0, **arrays)

    def problem(data: Data) -> itd.Problem:
        def smooth(x, theta):
            return jnp.sum((x - theta[0] * data["b"]) ** 2) / 2

        def prox(x, step, theta):
            return itd.prox.soft_threshold(x, step * theta[1])

        return itd.CompositeMinimization(smooth, prox, residual_step=0.5)

    cases = grid("margin", maker, margin=(1e-2, 1e-4, 1e-6), away=(1e-1, 1e-3, 1e-5))
    build = builder(problem, fixed(itd.ProximalGradient(0.5)))
    return [Group("active sets", "margin", build, cases, BOTH, stop=itd.Steps(1))]


def groups() -> list[Group]:
    """Return these cases."""
    makers = (wrong_residuals, diverging, cycling, non_normal, games, multipliers, double_wells)
    return [group for make in (*makers, lassos, boxes, margins) for group in make()]
