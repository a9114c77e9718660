"""JAX's settings: precision, promotion, debugging."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd
from tests.campaign.call import Call

THETA = [0.4, 1.1]


def _set(name: str, value: Any) -> Callable[[], contextlib.AbstractContextManager]:
    @contextlib.contextmanager
    def setting() -> Iterator[None]:
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            yield
        finally:
            jax.config.update(name, before)

    return setting


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "float32": lambda: jax.enable_x64(False),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug NaN": lambda: jax.debug_nans(True),
    "debug infinity": lambda: jax.debug_infs(True),
    "checks": lambda: jax.enable_checks(True),
    "leaks": jax.checking_leaks,
    "no jit": jax.disable_jit,
    "matmul in bfloat16": lambda: jax.default_matmul_precision("bfloat16"),
    "highest matmul": lambda: jax.default_matmul_precision("highest"),
    "default device": lambda: jax.default_device(jax.devices()[0]),
    "transfer guard": lambda: jax.transfer_guard("log"),
    "rbg keys": lambda: jax.default_prng_impl("rbg"),
    "32 bits by default": _set("jax_default_dtype_bits", "32"),
    "eager callbacks": _set("jax_cpu_enable_async_dispatch", False),
}


def _descent(mode: Any) -> Callable[[Any], Any]:
    problem = itd.Minimization(lambda x, t: jnp.sum((x - jnp.sin(t)) ** 2))
    return lambda t: (
        itd.solve(
            problem,
            itd.GradientDescent(0.3),
            jnp.zeros(2, t.dtype),
            t,
            stop=itd.Steps(60),
            mode=mode,
        ).x
    )


def _newton(mode: Any) -> Callable[[Any], Any]:
    problem = itd.RootFinding(lambda x, t: x**3 + x - jnp.sin(t) ** 3 - jnp.sin(t))
    rule = itd.ResidualBelow(atol=1e-6, rtol=0.0, max_steps=50)
    return lambda t: (
        itd.solve(problem, itd.Newton(), jnp.zeros(2, t.dtype), t, stop=rule, mode=mode).x
    )


def _decorated(mode: Any) -> Callable[[Any], Any]:
    del mode
    problem = itd.RootFinding(lambda x, t: x - jnp.sin(t))
    solver = itd.implicit(problem)(lambda x0, t: np.sin(np.asarray(t)))
    return lambda t: solver(0 * t, t)


MAPS: dict[str, Callable[[Any], Callable]] = {
    "descent": _descent,
    "Newton": _newton,
    "decorated": _decorated,
}
MODES: dict[str, Callable[[], itd.Mode]] = {
    "unrolled": itd.Unrolled,
    "checked": lambda: itd.Checked(itd.Implicit(), on_failure="raise"),
}
WAYS: dict[str, Callable[[Callable], Callable]] = {
    "value and grad": lambda x: jax.value_and_grad(lambda t: jnp.sum(x(t))),
    "jit of jacfwd": lambda x: jax.jit(jax.jacfwd(x)),
}


def _call(setting: str, which: str, mode: str, way: str) -> Call:
    def run() -> Any:
        with SETTINGS[setting]():
            theta = jnp.asarray(THETA, jnp.result_type(float))
            return jax.block_until_ready(
                WAYS[way](MAPS[which](MODES.get(mode, itd.Implicit)()))(theta)
            )

    short = setting in ("float32", "matmul in bfloat16", "32 bits by default")
    return Call(
        f"{setting} / {which} / {mode} / {way}",
        run,
        right=lambda: WAYS[way](jnp.sin)(jnp.asarray(THETA)),
        rtol=1e-2 if short else 1e-5,
    )


def _function_with_report() -> Any:
    problem = itd.Minimization(lambda x, t: jnp.sum((x - jnp.sin(t)) ** 2))

    def loss(t: Any, report: Any) -> Any:
        mode = itd.Checked(itd.Implicit(), report=report, on_failure="nan")
        return jnp.sum(
            itd.solve(
                problem, itd.GradientDescent(0.3), jnp.zeros(2), t, stop=itd.Steps(60), mode=mode
            ).x
        )

    return itd.value_and_grad_with_report(loss)(jnp.asarray(THETA))[1]


BEYOND_JAX = {("checks", "Newton", "unrolled", "jit of jacfwd")}
"""Before JAX 0.12, its own checks fail on a batched `cond` in a checkpointed scan."""


def calls() -> Iterator[Call]:
    """Yield every map, mode and derivative under every setting."""
    for setting in SETTINGS:
        for which in MAPS:
            for mode in MODES if which != "decorated" else ("implicit",):
                for way in WAYS:
                    if (setting, which, mode, way) not in BEYOND_JAX:
                        yield _call(setting, which, mode, way)
    yield Call("a report", _function_with_report, right=lambda: np.cos(THETA))
