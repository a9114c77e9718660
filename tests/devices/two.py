"""One of two processes that solve together: ``python -m tests.devices.two ADDRESS NUMBER``."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import iterdiff as itd

THETA = np.linspace(0.5, 2.0, 16)


def slopes(theta: jax.Array, x0: jax.Array) -> list[jax.Array]:
    """Return the gradients of the sum of squares of 1 / theta, by both modes."""
    problem = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2 / 2 - x))
    stop = itd.ResidualBelow(1e-12, max_steps=200)
    free = itd.DenseOrKrylov(matrix_free=True)

    def total(theta, mode):
        run = problem, itd.GradientDescent(0.5), x0, theta
        return jnp.sum(itd.solve(*run, stop=stop, mode=mode).x ** 2)

    return [jax.grad(total)(theta, mode) for mode in (itd.Implicit(free), itd.Unrolled())]


def main(address: str, number: int) -> None:
    """Solve with an unknown that is spread over both processes; check the own parts."""
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    mesh = jax.make_mesh((jax.device_count(),), ("d",))
    place = NamedSharding(mesh, P("d"))
    theta, x0 = (
        jax.make_array_from_callback(v.shape, place, lambda part, v=v: v[part])
        for v in (THETA, 0 * THETA)
    )
    assert not theta.is_fully_addressable
    with jax.set_mesh(mesh):
        found = jax.jit(slopes)(theta, x0)
    for slope in found:
        for part in slope.addressable_shards:
            np.testing.assert_allclose(part.data, -2 / THETA[part.index] ** 3, rtol=1e-8)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
