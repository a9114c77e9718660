"""Functions of every kind: objectives, residuals, updates, and solvers under the decorator."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import iterdiff as itd
from tests.campaign.call import Call, OwnError

THETA = np.array([0.5, 1.5])
RULE = itd.ResidualBelow(1e-10, 1e-10, 300)


class _Held(eqx.Module):
    """A function that holds data."""

    weight: Any

    def __call__(self, x: Any, t: Any) -> Any:
        return self.weight * (x - t)


class _Bound:
    """An object whose method is the function."""

    def method(self, x: Any, t: Any) -> Any:
        return x - t


@jax.custom_jvp
def _with_jvp(x: Any, t: Any) -> Any:
    return x - t


_with_jvp.defjvp(lambda p, v: (p[0] - p[1], v[0] - v[1]))


@jax.custom_vjp
def _with_vjp(x: Any, t: Any) -> Any:
    return x - t


_with_vjp.defvjp(lambda x, t: (x - t, None), lambda _, g: (g, -g))


def _raises(x: Any, t: Any) -> Any:
    raise OwnError("on purpose")


def _by_callback(x: Any, t: Any) -> Any:
    shape = jax.ShapeDtypeStruct(jnp.shape(x), x.dtype)
    return jax.pure_callback(lambda x, t: np.asarray(x) - np.asarray(t), shape, x, t)


def _by_loop(x: Any, t: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda _, u: (u + x - t) / 2, x - t)


def _by_while(x: Any, t: Any) -> Any:
    return jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, (c[1] + x - t) / 2), (0, x - t)
    )[1]


def _by_branch(x: Any, t: Any) -> Any:
    return x - t if x[0] > -9 else t - x


RESIDUALS: dict[str, Callable[[], Callable]] = {  # the root is theta
    "plain": lambda: lambda x, t: x - t,
    "partial": lambda: functools.partial(lambda s, x, t: s * (x - t), 2.0),
    "partial of an array": lambda: functools.partial(lambda s, x, t: s * (x - t), np.ones(2)),
    "method": lambda: _Bound().method,
    "module": lambda: _Held(jnp.ones(2)),
    "module of NumPy": lambda: _Held(np.ones(2)),
    "jitted": lambda: jax.jit(lambda x, t: x - t),
    "checkpointed": lambda: jax.checkpoint(lambda x, t: x - t),
    "vectorised": lambda: jnp.vectorize(lambda x, t: x - t),
    "gradient": lambda: jax.grad(lambda x, t: jnp.sum((x - t) ** 2) / 2),
    "custom_jvp": lambda: _with_jvp,
    "custom_vjp": lambda: _with_vjp,
    "loop": lambda: _by_loop,
    "while": lambda: _by_while,
    "cond": lambda: lambda x, t: jax.lax.cond(x[0] > 9, lambda: t - x, lambda: x - t),
    "branch on a value": lambda: _by_branch,
    "NumPy inside": lambda: lambda x, t: np.asarray(x) - np.asarray(t),
    "float()": lambda: lambda x, t: x - t * float(x[0]),
    "callback": lambda: _by_callback,
    "raises": lambda: _raises,
    "no arguments": lambda: lambda: 0.0,
    "three arguments": lambda: lambda x, t, data: x - t,
    "returns None": lambda: lambda x, t: None,
    "returns a text": lambda: lambda x, t: "x",
    "returns a tuple": lambda: lambda x, t: (x - t,),
    "returns a scalar": lambda: lambda x, t: jnp.sum(x - t),
    "returns an int": lambda: lambda x, t: jnp.round(x - t).astype(int),
    "returns a complex": lambda: lambda x, t: (x - t) * 1j,
    "returns float32": lambda: lambda x, t: (x - t).astype(jnp.float32),
    "returns a larger array": lambda: lambda x, t: jnp.concatenate([x, t]),
    "returns a list of floats": lambda: lambda x, t: [x[0] - t[0], x[1] - t[1]],
    "returns NaN": lambda: lambda x, t: (x - t) * jnp.nan,
    "returns infinity": lambda: lambda x, t: (x - t) * jnp.inf,
    "returns a constant": lambda: lambda x, t: jnp.ones(2),
    "ignores theta": lambda: lambda x, t: x,
    "ignores x": lambda: lambda x, t: t,
    "without a root": lambda: lambda x, t: x**2 + t**2 + 1,
    "random": lambda: lambda x, t: x - t + np.random.default_rng(0).normal(size=2) * 0,
    "prints": lambda: lambda x, t: (jax.debug.callback(lambda v: None, x[0]), x - t)[1],
    "cached": lambda: functools.lru_cache(lambda x, t: x - t),
    "a class": lambda: dict,
    "a builtin": lambda: max,
    "vmap inside": lambda: lambda x, t: jax.vmap(lambda a, b: a - b)(x, t),
    "sorted": lambda: lambda x, t: jnp.sort(x) - jnp.sort(t),
    "stop_gradient of x": lambda: lambda x, t: jax.lax.stop_gradient(x) - t,
    "stop_gradient of theta": lambda: lambda x, t: x - jax.lax.stop_gradient(t),
}
UNLIKE = {  # these have another solution or derivative; None: it depends on the kind of problem
    "ignores theta": (np.zeros(2), np.zeros((2, 2))),
    "stop_gradient of theta": (THETA, np.zeros((2, 2))),
    "float()": None,
    "returns an int": None,
    "returns a scalar": None,
    "returns a larger array": None,
    "returns a constant": None,
    "sorted": (THETA, np.eye(2)),
}

NOT_DIFFERENTIABLE = (
    "branch on a value",
    "NumPy inside",
    "float()",
    "cached",
    "a builtin",
    "callback",
    "while",
)
"""JAX's own error says why it cannot trace or differentiate such a function, and passes through."""

