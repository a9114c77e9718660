"""Cases whose convergence is slow or whose linear solves are loose or fail.

Every number comes from a generator seeded by the group's name; the grids over conditions and
tolerances are written out. None was chosen by looking at results.
"""

from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
import numpy as np

import iterdiff as itd
from benchmarks.speed.problems import samples
from benchmarks.wrong_derivatives.group import Data, Group, Setup, builder, case, fixed, grid

IMPLICIT = {"implicit": itd.Implicit()}
BOTH = {**IMPLICIT, "unrolled": itd.Unrolled()}
THREE = {**BOTH, "one-step": itd.OneStep()}
FOUR = {**THREE, "refined": itd.Implicit(refine=1)}


def spd(rng: np.random.Generator, n: int, condition: float) -> np.ndarray:
    """Return a matrix of norm 1 with logarithmically spaced eigenvalues."""
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (q * np.logspace(-np.log10(condition), 0, n)) @ q.T


def single(data: Data) -> Data:
    """Return a case whose arrays are float32."""
    return {key: np.asarray(value, "float32") for key, value in data.items()}


# Quadratics: H depends on theta, and does not commute with its derivative.


def quadratic_case(rng: np.random.Generator, kappa: float, rtol: float, n: int = 12) -> Data:
    """Return the data of ``x^T H(theta) x / 2 - (b + C theta)^T x``, H(theta) as in `hessian`."""
    arrays = {
        "h": spd(rng, n, kappa),
        "s": rng.standard_normal((3, n)) / np.sqrt(n * kappa),
        "b": rng.standard_normal(n),
        "c": rng.standard_normal((n, 3)),
        "rtol": rtol,
        "condition": kappa,
    }
    return case(rng, 0.3 * rng.standard_normal(3), np.zeros(n), **arrays)


def hessian(data: Data, theta):
    """Return ``H + sum_i exp(theta_i) s_i s_i^T``."""
    return data["h"] + data["s"].T @ (jnp.exp(theta)[:, None] * data["s"])


def right_side(data: Data, theta):
    """Return ``b + C theta``."""
    return data["b"] + data["c"] @ theta


def quadratic(algorithm_of: Callable[[Data], itd.Algorithm], quartic: float = 0.0) -> Callable:
    """Return the builder of a quadratic, or nearly one, with an algorithm."""

    def problem(data: Data) -> itd.Problem:
        def objective(x, theta):
            bent = quartic * jnp.sum(x**4) / 4
            return x @ (hessian(data, theta) @ x) / 2 - right_side(data, theta) @ x + bent

        return itd.Minimization(objective)

    return builder(problem, algorithm_of)


gradient_descent = fixed(itd.GradientDescent(0.8))
newton = fixed(itd.Newton())


def nesterov(data: Data) -> itd.Algorithm:
    """Return Nesterov's method tuned to the condition."""
    root = jnp.sqrt(data["condition"])
    return itd.Nesterov(0.8, (root - 1) / (root + 1))


def heavy_ball(data: Data) -> itd.Algorithm:
    """Return the heavy ball tuned to a spectrum that is a little larger."""
    root = jnp.sqrt(1 / data["condition"])
    return itd.HeavyBall(4 / (1.2 + root) ** 2, ((1 - root) / (1 + root)) ** 2)


def under_solved() -> list[Group]:
    """Return quadratics and logistic regression whose solver stops early."""
    family = "under-solved"
    rtol = (1e-1, 1e-3, 1e-6)
    wide = grid("gd", quadratic_case, kappa=(1e2, 1e4, 1e6, 1e8), rtol=rtol)
    fast = grid("momentum", quadratic_case, kappa=(1e2, 1e4), rtol=rtol)
    return [
        Group(family, "gd", quadratic(gradient_descent), wide, FOUR, peer="gradient"),
        Group(family, "nesterov", quadratic(nesterov), fast, BOTH, "jacobian"),
        Group(family, "heavy-ball", quadratic(heavy_ball), fast, BOTH, "tangent"),
        logistic_group(),
    ]


def logistic_group() -> Group:
    """Return logistic regression on the breast-cancer data, tuned on held-out samples."""
    features, signs = (np.asarray(part) for part in samples())
    train, held_out = slice(0, None, 2), slice(1, None, 2)

    def fit(x, part):
        return jnp.mean(jnp.logaddexp(0.0, -signs[part] * (features[part] @ x)))

    def objective(x, theta):
        return fit(x, train) + jnp.exp(theta[0]) * jnp.sum(x**2) / 2

    def build(data: Data) -> Setup:
        size = np.linalg.norm(features[train], 2) ** 2 / (4 * len(features[train]))
        algorithm = itd.GradientDescent(1 / (size + 0.1))
        run = itd.Minimization(objective), algorithm, data["x0"], data["theta"]
        return Setup(*run, loss=lambda x, _: fit(x, held_out))

    def maker(rng, penalty, rtol):
        return case(rng, np.array([np.log(penalty)]), np.zeros(30), rtol=rtol)

    penalties, rtol = (1e-1, 1e-2, 1e-3, 1e-4), (1e-1, 1e-2, 1e-3, 1e-5)
    cases = grid("logistic", maker, penalty=penalties, rtol=rtol)
    modes = {**BOTH, "refined": itd.Implicit(refine=1)}
    return Group("under-solved", "logistic", build, cases, modes, "loss", 500, "gradient")


