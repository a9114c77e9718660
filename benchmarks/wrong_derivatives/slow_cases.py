"""Cases of `wrong_derivatives`: convergence that is slow, loose, or in vain.

Every number is drawn from a generator seeded by the group's name; the grids over conditions and
tolerances are written out. None was chosen by looking at results.
"""

import itertools
import zlib

import jax.numpy as jnp
import lineax as lx
import numpy as np

import iterdiff as itd
from benchmarks.wrong_base import Data, Group, Setup

IMPLICIT = {"implicit": itd.Implicit()}
BOTH = {**IMPLICIT, "unrolled": itd.Unrolled()}
THREE = {**BOTH, "one-step": itd.OneStep()}
FOUR = {**THREE, "refined": itd.Implicit(refine=1)}


def generator(name: str) -> np.random.Generator:
    """Return the random numbers of a group."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def orthogonal(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return a random orthogonal matrix."""
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def spd(rng: np.random.Generator, n: int, condition: float) -> np.ndarray:
    """Return a matrix of norm 1 with logarithmically spaced eigenvalues."""
    q = orthogonal(rng, n)
    return (q * np.logspace(-np.log10(condition), 0, n)) @ q.T


def weights(rng: np.random.Generator, n: int, p: int) -> Data:
    """Return a cotangent and a tangent."""
    return {"w": rng.standard_normal(n), "v": rng.standard_normal(p)}


def cast(case: Data, dtype: str) -> Data:
    """Return the case's arrays in another precision."""
    return {
        key: value if key == "label" else np.asarray(value, dtype) for key, value in case.items()
    }


# Quadratics: H moves with theta, and does not commute with its derivative.


def quadratic_case(rng: np.random.Generator, condition: float, rtol: float, n: int = 12) -> Data:
    """Return the data of ``x^T H(theta) x / 2 - (b + C theta)^T x``, H(theta) as in `hessian`."""
    return {
        "label": f"kappa={condition:.0e} rtol={rtol:.0e}",
        "h": spd(rng, n, condition),
        "s": rng.standard_normal((3, n)) / np.sqrt(n * condition),
        "b": rng.standard_normal(n),
        "c": rng.standard_normal((n, 3)),
        "theta": 0.3 * rng.standard_normal(3),
        "x0": np.zeros(n),
        "guess": np.zeros(n),
        "rtol": rtol,
        "condition": condition,
        **weights(rng, n, 3),
    }


def hessian(data: Data, theta):
    """Return ``H + sum_i exp(theta_i) s_i s_i^T``."""
    return data["h"] + data["s"].T @ (jnp.exp(theta)[:, None] * data["s"])


def quadratic(algorithm_of, quartic: float = 0.0):
    """Return the builder of a quadratic (or nearly so) with an algorithm."""

    def build(data: Data) -> Setup:
        def objective(x, theta):
            slope = data["b"] + data["c"] @ theta
            return x @ (hessian(data, theta) @ x) / 2 - slope @ x + quartic * jnp.sum(x**4) / 4

        return Setup(itd.Minimization(objective), algorithm_of(data), data["x0"], data["theta"])

    return build


def gradient_descent(data: Data) -> itd.Algorithm:
    """Return gradient descent at a safe step."""
    del data
    return itd.GradientDescent(0.8)


def nesterov(data: Data) -> itd.Algorithm:
    """Return Nesterov's method tuned to the condition."""
    root = jnp.sqrt(data["condition"])
    return itd.Nesterov(0.8, (root - 1) / (root + 1))


def heavy_ball(data: Data) -> itd.Algorithm:
    """Return the heavy ball tuned to a spectrum a little larger."""
    root = jnp.sqrt(1 / data["condition"])
    return itd.HeavyBall(4 / (1.2 + root) ** 2, ((1 - root) / (1 + root)) ** 2)


def newton(data: Data) -> itd.Algorithm:
    """Return Newton's method."""
    del data
    return itd.Newton()


def grid(name: str, maker, *axes) -> list[Data]:
    """Return a case for every point of a grid, all drawn from the group's generator."""
    rng = generator(name)
    return [maker(rng, *point) for point in itertools.product(*axes)]


