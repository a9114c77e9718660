"""Solves inside `jax.shard_map`, which tracks over which mesh axes values vary."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec
import iterdiff as itd

jax.config.update("jax_enable_x64", True)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))

def square(theta):
    stop, mode = itd.Steps(40), itd.Unrolled()
    return jnp.sum(itd.solve(problem, itd.GradientDescent(0.3), jnp.zeros(1), theta,
                             stop=stop, mode=mode, throw=False).x ** 2)

@itd.implicit(itd.RootFinding(lambda x, theta: x - theta**2))
def solver(x0, theta):
    return theta**2

def both(block):
    value, slope = jax.value_and_grad(square)(block[0])
    implicit = jax.grad(lambda theta: jnp.sum(solver(jnp.zeros(1), theta)))(block[0])
    return jnp.stack([slope, value[None], implicit], 1)

def checked(block):
    def final(theta):
        mode = itd.Checked(itd.Implicit(), on_failure="nan")
        run = problem, itd.GradientDescent(0.3), jnp.zeros(1), theta
        return jnp.sum(itd.solve(*run, stop=itd.Steps(40), mode=mode).x ** 2)
    return jax.grad(final)(block[0])[None]

spec = PartitionSpec("d")
try:
    jax.shard_map(checked, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.array([[1.0], [3.0]]))
except ValueError as error:
    assert "`check_vma=False`" in str(error)
else:
    raise AssertionError("it is refused")
advised = jax.shard_map(checked, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
found = jax.jit(advised)(jnp.array([[1.0], [3.0]]))
np.testing.assert_allclose(found, [[2.0], [6.0]], rtol=1e-7)

mapped = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec))
found = mapped(jnp.array([[1.0], [3.0]]))
np.testing.assert_allclose(found, [[2.0, 1.0, 2.0], [6.0, 9.0, 6.0]], rtol=1e-12)
"""


def test_value_and_gradient_on_two_devices():
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "NPROC": "2"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