# Equations


def roots() -> list[Group]:
    """Return nonlinear equations whose Newton's method stops after few steps."""

    def maker(rng, bend, away, rtol, n=8):
        a = np.eye(n) + 0.5 * rng.standard_normal((n, n)) / np.sqrt(n)
        root, c = rng.standard_normal(n), rng.standard_normal((n, 3))
        x0 = root + away * rng.standard_normal(n)
        arrays = {"a": a, "bend": bend, "root": root, "c": c, "guess": root, "rtol": rtol}
        return case(rng, np.zeros(3), x0, **arrays)

    def problem(data: Data) -> itd.Problem:
        def left(x):
            return data["a"] @ x + data["bend"] * x**3 / 3

        def function(x, theta):
            return left(x) - left(data["root"]) - jnp.sin(data["c"] @ theta) * (1 + x**2) / 2

        return itd.RootFinding(function)

    cases = grid("newton", maker, bend=(0.1, 1.0), away=(0.1, 1.0), rtol=(0.3, 1e-2, 1e-8))
    build = builder(problem, newton)
    return [Group("under-solved", "newton", build, cases, FOUR, "jacobian", 30, "root")]


def contraction_case(rng, norm: float, rtol: float, n: int = 10) -> Data:
    """Return the data of ``x = tanh(W x + U theta + b)`` with W of this spectral norm."""
    w = rng.standard_normal((n, n))
    w *= norm / np.linalg.norm(w, 2)
    u, b, theta = rng.standard_normal((n, 2)), 0.3 * rng.standard_normal(n), np.zeros(2)
    guess = np.zeros(n)
    for _ in range(5000):
        guess = np.tanh(w @ guess + u @ theta + b)
    arrays = {"weight": w, "u": u, "b": b, "guess": guess, "rtol": rtol}
    return case(rng, theta, np.zeros(n), **arrays)


def tanh_layer(algorithm: itd.Algorithm) -> Callable:
    """Return the builder of an implicit layer."""

    def problem(data: Data) -> itd.Problem:
        return itd.FixedPoint(
            lambda x, theta: jnp.tanh(data["weight"] @ x + data["u"] @ theta + data["b"])
        )

    return builder(problem, fixed(algorithm))


def fixed_points() -> list[Group]:
    """Return implicit layers with too few iterations."""
    rtol = (1e-1, 1e-2, 1e-3, 1e-6)
    cases = grid("picard", contraction_case, norm=(0.5, 0.9, 0.99), rtol=rtol)
    few = grid("anderson", contraction_case, norm=(0.9, 0.99), rtol=(1e-1, 1e-3, 1e-6))
    picard, anderson = tanh_layer(itd.Picard()), tanh_layer(itd.Anderson(3))
    return [
        Group("under-solved", "picard", picard, cases, THREE, peer="fixed_point"),
        Group("under-solved", "anderson", anderson, few, IMPLICIT, "jacobian"),
    ]


# Linear solves of the derivative


def adjoint_solves() -> list[Group]:
    """Return exact solutions whose derivative's linear solve is loose or fails."""

    def build(data: Data) -> Setup:
        problem = itd.LinearSystem(
            lambda x, theta: hessian(data, theta) @ x,
            lambda theta: right_side(data, theta),
            positive_definite=True,
        )

        def solver(x0, theta):
            del x0
            return jnp.linalg.solve(hessian(data, theta), right_side(data, theta))

        return Setup(problem, solver, data["x0"], data["theta"])

    def maker(rng, kappa):
        return quadratic_case(rng, kappa, 0.0, 40)

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
    cases = grid("adjoint", maker, kappa=(1e2, 1e4, 1e5, 1e6, 1e8))
    return [
        Group("loose linear solves", "adjoint", build, cases, loose, peer="linear"),
        Group("failing linear solves", "adjoint-fails", build, cases, failing),
    ]


def ill_conditioned() -> list[Group]:
    """Return ill-conditioned problems solved to float64: only one-step should be flagged."""
    family, stop = "ill-conditioned", itd.Steps(30)
    conditions = (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
    cases = grid("condition", quadratic_case, kappa=conditions, rtol=(1e-13,))
    bent = quadratic(newton, quartic=0.01)
    return [
        Group(family, "convex-newton", bent, cases, THREE, stop=stop),
        Group(family, "convex-jacobian", bent, cases, IMPLICIT, "jacobian", stop),
    ]


def single_precision() -> list[Group]:
    """Return cases in float32, under-solved or solved as accurately as possible."""

    def maker(rng, **point):
        return single(quadratic_case(rng, **point))

    def layer(rng, **point):
        return single(contraction_case(rng, **point))

    conditions = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
    exact = grid("newton32", maker, kappa=conditions, rtol=(1e-6,))
    early = grid("gd32", maker, kappa=conditions[:4], rtol=(1e-1, 1e-3))
    layers = grid("picard32", layer, norm=(0.5, 0.9, 0.99), rtol=(1e-1, 1e-3, 1e-5))
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
