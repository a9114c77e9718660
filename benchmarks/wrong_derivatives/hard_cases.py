"""Cases of `wrong_derivatives`: problems that are misstated, or badly behaved."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from benchmarks.wrong_base import Data, Group, Setup
from benchmarks.wrong_cases import (
    BOTH,
    IMPLICIT,
    THREE,
    generator,
    grid,
    hessian,
    newton,
    quadratic,
    quadratic_case,
    weights,
)


class OwnDescent(itd.Algorithm):
    """An algorithm of a user's own, whose step belongs to the problem `true`."""

    true: itd.Problem
    accepts: ClassVar[tuple[type[itd.Problem], ...]] = (itd.Problem,)

    def init(self, problem: itd.Problem, x0: jax.Array, theta: jax.Array) -> itd.Iterate:
        """Return the iterate."""
        del problem, theta
        return itd.Iterate(x0)

    def step(self, problem: itd.Problem, state: itd.Iterate, theta: jax.Array) -> itd.Iterate:
        """Step down the residual of `true`, not of the problem that is told."""
        del problem
        return itd.Iterate(state.x - 0.5 * self.true.residual(state.x, theta))


def wrong_residuals() -> list[Group]:
    """Residuals that do not vanish where the solver stops, though it solved its own problem."""
    # factors of penalty, of the right-hand side's moving part, of a cubic term left out
    faults = {
        "penalty x 1.1": (1.1, 1.0, 0.0),
        "penalty x 2": (2.0, 1.0, 0.0),
        "penalty / 2": (0.5, 1.0, 0.0),
        "no penalty": (0.0, 1.0, 0.0),
        "rhs halved": (1.0, 0.5, 0.0),
        "sign of rhs": (1.0, -1.0, 0.0),
        "cubic forgotten": (1.0, 1.0, 0.1),
        "penalty x 1.00001": (1.00001, 1.0, 0.0),
    }

    def maker(rng, fault, condition):
        case = quadratic_case(rng, condition, 0.0, 8)
        solution = np.zeros(8)
        return {
            **case,
            "label": f"{fault} kappa={condition:.0e}",
            "fault": np.array(faults[fault]),
            "guess": solution,
        }

    def build(data: Data) -> Setup:
        penalty, rhs, cubic = data["fault"]

        def residual(x, theta, penalty, rhs, cubic):
            left = data["h"] @ x + 0.1 * penalty * jnp.exp(theta[0]) * x + cubic * x**3
            return left - rhs * (data["b"] + data["c"] @ theta)

        true = itd.RootFinding(lambda x, theta: residual(x, theta, 1.0, 1.0, cubic))
        told = itd.RootFinding(lambda x, theta: residual(x, theta, penalty, rhs, 0.0))

        def solver(x0, theta):
            def step(_, x):
                return x - jnp.linalg.solve(
                    jax.jacfwd(true.residual)(x, theta), true.residual(x, theta)
                )

            return jax.lax.fori_loop(0, 60, step, x0)

        return Setup(told, solver, data["x0"], data["theta"], true)

    def own(data: Data) -> Setup:
        setup = build(data)
        assert setup.true is not None
        return setup._replace(algorithm=OwnDescent(setup.true))

    wrong = grid("wrong", maker, tuple(faults), (1e1, 1e3))
    steps = grid("wrong-step", maker, tuple(faults), (1e1, 1e3))
    family = "wrong residuals"
    return [
        Group(family, "wrong-residual", build, wrong, IMPLICIT),
        Group(family, "wrong-step", own, steps, IMPLICIT, stop=itd.Steps(400)),
    ]


