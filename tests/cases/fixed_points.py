"""Fixed points."""

import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from tests.cases.case import Case, Suited, draw, make


def affine_contraction(dtype: str) -> Case:
    """``x = s M x + c``; ``x* = (I - s M)^-1 c``."""
    array = make(dtype)
    size = 4
    raw = draw(10, size, size)
    matrix = array(0.4 * raw / np.abs(np.linalg.eigvals(raw)).max())

    def system(theta):
        return jnp.eye(size, dtype=dtype) - theta["scale"] * matrix

    def solution(theta):
        return jnp.linalg.solve(system(theta), theta["shift"])

    def jacobian(theta):
        inverse = jnp.linalg.inv(system(theta))
        return {"scale": inverse @ matrix @ solution(theta), "shift": inverse}

    return Case(
        "affine_contraction",
        itd.FixedPoint(lambda x, theta: theta["scale"] * (matrix @ x) + theta["shift"]),
        x0=array(np.zeros(size)),
        theta={"scale": array(0.9), "shift": array(draw(11, size))},
        solution=solution,
        jacobian=jacobian,
        algorithms=(
            Suited(itd.Picard(), 60),
            Suited(itd.Picard(0.9), 80),
            Suited(itd.Anderson(5), 20),
        ),
    )


def cosine(dtype: str) -> Case:
    """``x = theta cos(x)``; the derivative is ``cos(x*) / (1 + theta sin(x*))``."""
    array = make(dtype)

    def solution(theta):
        x = jnp.full_like(theta, 0.5)
        for _ in range(6):  # Newton's method, exact to rounding after four
            x = x - (x - theta * jnp.cos(x)) / (1 + theta * jnp.sin(x))
        return x

    def jacobian(theta):
        x = solution(theta)
        return jnp.diag(jnp.cos(x) / (1 + theta * jnp.sin(x)))

    return Case(
        "cosine",
        itd.FixedPoint(lambda x, theta: theta * jnp.cos(x)),
        x0=array(np.zeros(3)),
        theta=array([0.3, 0.55, 0.8]),
        solution=solution,
        jacobian=jacobian,
        algorithms=(Suited(itd.Picard(), 60), Suited(itd.Picard(0.8), 60)),
    )


def babylonian_tree(dtype: str) -> Case:
    """``a = (a + theta / a) / 2``, ``b = b / 2 + a``, over a tuple; ``a* = sqrt(theta)``."""
    array = make(dtype)

    def update(x, theta):
        a, b = x
        return (a + theta / a) / 2, b / 2 + a

    def solution(theta):
        return jnp.sqrt(theta), 2 * jnp.sqrt(theta)

    def jacobian(theta):
        slope = jnp.diag(1 / (2 * jnp.sqrt(theta)))
        return slope, 2 * slope

    return Case(
        "babylonian_tree",
        itd.FixedPoint(update),
        x0=(array([1.0, 1.0]), array([0.0, 0.0])),
        theta=array([0.7, 2.2]),
        solution=solution,
        jacobian=jacobian,
        algorithms=(Suited(itd.Picard(), 60),),
    )
