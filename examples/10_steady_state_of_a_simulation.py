r"""
The steady state of a simulation by diffrax, without simulating backwards
=========================================================================

Two genes repress each other (a toggle switch). diffrax simulates until nothing moves. The gradient
of the steady state comes from the equation :math:`f(u, \theta) = 0`: one linear solve with a matrix
of 2 by 2, however long the simulation ran. Differentiating through the simulation gives the same
numbers, at many times the cost.
"""

import time

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd

jax.config.update("jax_enable_x64", True)


def rate(u, theta):
    return jnp.array([theta["a"] / (1 + u[1] ** 2) - u[0], theta["b"] / (1 + u[0] ** 2) - u[1]])


def simulate(u0, theta):
    end = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda _, u, theta: rate(u, theta)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=200.0,
        dt0=0.1,
        y0=u0,
        args=theta,
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-10),
    )
    return end.ys[-1]


steady_state = itd.implicit(itd.RootFinding(rate))(simulate)
u0, theta = jnp.array([2.0, 0.5]), {"a": jnp.array(3.0), "b": jnp.array(2.5)}

# %%
# Both gradients of the first gene's steady level, and their times.


def timed(simulator):
    gradient = jax.jit(jax.grad(lambda theta: simulator(u0, theta)[0]))
    jax.block_until_ready(gradient(theta))  # compiles
    began = time.perf_counter()
    found = jax.block_until_ready(gradient(theta))
    return found, time.perf_counter() - began


(through, seconds), (implicit, fewer) = timed(simulate), timed(steady_state)
print("through the simulation", {name: float(value) for name, value in through.items()})
print("implicit              ", {name: float(value) for name, value in implicit.items()})
print(f"time of a gradient: {1e3 * seconds:.1f} ms through the simulation, {1e3 * fewer:.1f} ms")
assert all(abs(through[name] - implicit[name]) < 1e-6 for name in theta)

# %%
# The level over a, with tangents from the gradient. Below a = 2.5 the start lies on the other side
# of the switch, and the second gene wins: no derivative foresees a jump to another solution.

levels = jnp.linspace(2.0, 5.0, 13)


@jax.jit
@jax.vmap
def both(a):
    return jax.value_and_grad(lambda a: steady_state(u0, theta | {"a": a})[0])(a)


values, slopes = both(levels)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(levels, values, "o", label="steady state")
for a, value, slope in zip(levels, values, slopes, strict=True):
    step = np.array([-0.1, 0.1])
    axes.plot(a + step, value + slope * step, color="#D55E00")
axes.plot([], [], color="#D55E00", label="its derivative")
axes.set(xlabel="production rate a", ylabel="steady level of the first gene")
axes.set_title("Steady states of a simulation, and their implicit derivatives")
axes.legend()
plt.show()