def under_solved() -> list[Group]:
    """Quadratics and logistic regression whose solver stops early."""
    wide = grid("gd", quadratic_case, (1e2, 1e4, 1e6, 1e8), (1e-1, 1e-3, 1e-6))
    fast = grid("momentum", quadratic_case, (1e2, 1e4), (1e-1, 1e-3, 1e-6))
    return [
        Group("under-solved", "gd", quadratic(gradient_descent), wide, FOUR, peer="gradient"),
        Group("under-solved", "nesterov", quadratic(nesterov), fast, BOTH, "jacobian"),
        Group("under-solved", "heavy-ball", quadratic(heavy_ball), fast, BOTH, "tangent"),
        logistic_group(),
    ]


def logistic_group() -> Group:
    """Logistic regression on breast-cancer data, its penalty tuned on held-out samples."""
    from benchmarks.gradients import data as samples

    features, signs = (np.asarray(part) for part in samples())

    def build(data: Data) -> Setup:
        def fit(x, of):
            return jnp.mean(jnp.logaddexp(0.0, -signs[of] * (features[of] @ x)))

        def objective(x, theta):
            return fit(x, slice(0, None, 2)) + jnp.exp(theta[0]) * jnp.sum(x**2) / 2

        def loss(x, theta):
            del theta
            return fit(x, slice(1, None, 2))

        size = np.linalg.norm(features[::2], 2) ** 2 / (4 * len(features[::2]))
        algorithm = itd.GradientDescent(1 / (size + 0.1))
        problem = itd.Minimization(objective)
        return Setup(problem, algorithm, data["x0"], data["theta"], loss=loss)

    cases = [
        {
            "label": f"penalty={penalty:.0e} rtol={rtol:.0e}",
            "theta": np.array([np.log(penalty)]),
            "x0": np.zeros(30),
            "guess": np.zeros(30),
            "rtol": rtol,
        }
        for penalty in (1e-1, 1e-2, 1e-3, 1e-4)
        for rtol in (1e-1, 1e-2, 1e-3, 1e-5)
    ]
    modes = {**BOTH, "refined": itd.Implicit(refine=1)}
    return Group("under-solved", "logistic", build, cases, modes, "loss", 500, "gradient")


# Equations


def roots() -> list[Group]:
    """Nonlinear equations by Newton's method, stopped after few steps."""

    def maker(rng, bend, away, rtol):
        n = 8
        a = np.eye(n) + 0.5 * rng.standard_normal((n, n)) / np.sqrt(n)
        root = rng.standard_normal(n)
        return {
            "label": f"bend={bend} away={away} rtol={rtol:.0e}",
            "a": a,
            "bend": bend,
            "root": root,
            "c": rng.standard_normal((n, 3)),
            "theta": np.zeros(3),
            "x0": root + away * rng.standard_normal(n),
            "guess": root,
            "rtol": rtol,
            **weights(rng, n, 3),
        }

    def build(data: Data) -> Setup:
        def function(x, theta):
            def left(x):
                return data["a"] @ x + data["bend"] * x**3 / 3

            return left(x) - left(data["root"]) - jnp.sin(data["c"] @ theta) * (1 + x**2) / 2

        return Setup(itd.RootFinding(function), itd.Newton(), data["x0"], data["theta"])

    cases = grid("newton", maker, (0.1, 1.0), (0.1, 1.0), (0.3, 1e-2, 1e-8))
    return [Group("under-solved", "newton", build, cases, FOUR, "jacobian", 30, "root")]


def contraction_case(rng, norm: float, rtol: float, n: int = 10) -> Data:
    """Return the data of ``x = tanh(W x + U theta + b)`` with W of this spectral norm."""
    w = rng.standard_normal((n, n))
    w *= norm / np.linalg.norm(w, 2)
    u, b, theta = rng.standard_normal((n, 2)), 0.3 * rng.standard_normal(n), np.zeros(2)
    guess = np.zeros(n)
    for _ in range(5000):
        guess = np.tanh(w @ guess + u @ theta + b)
    return {
        "label": f"norm={norm} rtol={rtol:.0e}",
        "weight": w,
        "u": u,
        "b": b,
        "theta": theta,
        "x0": np.zeros(n),
        "guess": guess,
        "rtol": rtol,
        **weights(rng, n, 2),
    }


