"""What a compiled gradient takes on a number of devices: ``-m benchmarks.devices.one_count``.

The devices are forced: the processor plays all of them, so that bytes and collectives are those of
real ones, and times are not.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import iterdiff as itd

UNKNOWNS = 2**18
STEPS = 100
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
MODES: dict[str, Callable[[], itd.Mode]] = {
    "Implicit()": itd.Implicit,
    "Unrolled()": itd.Unrolled,
    "Checked(Implicit())": lambda: itd.Checked(itd.Implicit(), on_failure="nan"),
}


def objective(x: jax.Array, theta: jax.Array) -> jax.Array:
    """Return a sum over the unknowns, each coupled to the mean of all."""
    return jnp.sum(theta * x**2 / 2 - x) + x.size * jnp.mean(x) ** 2 / 8


def measured(mode: itd.Mode, theta: jax.Array, x0: jax.Array) -> dict[str, float]:
    """Return the bytes and collectives of one device's part of the program, and the error."""
    problem, descent = itd.Minimization(objective), itd.GradientDescent(0.4)

    def total(theta, x0):
        return jnp.sum(itd.solve(problem, descent, x0, theta, stop=itd.Steps(STEPS), mode=mode).x)

    program = jax.jit(jax.grad(total)).lower(theta, x0).compile()
    plan: Any = program.memory_analysis()
    parts = plan.temp_size_in_bytes, plan.argument_size_in_bytes, plan.output_size_in_bytes
    text = str(program.as_text())
    counts = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
    return {"bytes": sum(parts), **counts, "error": _error(program(theta, x0))}


def _error(found: jax.Array) -> float:
    """Return the relative error: the matrix is a diagonal plus one of rank one."""
    theta, n = np.linspace(0.5, 2.0, UNKNOWNS), UNKNOWNS
    inverse = 1 / theta
    ones = inverse / (1 + np.sum(inverse) / (4 * n))  # the solution, and the adjoint of the sum
    exact = -(ones**2)
    return float(np.linalg.norm(np.asarray(found) - exact) / np.linalg.norm(exact))


def main(count: int) -> dict[str, dict[str, float]]:
    """Return what every mode takes on `count` devices."""
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == count
    mesh = jax.make_mesh((count,), ("d",), axis_types=(AxisType.Explicit,))
    place, zeros = NamedSharding(mesh, P("d")), np.zeros(UNKNOWNS)
    theta, x0 = (jax.device_put(v, place) for v in (np.linspace(0.5, 2.0, UNKNOWNS), zeros))
    with jax.set_mesh(mesh):
        return {name: measured(make(), theta, x0) for name, make in MODES.items()}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