def diverging() -> list[Group]:
    """Return iterations that go away, or round in circles."""

    def steps(rng, factor, condition):
        case = quadratic_case(rng, condition, 0.0, 6)
        return {**case, "label": f"h={factor}/L kappa={condition:.0e}", "factor": factor}

    def too_long(data: Data) -> itd.Algorithm:
        largest = jnp.linalg.norm(hessian(data, data["theta"]), 2)
        return itd.GradientDescent(data["factor"] / largest)

    def gain(rng, gain, away):
        n = 6
        u, b = rng.standard_normal((n, 2)), 0.1 * rng.standard_normal(n)
        guess = np.zeros(n)
        for _ in range(2000):
            guess = 0.8 * guess + 0.2 * (b - gain * np.tanh(guess))
        case = {"label": f"gain={gain} away={away}", "gain": gain, "u": u, "b": b, "guess": guess}
        start = guess + away * rng.standard_normal(n)
        return {**case, "theta": np.zeros(2), "x0": start, **weights(rng, n, 2)}

    def cycle(data: Data) -> Setup:
        def update(x, theta):
            return data["b"] + data["u"] @ theta - data["gain"] * jnp.tanh(x)

        return Setup(itd.FixedPoint(update), itd.Picard(), data["x0"], data["theta"])

    def cubic(rng, start):
        del rng
        x0 = np.full(1, start)
        case = {"label": f"x0={start}", "theta": np.full(1, 2.0), "x0": x0, "w": np.ones(1)}
        return {**case, "guess": np.full(1, -1.77)}

    def newton_cycle(data: Data) -> Setup:
        problem = itd.RootFinding(lambda x, theta: x**3 - 2 * x + theta)
        return Setup(problem, itd.Newton(), data["x0"], data["theta"])

    far = grid("diverging", steps, (2.0, 2.1, 3.0), (1e1, 1e3))
    round_ = grid("cycling", gain, (1.1, 1.5, 3.0), (0.01, 1.0))
    cubics = grid("newton-cycle", cubic, (0.0, 0.1, 1.0, 0.5))
    at = itd.Steps(40)
    return [
        Group("diverging", "gd-diverges", quadratic(too_long), far, THREE, stop=at),
        Group("cycling", "picard-cycles", cycle, round_, THREE, stop=at, peer="fixed_point"),
        Group("cycling", "newton-cycles", newton_cycle, cubics, THREE, stop=itd.Steps(7)),
    ]


def non_normal() -> list[Group]:
    """Contractions in the end, of norm above 1: triangular Jacobians."""

    def maker(rng, coupling, rtol, n=10):
        upper = coupling * np.triu(rng.uniform(0.5, 1.0, (n, n)), 1) + 0.5 * np.eye(n)
        u, b, guess = rng.standard_normal((n, 2)), rng.standard_normal(n), np.zeros(n)
        for _ in range(4000):
            guess = guess + 0.05 * (upper @ np.sin(guess) + b - guess)
        return {
            "label": f"coupling={coupling} rtol={rtol:.0e}",
            "upper": upper,
            "u": u,
            "b": b,
            "theta": np.zeros(2),
            "x0": np.zeros(n),
            "guess": guess,
            "rtol": rtol,
            **weights(rng, n, 2),
        }

    def curved(data: Data) -> Setup:
        def update(x, theta):
            return data["upper"] @ jnp.sin(x) + data["u"] @ theta + data["b"]

        return Setup(itd.FixedPoint(update), itd.Picard(), data["x0"], data["theta"])

    def straight(data: Data) -> Setup:
        matrix = jnp.eye(10) - data["upper"]
        problem = itd.LinearSystem(
            lambda x, theta: matrix @ x + 0.1 * theta[0] * jnp.roll(x, 1),
            lambda theta: data["b"] + data["u"] @ theta,
        )
        return Setup(problem, itd.Richardson(1.0), data["x0"], data["theta"])

    bent = grid("bent", maker, (0.1, 0.5, 1.0), (1e-1, 1e-3, 1e-6))
    linear = grid("straight", maker, (0.1, 0.5, 2.0), (1e-1, 1e-3, 1e-6))
    return [
        Group("non-normal", "non-normal-bent", curved, bent, THREE, "jacobian", peer="fixed_point"),
        Group("non-normal", "non-normal-linear", straight, linear, THREE, "tangent"),
    ]