def tanh_layer(algorithm: itd.Algorithm):
    """Return the builder of an implicit layer."""

    def build(data: Data) -> Setup:
        def update(x, theta):
            return jnp.tanh(data["weight"] @ x + data["u"] @ theta + data["b"])

        return Setup(itd.FixedPoint(update), algorithm, data["x0"], data["theta"])

    return build


def fixed_points() -> list[Group]:
    """Implicit layers, iterated too little."""
    cases = grid("picard", contraction_case, (0.5, 0.9, 0.99), (1e-1, 1e-2, 1e-3, 1e-6))
    few = grid("anderson", contraction_case, (0.9, 0.99), (1e-1, 1e-3, 1e-6))
    picard, anderson = tanh_layer(itd.Picard()), tanh_layer(itd.Anderson(3))
    return [
        Group("under-solved", "picard", picard, cases, THREE, peer="fixed_point"),
        Group("under-solved", "anderson", anderson, few, IMPLICIT, "jacobian"),
    ]


# Linear solves behind the derivative


def adjoint_solves() -> list[Group]:
    """Exact solutions whose derivative's linear solve is loose, or fails."""
    conditions = (1e2, 1e4, 1e5, 1e6, 1e8)

    def build(data: Data) -> Setup:
        problem = itd.LinearSystem(
            lambda x, theta: hessian(data, theta) @ x,
            lambda theta: data["b"] + data["c"] @ theta,
            positive_definite=True,
        )

        def solver(x0, theta):
            del x0
            return jnp.linalg.solve(hessian(data, theta), data["b"] + data["c"] @ theta)

        return Setup(problem, solver, data["x0"], data["theta"])

    def maker(rng, condition):
        return {**quadratic_case(rng, condition, 0.0, 40), "label": f"kappa={condition:.0e}"}

    loose = {
        "CG(1e-2)": itd.Implicit(lx.CG(1e-2, 1e-2)),
        "CG(1e-4)": itd.Implicit(lx.CG(1e-4, 1e-4)),
        "CG(1e-8)": itd.Implicit(lx.CG(1e-8, 1e-8)),
        "GMRES(1e-2)": itd.Implicit(lx.GMRES(1e-2, 1e-2)),
        "default": itd.Implicit(),
    }
    failing = {
        "CG, 5 steps": itd.Implicit(lx.CG(1e-10, 1e-10, max_steps=5)),
        "GMRES, 4 steps": itd.Implicit(lx.GMRES(1e-6, 1e-6, max_steps=4, restart=4)),
    }
    cases = grid("adjoint", maker, conditions)
    return [
        Group("loose linear solves", "adjoint", build, cases, loose, peer="linear"),
        Group("failing linear solves", "adjoint-fails", build, cases, failing),
    ]


def ill_conditioned() -> list[Group]:
    """Solutions as exact as float64 has them, at bad conditions: nothing to flag but one-step."""
    conditions = (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
    cases = grid("condition", quadratic_case, conditions, (1e-13,))
    bent = quadratic(newton, quartic=0.01)
    return [
        Group("ill-conditioned", "convex-newton", bent, cases, THREE, stop=itd.Steps(30)),
        Group(
            "ill-conditioned", "convex-jacobian", bent, cases, IMPLICIT, "jacobian", itd.Steps(30)
        ),
    ]


def single_precision() -> list[Group]:
    """float32, under-solved and solved as well as it goes."""

    def maker(rng, condition, rtol):
        return cast(quadratic_case(rng, condition, rtol), "float32")

    def layer(rng, norm, rtol):
        return cast(contraction_case(rng, norm, rtol), "float32")

    conditions = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
    exact = grid("newton32", maker, conditions, (1e-6,))
    early = grid("gd32", maker, conditions[:4], (1e-1, 1e-3))
    layers = grid("picard32", layer, (0.5, 0.9, 0.99), (1e-1, 1e-3, 1e-5))
    bent = quadratic(newton, quartic=0.01)
    return [
        Group("float32", "newton32", bent, exact, BOTH, stop=itd.Steps(30)),
        Group("float32", "gd32", quadratic(gradient_descent), early, BOTH, "jacobian"),
        Group("float32", "picard32", tanh_layer(itd.Picard()), layers, THREE),
    ]


def groups() -> list[Group]:
    """Return these cases."""
    makers = (under_solved, roots, fixed_points, adjoint_solves, ill_conditioned, single_precision)
    return [group for maker in makers for group in maker()]