POSED: dict[str, tuple[Callable, Callable]] = {
    "RootFinding": (itd.RootFinding, itd.Newton),
    "FixedPoint": (
        lambda f: itd.FixedPoint(lambda x, t: jax.tree.map(jnp.subtract, x, f(x, t))),
        itd.Picard,
    ),
    "Minimization": (
        lambda f: itd.Minimization(lambda x, t: jnp.sum(jnp.asarray(f(x, t)) ** 2)),
        lambda: itd.GradientDescent(0.3),
    ),
    "LinearSystem": (
        lambda f: itd.LinearSystem(
            lambda x, t: f(x, 0 * t), lambda t: jax.tree.map(jnp.negative, f(0 * t, t))
        ),
        lambda: itd.Richardson(0.4),
    ),
}


def _residual(posed: str, name: str, way: str) -> Call:
    make, algorithm = POSED[posed]

    def run() -> Any:
        problem = make(RESIDUALS[name]())
        t = jnp.asarray(THETA)
        mode = itd.Unrolled() if way == "unrolled" else None

        def x(t: Any) -> Any:
            if way == "implicit":
                return itd.implicit(problem)(lambda x0, t: t)(t, t)
            return itd.solve(problem, algorithm(), jnp.ones(2), t, stop=RULE, mode=mode).x

        return x(t), jax.jacrev(x)(t)

    expected = UNLIKE.get(name, (THETA, np.eye(2)))
    if name == "ignores x" and posed == "Minimization":
        expected = None  # every point is a minimum
    if name == "stop_gradient of x" and posed == "Minimization":
        expected = None  # the gradient is zero everywhere
    if way == "implicit" and name in ("ignores theta", "without a root"):
        expected = None  # the decorated solver does not solve this problem
    return Call(
        f"{name} / {posed} / {way}",
        run,
        right=None if expected is None else (lambda: expected),
        may_be_nan=name in ("returns NaN", "returns infinity"),
        own=name in NOT_DIFFERENTIABLE,
    )


def _scipy(x0: Any, t: Any) -> Any:
    return scipy.optimize.root(lambda x: x - np.asarray(t), np.asarray(x0))


def _failing(x0: Any, t: Any) -> Any:
    return scipy.optimize.root(lambda x: x**2 + 1 + np.asarray(t), np.asarray(x0))


SOLVERS: dict[str, Callable[[Any, Any], Any]] = {  # the answer is theta
    "traceable": lambda x0, t: t * 1.0,
    "jitted": jax.jit(lambda x0, t: t * 1.0),
    "NumPy": lambda x0, t: np.asarray(t) * 1.0,
    "SciPy": _scipy,
    "SciPy that fails": _failing,
    "list": lambda x0, t: [float(v) for v in t],
    "tuple": lambda x0, t: (t,),
    "None": lambda x0, t: None,
    "text": lambda x0, t: "x",
    "complex": lambda x0, t: np.asarray(t) + 0j,
    "float32": lambda x0, t: np.asarray(t, np.float32),
    "integers": lambda x0, t: np.asarray(np.asarray(t) * 2, int) / 2,
    "big-endian": lambda x0, t: np.asarray(t).astype(">f8"),
    "objects": lambda x0, t: np.asarray(t, object),
    "masked": lambda x0, t: np.ma.array(np.asarray(t)),
    "masked, one missing": lambda x0, t: np.ma.array(np.asarray(t), mask=[True, False]),
    "longer": lambda x0, t: np.ones(3),
    "scalar": lambda x0, t: 1.0,
    "NaN": lambda x0, t: np.full(2, np.nan),
    "infinity": lambda x0, t: np.full(2, np.inf),
    "raises": lambda x0, t: _raises(x0, t),
    "no arguments": lambda: np.ones(2),
    "writes into x0": lambda x0, t: _written(x0, t),
    "returns x0 itself": lambda x0, t: x0,
    "generator": lambda x0, t: (v for v in t),
}
WAYS: dict[str, Callable[[Callable], Callable]] = {
    "eager": lambda x: x,
    "jit": jax.jit,
    "grad of vmap": lambda x: jax.grad(lambda t: jnp.sum(jax.vmap(x)(jnp.stack([t, t])) * t[None])),
}


def _written(x0: Any, t: Any) -> Any:
    x = np.array(x0)
    x[:] = np.asarray(t)
    return x


def _solver(name: str, way: str, throw: bool) -> Call:
    def run() -> Any:
        problem = itd.RootFinding(lambda x, t: x - t)
        solver = itd.implicit(problem, throw=throw)(SOLVERS[name])
        return WAYS[way](lambda t: solver(jnp.ones(2), t))(jnp.asarray(THETA))

    right = lambda: WAYS[way](lambda t: t * 1.0)(jnp.asarray(THETA))  # noqa: E731
    return Call(
        f"solver: {name} / {way}{'' if throw else ' / throw=False'}",
        run,
        right=None if name == "returns x0 itself" else right,
        may_be_nan=not throw,
        own=name == "no arguments",
    )


def calls() -> Iterator[Call]:
    """Yield every function in every kind of problem, and every solver in every way."""
    for name in RESIDUALS:
        for posed in POSED:
            second = {"RootFinding": ("implicit",), "Minimization": ("unrolled",)}
            ways = ("solve", *second.get(posed, ()))
            for way in ways:
                yield _residual(posed, name, way)
    for name in SOLVERS:
        for way in WAYS:
            for throw in (True, False):
                yield _solver(name, way, throw)