def saddles() -> list[Group]:
    """Min-max problems, constraints with multipliers, and descent that lingers at a saddle."""

    def minmax(rng, coupling, rtol, n=5):
        case = {"label": f"coupling={coupling} rtol={rtol:.0e}", "k": rng.standard_normal((n, n))}
        case |= {"coupling": coupling, "u": rng.standard_normal((2 * n, 2)), "rtol": rtol}
        case |= {"theta": 0.1 * rng.standard_normal(2), "x0": np.zeros(2 * n)}
        return {**case, "guess": np.zeros(2 * n), **weights(rng, 2 * n, 2)}

    def game(data: Data) -> Setup:
        def field(z, theta):
            x, y = z[:5], z[5:]
            k = data["coupling"] * data["k"]
            slope = jnp.concatenate([x + 0.1 * x**3 + k @ y, y + 0.1 * y**3 - k.T @ x])
            return slope - data["u"] @ theta - jnp.sum(theta) * jnp.cos(z)

        step = 0.5 / (1 + data["coupling"] * jnp.linalg.norm(data["k"], 2)) ** 2
        update = itd.FixedPoint(lambda z, theta: z - step * field(z, theta))
        return Setup(update, itd.Picard(), data["x0"], data["theta"])

    def constrained(rng, condition, rtol):
        case = quadratic_case(rng, condition, rtol, 8)
        case |= {"e": rng.standard_normal((3, 8)), "x0": np.zeros(11), "guess": np.zeros(11)}
        return {**case, "w": rng.standard_normal(11)}

    def multipliers(data: Data) -> Setup:
        def operator(z, theta):
            x, y = z[:8], z[8:]
            return jnp.concatenate([hessian(data, theta) @ x + data["e"].T @ y, data["e"] @ x])

        def rhs(theta):
            return jnp.concatenate([data["b"] + data["c"] @ theta, theta])

        problem = itd.LinearSystem(operator, rhs, symmetric=True)
        return Setup(problem, itd.GMRES(6), data["x0"], data["theta"])

    games = grid("minmax", minmax, (0.3, 3.0), (1e-1, 1e-3, 1e-6))
    duals = grid("multipliers", constrained, (1e2, 1e6), (1e-1, 1e-3, 1e-8))
    at_newton = grid("at-saddle", _double_well_case, (1e-1, 1e-3), (True,))
    passing = grid("passing", _double_well_case, (1e-2, 1e-4, 1e-6, 1e-8), (False,))
    well = _double_well
    return [
        Group("saddle points", "min-max", game, games, THREE),
        Group("saddle points", "multipliers", multipliers, duals, BOTH, "jacobian", 10),
        Group(
            "saddle points", "newton-to-saddle", well(newton), at_newton, BOTH, stop=itd.Steps(8)
        ),
        Group("saddle points", "descent-passes", well(_slow), passing, BOTH, stop=itd.Steps(12)),
    ]


def _slow(data: Data) -> itd.Algorithm:
    del data
    return itd.GradientDescent(0.4)


def _well_gradient(z: np.ndarray, k: np.ndarray, theta: np.ndarray) -> np.ndarray:
    u, v = z[0], z[1:]
    return np.concatenate([[u**3 - u - 0.3 * (k @ v)], v - theta - 0.3 * k * u])


def _double_well_case(rng, away: float, stays: bool) -> Data:
    """Return a double well in the first coordinate, a saddle near 0 and its minima beside."""
    k, theta = rng.standard_normal(3) / 2, 0.3 * rng.standard_normal(3)
    saddle = np.zeros(4)
    saddle[1:] = theta
    for _ in range(50):  # Newton's method, to the saddle
        h = np.eye(4)
        h[0, 0] = 3 * saddle[0] ** 2 - 1
        h[0, 1:] = h[1:, 0] = -0.3 * k
        saddle = saddle - np.linalg.solve(h, _well_gradient(saddle, k, theta))
    h[0, 0] = 3 * saddle[0] ** 2 - 1
    _, vectors = np.linalg.eigh(h)
    noise = rng.standard_normal(3)
    x0 = saddle + vectors[:, 1:] @ noise * 0.1 + away * vectors[:, 0]
    guess = saddle.copy()
    if not stays:
        guess = x0.copy()
        for _ in range(3000):
            guess = guess - 0.1 * _well_gradient(guess, k, theta)
    case = {"label": f"away={away:.0e}", "k": k, "theta": theta, "x0": x0, "guess": guess}
    return {**case, **weights(rng, 4, 3)}


def _double_well(algorithm_of):
    def build(data: Data) -> Setup:
        def objective(z, theta):
            u, v = z[0], z[1:]
            well = u**4 / 4 - u**2 / 2 - 0.3 * u * (data["k"] @ v)
            return well + jnp.sum((v - theta) ** 2) / 2

        return Setup(itd.Minimization(objective), algorithm_of(data), data["x0"], data["theta"])

    return build


# Active sets


