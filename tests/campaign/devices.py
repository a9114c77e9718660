"""Several devices, forced on the CPU: maps over devices, shardings, values on another device."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import iterdiff as itd
from tests.campaign.call import Call

COUNT = 4
FLAGS = (f"--xla_force_host_platform_device_count={COUNT}",)
"""Settings of XLA for the process that makes these calls."""

BATCH = np.linspace(0.5, 2.0, COUNT)

MODES: dict[str, Callable[[], itd.Mode]] = {
    "implicit": itd.Implicit,
    "unrolled": itd.Unrolled,
    "checked": lambda: itd.Checked(itd.Implicit(), on_failure="nan"),
}
STARTS: dict[str, Callable[[Any], Any]] = {
    "constant start": lambda t: jnp.array(0.3),
    "start of theta": lambda t: 0.3 * t,
}
ALGORITHMS: dict[str, Callable[[], itd.Algorithm]] = {
    "descent": lambda: itd.GradientDescent(0.2),
    "Newton": itd.Newton,
}


def _solution(mode: str, start: str, algorithm: str) -> Callable[[Any], Any]:
    """Return theta -> 1 / (1 + theta), the minimiser of (x - 1)^2 + theta x^2."""
    problem = itd.Minimization(lambda x, t: (x - 1) ** 2 + t * x**2)

    def x(t: Any) -> Any:
        return itd.solve(
            problem,
            ALGORITHMS[algorithm](),
            STARTS[start](t),
            t,
            stop=itd.Steps(90),
            mode=MODES[mode](),
        ).x

    return x


def _mesh() -> Any:
    return jax.sharding.Mesh(np.array(jax.devices()), ("d",))


def _shard_map(f: Callable, **options: Any) -> Callable:
    return jax.jit(
        jax.shard_map(jax.vmap(f), mesh=_mesh(), in_specs=P("d"), out_specs=P("d"), **options)
    )


def _sharded(f: Callable) -> Callable:
    def run(batch: Any) -> Any:
        return jax.jit(jax.vmap(f))(jax.device_put(batch, NamedSharding(_mesh(), P("d"))))

    return run


def _elsewhere(f: Callable) -> Callable:
    def run(batch: Any) -> Any:
        return jax.vmap(f)(jax.device_put(batch, jax.devices()[2]))

    return run


WAYS: dict[str, Callable[[Callable], Callable]] = {
    "pmap": jax.pmap,
    "shard_map": _shard_map,
    "shard_map, unchecked": lambda f: _shard_map(f, check_vma=False),
    "sharded batch": _sharded,
    "another device": _elsewhere,
}


def _call(way: str, mode: str, start: str, algorithm: str, derivative: bool) -> Call:
    def run() -> Any:
        x = _solution(mode, start, algorithm)
        return WAYS[way](jax.grad(x) if derivative else x)(jnp.asarray(BATCH))

    what = "grad" if derivative else "value"
    return Call(
        f"{way} / {mode} / {start} / {algorithm} / {what}",
        run,
        right=lambda: -1 / (1 + BATCH) ** 2 if derivative else 1 / (1 + BATCH),
    )


def _vector(way: str, mode: str) -> Call:
    """Return one solve whose unknown is spread over the devices."""

    def run() -> Any:
        problem = itd.Minimization(lambda x, t: jnp.sum((x - jnp.sin(t)) ** 2))
        place = NamedSharding(_mesh(), P("d") if way == "sharded unknown" else P())
        theta = jax.device_put(jnp.asarray(BATCH), place)
        x0 = jax.device_put(jnp.zeros(COUNT), place)

        def total(t: Any) -> Any:
            rule, how = itd.Steps(60), MODES[mode]()
            return jnp.sum(
                itd.solve(problem, itd.GradientDescent(0.3), x0, t, stop=rule, mode=how).x
            )

        return jax.jit(jax.grad(total))(theta)

    return Call(f"{way} / {mode}", run, right=lambda: np.cos(BATCH))


def calls() -> Iterator[Call]:
    """Yield every way of using several devices in every mode."""
    for way in WAYS:
        for mode in MODES:
            for start in STARTS:
                for algorithm in ALGORITHMS:
                    for derivative in (False, True):
                        yield _call(way, mode, start, algorithm, derivative)
    for way in ("sharded unknown", "replicated unknown"):
        for mode in MODES:
            yield _vector(way, mode)
