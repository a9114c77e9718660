"""Minimisations, smooth and composite."""

import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from tests.cases.case import Case, Suited, draw, make


def scalar_quadratic(dtype: str) -> Case:
    """``f = a x^2 / 2 - b x``; ``x* = b / a``."""
    array = make(dtype)

    def objective(x, theta):
        return theta["curvature"] * x**2 / 2 - theta["slope"] * x

    def jacobian(theta):
        a, b = theta["curvature"], theta["slope"]
        return {"curvature": -b / a**2, "slope": 1 / a}

    return Case(
        "scalar_quadratic",
        itd.Minimization(objective),
        x0=array(0.5),
        theta={"curvature": array(1.6), "slope": array(0.7)},
        solution=lambda theta: theta["slope"] / theta["curvature"],
        jacobian=jacobian,
        algorithms=(Suited(itd.GradientDescent(0.4), 50), Suited(itd.Newton(), 2)),
    )


def matrix_quadratic(dtype: str) -> Case:
    """``f = x^T H x / 2 - b^T x`` with ``H = (M + M^T) / 2``; ``x* = H^-1 b``."""
    array = make(dtype)
    matrix = np.diag([1.0, 2.0, 3.0, 4.0]) + 0.1 * draw(1, 4, 4)

    def hessian(theta):
        return (theta["matrix"] + theta["matrix"].T) / 2

    def objective(x, theta):
        return x @ hessian(theta) @ x / 2 - theta["vector"] @ x

    def solution(theta):
        return jnp.linalg.solve(hessian(theta), theta["vector"])

    def jacobian(theta):
        inverse, x = jnp.linalg.inv(hessian(theta)), solution(theta)
        once = jnp.einsum("ij,k->ijk", inverse, x)
        return {"matrix": -(once + jnp.swapaxes(once, 1, 2)) / 2, "vector": inverse}

    return Case(
        "matrix_quadratic",
        itd.Minimization(objective),
        x0=array(draw(2, 4)),
        theta={"matrix": array(matrix), "vector": array(draw(3, 4))},
        solution=solution,
        jacobian=jacobian,
        algorithms=(
            Suited(itd.GradientDescent(0.39), 90),
            Suited(itd.HeavyBall(0.44, 0.11), 60),
            Suited(itd.Nesterov(0.24, 0.35), 80),
            Suited(itd.Chebyshev(1.0, 4.1), 50),
            Suited(itd.Sobolev(1.0, 4.1), 50),
            Suited(itd.Newton(), 2),
        ),
    )


def ridge(dtype: str) -> Case:
    """Least squares with one log-penalty a feature; ``x* = (D^T D / m + e^theta)^-1 D^T y / m``."""
    array = make(dtype)
    data, targets = array(draw(4, 12, 3)), array(3 * draw(5, 12))
    samples = data.shape[0]

    def objective(x, theta):
        misfit = data @ x - targets
        return misfit @ misfit / (2 * samples) + jnp.exp(theta) @ x**2 / 2

    def hessian(theta):
        return data.T @ data / samples + jnp.diag(jnp.exp(theta))

    def solution(theta):
        return jnp.linalg.solve(hessian(theta), data.T @ targets / samples)

    def jacobian(theta):
        weighted = jnp.exp(theta) * solution(theta)
        return -jnp.linalg.inv(hessian(theta)) * weighted[None, :]

    return Case(
        "ridge",
        itd.Minimization(objective),
        x0=array(np.zeros(3)),
        theta=array([-0.5, 0.0, 0.3]),
        solution=solution,
        jacobian=jacobian,
        algorithms=(Suited(itd.GradientDescent(0.5), 90), Suited(itd.Newton(), 2)),
    )


def poisson(dtype: str) -> Case:
    """``f = sum(e^x - theta x)``, whose Hessian is not constant; ``x* = log(theta)``."""
    array = make(dtype)

    def objective(x, theta):
        return jnp.sum(jnp.exp(x)) - theta @ x

    return Case(
        "poisson",
        itd.Minimization(objective),
        x0=array(np.zeros(3)),
        theta=array([0.6, 1.1, 1.9]),
        solution=jnp.log,
        jacobian=lambda theta: jnp.diag(1 / theta),
        algorithms=(
            Suited(itd.GradientDescent(0.8), 70),
            Suited(itd.Nesterov(0.5, 0.2), 80),
            Suited(itd.Newton(), 8),
        ),
    )


def coupled_tree(dtype: str) -> Case:
    """``f = s |a|^2 / 2 - u^T a + cosh(b - c^T a)``, over a dict.

    ``a* = u / s`` and ``b* = c^T u / s``.
    """
    array = make(dtype)
    coupling = array([0.5, -0.3])

    def objective(x, theta):
        quadratic = theta["scale"] * (x["a"] @ x["a"]) / 2 - theta["shift"] @ x["a"]
        return quadratic + jnp.cosh(x["b"] - coupling @ x["a"])

    def solution(theta):
        a = theta["shift"] / theta["scale"]
        return {"a": a, "b": coupling @ a}

    def jacobian(theta):
        a, scale = solution(theta)["a"], theta["scale"]
        return {
            "a": {"shift": jnp.eye(2, dtype=dtype) / scale, "scale": -a / scale},
            "b": {"shift": coupling / scale, "scale": -(coupling @ a) / scale},
        }

    return Case(
        "coupled_tree",
        itd.Minimization(objective),
        x0={"a": array([0.2, 0.1]), "b": array(0.4)},
        theta={"shift": array([1.0, -0.5]), "scale": array(1.5)},
        solution=solution,
        jacobian=jacobian,
        algorithms=(
            Suited(itd.GradientDescent(0.7), 80),
            Suited(itd.HeavyBall(0.7, 0.1), 80),
            Suited(itd.Newton(), 8),
        ),
    )