def active_sets() -> list[Group]:
    """Lasso and box constraints whose support is not settled, or hardly."""

    def lasso_case(rng, penalty, rtol, n=12):
        design = rng.standard_normal((24, n)) @ np.diag(np.logspace(-0.7, 0, n)) / 5
        design /= np.linalg.norm(design, 2)
        target = design @ (rng.standard_normal(n) * (rng.uniform(size=n) < 0.4) * 3)
        target = target + 0.05 * rng.standard_normal(24)
        largest = np.max(np.abs(design.T @ target))
        case = {"label": f"penalty={penalty} rtol={rtol:.0e}", "design": design, "target": target}
        case |= {"theta": np.array([np.log(penalty * largest), 0.1]), "rtol": rtol}
        case |= {"shift": rng.standard_normal(24) / 5, "x0": np.zeros(n)}
        x = np.zeros(n)
        for _ in range(30000):
            gradient = design.T @ (design @ x - target - 0.1 * case["shift"])
            z = x - gradient
            x = np.sign(z) * np.maximum(np.abs(z) - penalty * largest, 0)
        return {**case, "guess": x, **weights(rng, n, 2)}

    def lasso(data: Data) -> Setup:
        def smooth(x, theta):
            gap = data["design"] @ x - data["target"] - theta[1] * data["shift"]
            return gap @ gap / 2

        def prox(x, step, theta):
            return itd.prox.soft_threshold(x, step * jnp.exp(theta[0]))

        problem = itd.CompositeMinimization(smooth, prox)
        return Setup(problem, itd.ProximalGradient(1.0), data["x0"], data["theta"])

    def box_case(rng, condition, rtol, n=10):
        case = quadratic_case(rng, condition, rtol, n)
        case |= {"label": f"kappa={condition:.0e} rtol={rtol:.0e}"}
        h = case["h"] + (case["s"].T * np.exp(case["theta"])) @ case["s"]
        case["b"] = h @ (1.5 * rng.standard_normal(n))  # so that some coordinates stay free
        case["c"] = h @ case["c"] / 5
        slope, x = case["b"] + case["c"] @ case["theta"], np.zeros(n)
        for _ in range(40000):
            x = np.clip(x - 0.8 * (h @ x - slope), -1, 1)
        return {**case, "guess": x}

    def box(data: Data) -> Setup:
        def smooth(x, theta):
            return x @ (hessian(data, theta) @ x) / 2 - (data["b"] + data["c"] @ theta) @ x

        def prox(x, step, theta):
            del step, theta
            return itd.prox.box(x, -1.0, 1.0)

        problem = itd.CompositeMinimization(smooth, prox)
        return Setup(problem, itd.ProximalGradient(0.8), data["x0"], data["theta"])

    def margin_case(rng, margin, away):
        n = 6
        b = rng.uniform(1.5, 3.0, n)
        b[0], b[1] = 1.0 + margin, 1.0 - margin
        solution = np.sign(b) * np.maximum(np.abs(b) - 1, 0)
        case = {"label": f"margin={margin:.0e} away={away:.0e}", "b": b, "theta": np.ones(2)}
        case |= {"guess": solution, "x0": solution + away * rng.uniform(-1, 1, n)}
        return {**case, "w": rng.uniform(0.5, 1.5, n), "v": np.ones(2)}

    def margin(data: Data) -> Setup:
        def smooth(x, theta):
            return jnp.sum((x - theta[0] * data["b"]) ** 2) / 2

        def prox(x, step, theta):
            return itd.prox.soft_threshold(x, step * theta[1])

        problem = itd.CompositeMinimization(smooth, prox, residual_step=0.5)
        return Setup(problem, itd.ProximalGradient(0.5), data["x0"], data["theta"])

    lassos = grid("lasso", lasso_case, (0.5, 0.1, 0.02), (1e-1, 1e-2, 1e-4, 1e-8))
    boxes = grid("box", box_case, (1e1, 1e3), (1e-1, 1e-2, 1e-4, 1e-8))
    margins = grid("margin", margin_case, (1e-2, 1e-4, 1e-6), (1e-1, 1e-3, 1e-5))
    return [
        Group("active sets", "lasso", lasso, lassos, THREE, peer="composite"),
        Group("active sets", "box", box, boxes, BOTH, "jacobian", peer=""),
        Group("active sets", "margin", margin, margins, BOTH, stop=itd.Steps(1)),
    ]


def groups() -> list[Group]:
    """Return these cases."""
    makers = (wrong_residuals, diverging, non_normal, saddles, active_sets)
    return [group for maker in makers for group in maker()]


__all__ = ["generator", "groups"]
