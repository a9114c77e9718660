"""Solves under JAX's transformations, by every mode, compared with the closed form under the same.

The right value is the transformed closed form of the solution: nothing is derived by hand.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from tests.campaign.call import Call

SEED = 2026
SAMPLE = 160
"""Number of combinations that are drawn of all."""

A = np.array([[3.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 5.0]])
THETA = np.array([0.7, -1.3, 2.1])


class Posed(NamedTuple):
    """A problem with its solution as a function of theta, and algorithms that solve it."""

    problem: Callable[[], itd.Problem]
    solution: Callable[[Any], Any]
    algorithms: dict[str, Callable[[], itd.Algorithm]]


def _soft(x: Any, by: float) -> Any:
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0)


def _matrix(theta: Any) -> Any:
    return jnp.asarray(A, theta.dtype)


POSED = {
    "quadratic": Posed(
        lambda: itd.Minimization(lambda x, t: jnp.sum((x - jnp.sin(t)) ** 2)),
        jnp.sin,
        {
            "descent": lambda: itd.GradientDescent(0.4),
            "heavy ball": lambda: itd.HeavyBall(0.4, 0.1),
            "Nesterov": lambda: itd.Nesterov(0.4, 0.1),
            "Newton": itd.Newton,
            "Chebyshev": lambda: itd.Chebyshev(1.0, 3.0),
        },
    ),
    "root": Posed(
        lambda: itd.RootFinding(lambda x, t: x**3 + x - t - t**3),
        lambda t: t,
        {"Newton": itd.Newton, "Broyden": itd.Broyden, "chord": itd.Chord},
    ),
    "fixed point": Posed(
        lambda: itd.FixedPoint(lambda x, t: x / 3 + jnp.cos(t)),
        lambda t: 1.5 * jnp.cos(t),
        {"Picard": itd.Picard, "Anderson": lambda: itd.Anderson(2), "Newton": itd.Newton},
    ),
    "linear": Posed(
        lambda: itd.LinearSystem(
            lambda x, t: _matrix(t) @ x + t[0] ** 2 * x, lambda t: t, positive_definite=True
        ),
        lambda t: jnp.linalg.solve(_matrix(t) + t[0] ** 2 * jnp.eye(3, dtype=t.dtype), t),
        {
            "Richardson": lambda: itd.Richardson(0.2),
            "Jacobi": itd.Jacobi,
            "Gauss-Seidel": itd.GaussSeidel,
            "SOR": lambda: itd.SOR(1.1),
            "CG": itd.ConjugateGradient,
            "GMRES": lambda: itd.GMRES(3),
        },
    ),
    "lasso": Posed(
        lambda: itd.CompositeMinimization(
            lambda x, t: jnp.sum((x - t) ** 2) / 2,
            lambda x, s, t: itd.prox.soft_threshold(x, s),
        ),
        lambda t: _soft(t, 1.0),
        {"proximal": lambda: itd.ProximalGradient(0.7), "FISTA": lambda: itd.FISTA(0.7)},
    ),
}

MODES = {
    "implicit": itd.Implicit,
    "refined": lambda: itd.Implicit(refine=1),
    "unrolled": itd.Unrolled,
    "unrolled sqrt": lambda: itd.Unrolled(checkpoint="sqrt"),
    "unrolled log": lambda: itd.Unrolled(checkpoint="log"),
    "unrolled none": lambda: itd.Unrolled(checkpoint="none"),
    "unrolled auto": lambda: itd.Unrolled(last="auto"),
    "unrolled last": lambda: itd.Unrolled(last=50),
    "checked": lambda: itd.Checked(itd.Implicit(), on_failure="raise"),
    "checked unrolled": lambda: itd.Checked(itd.Unrolled(), on_failure="nan"),
}

STOPS = {
    "steps": lambda: itd.Steps(60),
    "residual": lambda: itd.ResidualBelow(atol=1e-11, rtol=1e-11, max_steps=400),
}


def _loss(solution: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: jnp.sum(jnp.cos(solution(t)) * jnp.arange(1.0, 4.0, dtype=t.dtype))


def _scan(f: Callable) -> Callable:
    def total(s: Any) -> Any:
        return jax.lax.scan(
            lambda c, k: (c + f(s * k), c), 0 * s[0], jnp.array([0.9, 1.0], s.dtype)
        )[0]

    return jax.grad(total)


def _carried(f: Callable) -> Callable:
    def total(s: Any) -> Any:
        return jnp.sum(jax.lax.fori_loop(0, 2, lambda _, u: s + 0.1 * jnp.tanh(f(u)), s))

    return jax.grad(total)


TRANSFORMS: dict[str, Callable[[Callable], Callable]] = {
    "value": lambda x: x,
    "jit": jax.jit,
    "grad": lambda x: jax.grad(_loss(x)),
    "jit of grad": lambda x: jax.jit(jax.grad(_loss(x))),
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "vmap of grad": lambda x: lambda t: jax.vmap(jax.grad(_loss(x)))(jnp.stack([t, t * 0.9])),
    "jit of vmap of jacfwd": lambda x: jax.jit(
        lambda t: jax.vmap(jax.jacfwd(x))(jnp.stack([t, t * 0.9]))
    ),
    "grad of vmap": lambda x: jax.grad(
        lambda t: jnp.sum(jax.vmap(_loss(x))(jnp.stack([t, t * 0.9])))
    ),
    "map of grad": lambda x: lambda t: jax.lax.map(jax.grad(_loss(x)), jnp.stack([t, t * 0.9])),
    "grad of scan": lambda x: _scan(_loss(x)),
    "grad of a carry": lambda x: _carried(_loss(x)),
    "grad of cond": lambda x: jax.grad(
        lambda t: jax.lax.cond(t[0] > 0, _loss(x), lambda t: jnp.sum(t), t)
    ),
    "grad of checkpoint": lambda x: jax.grad(jax.checkpoint(_loss(x))),
    "hessian": lambda x: jax.hessian(_loss(x)),
    "reverse over reverse": lambda x: jax.grad(lambda t: jnp.sum(jax.grad(_loss(x))(t) ** 2)),
    "hessian in map": lambda x: jax.hessian(
        lambda t: jnp.sum(jax.lax.map(_loss(x), jnp.stack([t, t * 0.9])))
    ),
    "vjp of jvp": lambda x: jax.grad(lambda t: jnp.sum(jax.jvp(x, (t,), (t,))[1])),
    "linearize": lambda x: lambda t: jax.linearize(x, t)[1](t),
    "value_and_grad": lambda x: jax.value_and_grad(_loss(x)),
}

SECOND = ("hessian", "reverse over reverse", "hessian in map", "vjp of jvp", "grad of a carry")
"""Derivatives of second order, which compile longest: a third of them is drawn."""


def _call(parts: tuple[str, ...], dtype: str) -> Call:
    posed, algorithm, mode, stop, transform = parts
    made = POSED[posed]
    theta = jnp.asarray(THETA, dtype)

    def run() -> Any:
        problem, method = made.problem(), made.algorithms[algorithm]()
        rule = STOPS[stop]()
        if dtype == "float32" and stop == "residual":
            rule = itd.ResidualBelow(atol=3e-6, rtol=3e-6, max_steps=400)
        how = MODES[mode]()

        def x(t: Any) -> Any:
            return itd.solve(problem, method, 0 * t + 0.3, t, stop=rule, mode=how).x

        return TRANSFORMS[transform](x)(theta)

    return Call(
        f"{dtype} {' / '.join(parts)}",
        run,
        right=lambda: TRANSFORMS[transform](made.solution)(jnp.asarray(THETA)),
        rtol=1e-5 if dtype == "float64" else 5e-3,
        may_be_nan=mode == "checked unrolled",
    )


def calls() -> Iterator[Call]:
    """Yield the combinations that are drawn."""
    every = [
        (name, algorithm, mode, stop, transform)
        for name, posed in POSED.items()
        for algorithm, mode, stop, transform in itertools.product(
            posed.algorithms, MODES, STOPS, TRANSFORMS
        )
    ]
    draw = random.Random(SEED)
    draw.shuffle(every)
    count = 0
    for parts in every:
        if parts[-1] in SECOND and draw.random() > 1 / 3:
            continue
        yield _call(parts, "float32" if draw.random() < 0.25 else "float64")
        count += 1
        if count == SAMPLE:
            return