def log_regression(dtype: str) -> Case:
    """Least squares of ``M exp(x) - b`` with residuals left over; ``x* = log(M^+ b)``."""
    array = make(dtype)
    matrix = np.array([[1.0, 0.2], [0.3, 1.0], [0.5, 0.5], [0.1, 0.9]])
    inverse = np.linalg.pinv(matrix)
    targets = matrix @ np.array([0.8, 1.3]) + 0.1 * draw(21, 4)

    def solution(theta):
        return {"log": jnp.log(array(inverse) @ theta)}

    def jacobian(theta):
        return {"log": array(inverse) / (array(inverse) @ theta)[:, None]}

    return Case(
        "log_regression",
        itd.LeastSquares(lambda x, theta: array(matrix) @ jnp.exp(x["log"]) - theta),
        x0={"log": array(np.zeros(2))},
        theta=array(targets),
        solution=solution,
        jacobian=jacobian,
        algorithms=(Suited(itd.GaussNewton(), 8), Suited(itd.LevenbergMarquardt(), 10)),
    )


def quadratic_program(dtype: str) -> Case:
    """``x^T Q x / 2 - b^T x`` with ``sum(x) = 1`` and ``x_2 <= 0.2``, which is active."""
    array = make(dtype)
    hessian = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, 0.2], [0.1, 0.2, 1.0]])
    rows = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    kkt = np.block([[hessian, rows.T], [rows, np.zeros((2, 2))]])

    def unknowns(vector):
        return itd.PrimalDual(vector[:3], itd.Multipliers(vector[3:4], vector[4:5]))

    def solution(theta):
        known = jnp.concatenate([theta, array([1.0, 0.2])])
        return unknowns(array(np.linalg.inv(kkt)) @ known)

    def jacobian(theta):
        del theta
        return unknowns(array(np.linalg.inv(kkt)[:, :3]))

    def objective(x, theta):
        return x @ array(hessian) @ x / 2 - theta @ x

    return Case(
        "quadratic_program",
        itd.QuadraticProgram(
            array(hessian),
            lambda theta: -theta,
            array(rows[:1]),
            array([1.0]),
            array(rows[1:]),
            array([0.2]),
        ),
        x0=unknowns(array(np.zeros(5))),
        theta=array([0.9, 0.8, 1.6]),
        solution=solution,
        jacobian=jacobian,
        algorithms=(
            Suited(itd.ADMM(penalty=0.3, iterations=2), 400),
            Suited(itd.AugmentedLagrangian(itd.Newton()), 25),
        ),
    )


def lasso(dtype: str) -> Case:
    """Least squares with orthonormal columns and an l1 penalty: ``x* = S(D^T y, penalty)``."""
    array = make(dtype)
    data = array(np.linalg.qr(draw(12, 7, 4))[0])
    correlations = np.array([1.4, -0.9, 0.2, -0.1])
    targets = array(data @ array(correlations))

    def smooth(x, theta):
        misfit = data @ x - theta["targets"]
        return misfit @ misfit / 2

    def shrink(z, by):
        return jnp.sign(z) * jnp.maximum(jnp.abs(z) - by, 0)

    def jacobian(theta):
        z = data.T @ theta["targets"]
        support = (jnp.abs(z) > theta["penalty"]).astype(dtype)
        return {"penalty": -jnp.sign(z) * support, "targets": support[:, None] * data.T}

    return Case(
        "lasso",
        itd.CompositeMinimization(
            smooth,
            lambda x, step_size, theta: shrink(x, step_size * theta["penalty"]),
            penalty=lambda x, theta: theta["penalty"] * jnp.sum(jnp.abs(x)),
        ),
        x0=array(np.zeros(4)),
        theta={"penalty": array(0.5), "targets": targets},
        solution=lambda theta: shrink(data.T @ theta["targets"], theta["penalty"]),
        jacobian=jacobian,
        algorithms=(Suited(itd.ProximalGradient(0.6), 50), Suited(itd.FISTA(0.6), 150)),
    )


def nonnegative_tree(dtype: str) -> Case:
    """``sum(d p^2 / 2 - b p) + (free - mean(p))^2 / 2`` over ``p >= 0`` and an unbounded ``free``.

    ``p* = max(b, 0) / d`` and ``free* = mean(p*)``, which makes the second term zero.
    """
    array = make(dtype)

    def smooth(x, theta):
        p = x["positive"]
        follow = x["free"] - jnp.mean(p)
        return jnp.sum(theta["d"] * p**2 / 2 - theta["b"] * p) + follow**2 / 2

    def prox(x, step_size, theta):
        del step_size, theta
        return {"free": x["free"], "positive": jnp.maximum(x["positive"], 0)}

    def solution(theta):
        p = jnp.maximum(theta["b"], 0) / theta["d"]
        return {"free": jnp.mean(p), "positive": p}

    def jacobian(theta):
        d, p = theta["d"], solution(theta)["positive"]
        by_b = jnp.where(p > 0, 1 / d, 0)
        by_d = -p / d
        return {
            "free": {"b": by_b / d.size, "d": by_d / d.size},
            "positive": {"b": jnp.diag(by_b), "d": jnp.diag(by_d)},
        }

    return Case(
        "nonnegative_tree",
        itd.CompositeMinimization(smooth, prox, residual_step=0.5),
        x0={"free": array(0.0), "positive": array(np.ones(3))},
        theta={"b": array([0.8, -0.6, 1.1]), "d": array([1.5, 1.0, 0.8])},
        solution=solution,
        jacobian=jacobian,
        algorithms=(Suited(itd.ProximalGradient(0.7), 80),),
    )
