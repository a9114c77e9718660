"""Solves inside `jax.shard_map`, which tracks over which mesh axes values vary, and `jax.pmap`."""

import os
import subprocess
import sys

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec
import iterdiff as itd

jax.config.update("jax_enable_x64", True)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
outside, thetas = jnp.zeros(1), jnp.array([[1.0], [3.0]])
problem = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) - 1))
descent, stop = itd.GradientDescent(0.5), itd.ResidualBelow(1e-9)

def square(theta, mode, x0, stop):
    return jnp.sum(itd.solve(problem, descent, x0, theta, stop=stop, mode=mode).x ** 2)

def mapped(f, **options):
    spec = PartitionSpec("d")
    return jax.jit(jax.shard_map(lambda b: f(b[0])[None], mesh=mesh, in_specs=spec,
                                 out_specs=spec, **options))

solver = itd.implicit(itd.RootFinding(lambda x, theta: jnp.sinh(x - theta)))(lambda x0, theta: theta)
cases = {
    "implicit": lambda theta: square(theta, itd.Implicit(refine=1), jnp.zeros(1), stop),
    "unrolled": lambda theta: square(theta, itd.Unrolled(), jnp.zeros(1), stop),
    "late": lambda theta: square(theta, itd.Unrolled(last=30), outside, stop),
    "closed over": lambda theta: jnp.sum(itd.solve(
        itd.Minimization(lambda x, _: jnp.sum((x - theta) ** 2)), descent, outside, 0.0,
        stop=stop, mode=itd.Unrolled()).x ** 2),
    "decorated": lambda theta: jnp.sum(solver(outside, theta) ** 2),
}
for name in sys.argv[1:]:
    both = jax.value_and_grad(cases[name])
    together = lambda theta: jnp.append(both(theta)[1], both(theta)[0])
    right = np.array([[2.0, 1.0], [6.0, 9.0]])
    for options in ({}, {"check_vma": False}):
        np.testing.assert_allclose(mapped(together, **options)(thetas), right, rtol=1e-6)
    np.testing.assert_allclose(jax.pmap(together)(thetas), right, rtol=1e-6)
"""


def test_values_and_gradients_on_two_devices():
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "NPROC": "2"}
    names = ["implicit", "unrolled", "late", "closed over", "decorated"]
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
