"""Root findings and linear systems."""

import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from tests.cases.case import Case, Suited, draw, make


def sqrt(dtype: str) -> Case:
    """``x^2 - theta = 0``; ``x* = sqrt(theta)``."""
    array = make(dtype)
    return Case(
        "sqrt",
        itd.RootFinding(lambda x, theta: x**2 - theta),
        x0=array(np.ones(3)),
        theta=array([0.5, 1.3, 2.6]),
        solution=jnp.sqrt,
        jacobian=lambda theta: jnp.diag(1 / (2 * jnp.sqrt(theta))),
        algorithms=(
            Suited(itd.Newton(), 8),
            Suited(itd.Chord(), 90),
            Suited(itd.Broyden(), 30),
        ),
    )


def cubic_scalar(dtype: str) -> Case:
    """``x^3 + x = theta``, by Cardano's formula; ``dx* / dtheta = 1 / (3 x*^2 + 1)``."""
    array = make(dtype)

    def solution(theta):
        root = 3**-0.5
        return 2 * root * jnp.sinh(jnp.arcsinh(theta / (2 * root**3)) / 3)

    return Case(
        "cubic_scalar",
        itd.RootFinding(lambda x, theta: x**3 + x - theta),
        x0=array(1.0),
        theta=array(3.1),
        solution=solution,
        jacobian=lambda theta: 1 / (3 * solution(theta) ** 2 + 1),
        algorithms=(
            Suited(itd.Newton(), 7),
            Suited(itd.Broyden(), 15),
            Suited(itd.Bisection(0.0, 2.0), 55),
        ),
    )


def cubic_tree(dtype: str) -> Case:
    """``y^3 + p y = q`` (solved by Cardano's formula for p > 0) feeding ``w z = y``."""
    array = make(dtype)

    def function(x, theta):
        y = x["inner"]
        return {
            "inner": y**3 + theta["p"] * y - theta["q"],
            "outer": theta["w"] * x["outer"] - y,
        }

    def inner(theta):
        root = jnp.sqrt(theta["p"] / 3)
        return 2 * root * jnp.sinh(jnp.arcsinh(theta["q"] / (2 * root**3)) / 3)

    def solution(theta):
        return {"inner": inner(theta), "outer": inner(theta) / theta["w"]}

    def jacobian(theta):
        y, w = inner(theta), theta["w"]
        slope = 3 * y**2 + theta["p"]
        p, q = -y / slope, 1 / slope
        return {
            "inner": {"p": p, "q": q, "w": jnp.zeros(2, dtype)},
            "outer": {"p": p / w, "q": q / w, "w": jnp.diag(-y / w**2)},
        }

    return Case(
        "cubic_tree",
        itd.RootFinding(function),
        x0={"inner": array(1.0), "outer": array([0.0, 0.0])},
        theta={"p": array(1.2), "q": array(2.0), "w": array([1.5, -2.0])},
        solution=solution,
        jacobian=jacobian,
        algorithms=(Suited(itd.Newton(), 9),),
    )


def spd_system(dtype: str) -> Case:
    """``(L + diag(e^d)) x = b`` with a one-dimensional diffusion operator `L`."""
    array = make(dtype)
    size = 5
    laplacian = array(2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1))

    def matrix(theta):
        return laplacian + jnp.diag(jnp.exp(theta["log_diagonal"]))

    def solution(theta):
        return jnp.linalg.solve(matrix(theta), theta["rhs"])

    def jacobian(theta):
        inverse = jnp.linalg.inv(matrix(theta))
        weighted = jnp.exp(theta["log_diagonal"]) * solution(theta)
        return {"log_diagonal": -inverse * weighted[None, :], "rhs": inverse}

    return Case(
        "spd_system",
        itd.LinearSystem(
            lambda x, theta: laplacian @ x + jnp.exp(theta["log_diagonal"]) * x,
            lambda theta: theta["rhs"],
            positive_definite=True,
        ),
        x0=array(np.zeros(size)),
        theta={"log_diagonal": array(0.3 * draw(6, size)), "rhs": array(draw(7, size))},
        solution=solution,
        jacobian=jacobian,
        algorithms=(
            Suited(itd.Richardson(0.33), 100),
            Suited(itd.Jacobi(), 100),
            Suited(itd.GaussSeidel(), 60),
            Suited(itd.SOR(1.2), 60),
            Suited(itd.Chebyshev(1.1, 5.0), 60),
            Suited(itd.ConjugateGradient(), size),
            Suited(itd.GMRES(3), 25),
        ),
    )


def dominant_system(dtype: str) -> Case:
    """``A x = b``, nonsymmetric and diagonally dominant; all of `A` is a parameter."""
    array = make(dtype)
    size = 4
    matrix = 4 * np.eye(size) + 0.5 * draw(8, size, size)

    def solution(theta):
        return jnp.linalg.solve(theta["matrix"], theta["rhs"])

    def jacobian(theta):
        inverse = jnp.linalg.inv(theta["matrix"])
        return {"matrix": -jnp.einsum("ij,k->ijk", inverse, solution(theta)), "rhs": inverse}

    return Case(
        "dominant_system",
        itd.LinearSystem(lambda x, theta: theta["matrix"] @ x, lambda theta: theta["rhs"]),
        x0=array(np.zeros(size)),
        theta={"matrix": array(matrix), "rhs": array(draw(9, size))},
        solution=solution,
        jacobian=jacobian,
        algorithms=(
            Suited(itd.Richardson(0.25), 60),
            Suited(itd.Jacobi(), 60),
            Suited(itd.GaussSeidel(), 40),
            Suited(itd.GMRES(2), 25),
        ),
    )


def skew_tree_system(dtype: str) -> Case:
    """``k u + g v = r`` and ``k v - g^T u = s``, over a dict; a diagonal plus a skew matrix."""
    array = make(dtype)
    gain = array([0.5, -0.4])

    def operator(x, theta):
        k = theta["k"]
        return {"u": k * x["u"] + gain * x["v"], "v": k * x["v"] - gain @ x["u"]}

    def solution(theta):
        k, r, s = theta["k"], theta["r"], theta["s"]
        v = (k * s + gain @ r) / (k**2 + gain @ gain)
        return {"u": (r - gain * v) / k, "v": v}

    def jacobian(theta):
        k, s = theta["k"], theta["s"]
        x = solution(theta)
        total = k**2 + gain @ gain
        v_k = (s - 2 * k * x["v"]) / total
        return {
            "u": {
                "k": -(x["u"] + gain * v_k) / k,
                "r": (jnp.eye(2, dtype=dtype) - jnp.outer(gain, gain) / total) / k,
                "s": -gain / total,
            },
            "v": {"k": v_k, "r": gain / total, "s": k / total},
        }

    return Case(
        "skew_tree_system",
        itd.LinearSystem(operator, lambda theta: {"u": theta["r"], "v": theta["s"]}),
        x0={"u": array([0.0, 0.0]), "v": array(0.0)},
        theta={"k": array(2.0), "r": array([1.0, 0.5]), "s": array(-0.8)},
        solution=solution,
        jacobian=jacobian,
        algorithms=(Suited(itd.Richardson(0.45), 50), Suited(itd.Jacobi(), 50)),
    )
