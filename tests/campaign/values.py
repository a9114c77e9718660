"""Extreme values in theta, in x0 and in the coefficients of a problem."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from tests.campaign.call import Call

SCALES = [float(f"1e{k}") for k in range(-320, 309, 40)] + [0.0, -0.0, 5e-324, 1.7e308, -1e-300]
SCALES32 = [float(f"1e{k}") for k in range(-44, 39, 12)] + [0.0, -0.0, 1e-45, 3e38]
NOT_FINITE = {
    "NaN": np.nan,
    "infinity": np.inf,
    "minus infinity": -np.inf,
}
MODES = {
    "implicit": itd.Implicit,
    "unrolled": itd.Unrolled,
    "checked": lambda: itd.Checked(itd.Implicit(), on_failure="raise"),
}
STOP = {"steps": lambda: itd.Steps(40), "residual": lambda: itd.ResidualBelow(1e-9, 0.0, 200)}


def _scaled(mode: str, stop: str, scale: float, dtype: Any) -> Call:
    """Return a solve whose unknown, parameter and residual have the size `scale`."""
    theta = jnp.asarray([scale, -2 * scale], dtype)

    def run() -> Any:
        problem = itd.FixedPoint(lambda x, t: x / 4 + 3 * t)

        def x(t: Any) -> Any:
            made = STOP[stop](), MODES[mode]()
            return itd.solve(
                problem, itd.Picard(), jnp.zeros_like(t), t, stop=made[0], mode=made[1]
            ).x

        return x(theta), jax.jacobian(x)(theta)

    return Call(
        f"size {scale:g} of x and theta / {mode} / {stop} / {np.dtype(dtype).name}",
        run,
        right=lambda: (4 * np.asarray(theta, np.longdouble), 4 * np.eye(2)),
        rtol=1e-4,
    )


def _units(mode: str, scale: float, dtype: Any) -> Call:
    """Return a solve whose residual is in units of `scale`; solution and derivative are not."""
    theta = jnp.asarray([2.0, 3.0], dtype)

    def run() -> Any:
        s = jnp.asarray(scale, dtype)
        problem = itd.RootFinding(lambda x, t: s * (x**2 - t))

        def x(t: Any) -> Any:
            stop = itd.Steps(30)
            return itd.solve(problem, itd.Newton(), t, t, stop=stop, mode=MODES[mode]()).x

        return x(theta), jax.jacobian(x)(theta)

    root = np.sqrt([2.0, 3.0])
    return Call(
        f"residual in units of {scale:g} / {mode} / {np.dtype(dtype).name}",
        run,
        right=(lambda: (root, np.diag(0.5 / root))) if scale else None,
        rtol=1e-4,
    )


def _not_finite(mode: str, where: str, value: float, traced: bool) -> Call:
    """Return a solve in which one number is not finite."""

    def run() -> Any:
        numbers = {"x0": 1.0, "theta": 2.0, "data": 3.0, **{where: value}}
        data = jnp.asarray(numbers["data"])

        def x(x0: Any, t: Any) -> Any:
            problem = itd.CompositeMinimization(
                lambda x, t: data * (x - t) ** 2, lambda x, s, t: itd.prox.nonnegative(x)
            )
            stop = itd.ResidualBelow(1e-9, 1e-9, 100)
            made = MODES[mode]()
            return itd.solve(problem, itd.ProximalGradient(0.1), x0, t, stop=stop, mode=made).x

        f = jax.value_and_grad(x, argnums=1)
        return (jax.jit(f) if traced else f)(numbers["x0"], numbers["theta"])

    return Call(
        f"{value} in {where}{' under jit' if traced else ''} / {mode}",
        run,
        right=lambda: (np.nan, np.nan),
        may_be_nan=True,
    )


def calls() -> Iterator[Call]:
    """Yield solves at every size, and with every number that is not finite."""
    for mode in MODES:
        for stop in STOP if mode != "checked" else ("residual",):
            for scale in SCALES:
                yield _scaled(mode, stop, scale, jnp.float64)
            for scale in SCALES32:
                yield _scaled(mode, stop, scale, jnp.float32)
        for scale in SCALES:
            yield _units(mode, scale, jnp.float64)
        for scale in SCALES32:
            yield _units(mode, scale, jnp.float32)
        for where in ("x0", "theta", "data"):
            for value in NOT_FINITE.values():
                for traced in (False, True):
                    yield _not_finite(mode, where, value, traced)
