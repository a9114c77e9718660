r"""
Learning step sizes by unrolling: eight steps find Chebyshev's
==============================================================

Which eight step sizes make gradient descent most accurate after eight steps, on quadratics with
eigenvalues between 0.05 and 1? A step size has no influence on the solution, so that its implicit
derivative is zero. ``Unrolled()`` gives the derivative of the iterate. Adam follows it, and arrives
close to the answer that theory has: the reciprocals of the zeros of a Chebyshev polynomial.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array

import iterdiff as itd

jax.config.update("jax_enable_x64", True)
STEPS, LOW, HIGH = 8, 0.05, 1.0


# %%
# An algorithm of our own: each step has its own size.


class Counted(itd.State):
    """The iterate, and the number of steps that led to it."""

    x: Array
    count: Array


class Scheduled(itd.Algorithm):
    """Gradient descent with a list of step sizes."""

    sizes: Array
    accepts: ClassVar[tuple[type[itd.Problem], ...]] = (itd.Minimization,)

    def init(self, problem, x0, theta):
        """Return the state at `x0`."""
        del problem, theta
        return Counted(x0, jnp.zeros((), jnp.int32))

    def step(self, problem, state, theta):
        """Take the next step of the list."""
        move = self.sizes[state.count] * problem.residual(state.x, theta)
        return Counted(state.x - move, state.count + 1)


# %%
# The loss: the worst error over all eigenvalues (a smooth maximum), as a function of the logarithms
# of the step sizes. The unknowns are one for each eigenvalue, and all start at distance one.

eigenvalues = jnp.linspace(LOW, HIGH, 60)
problem = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2) / 2)


def errors(logs):
    run = (problem, Scheduled(jnp.exp(logs)), jnp.ones(60), eigenvalues)
    return itd.solve(*run, stop=itd.Steps(STEPS), mode=itd.Unrolled()).x


def loss(logs, sharpness):
    return jax.nn.logsumexp(sharpness * jnp.log(errors(logs) ** 2 + 1e-12)) / sharpness


adam = optax.adam(optax.cosine_decay_schedule(0.05, 400))


@jax.jit
def step(logs, state, sharpness):
    updates, state = adam.update(jax.grad(loss)(logs, sharpness), state)
    return optax.apply_updates(logs, updates), state


logs = jnp.log(jnp.linspace(1.0, 4.0, STEPS))
for sharpness in (2.0, 8.0, 32.0):
    state = adam.init(logs)
    for _ in range(400):
        logs, state = step(logs, state, sharpness)

# %%
# Chebyshev's step sizes, and the best constant one.

angles = (2 * np.arange(STEPS) + 1) * np.pi / (2 * STEPS)
chebyshev = 2 / ((HIGH + LOW) - (HIGH - LOW) * np.cos(angles))
constant = np.full(STEPS, 2 / (LOW + HIGH))
worst = {
    name: float(jnp.max(jnp.abs(errors(jnp.log(jnp.asarray(sizes))))))
    for name, sizes in {
        "constant": constant,
        "learnt": np.exp(logs),
        "Chebyshev's": chebyshev,
    }.items()
}
print("worst error after eight steps:", {name: round(value, 4) for name, value in worst.items()})
assert worst["learnt"] < 1.1 * worst["Chebyshev's"] and worst["learnt"] < worst["constant"] / 2

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(np.sort(np.exp(logs)), "o", label="learnt")
axes.plot(np.sort(chebyshev), "x", markersize=9, label="Chebyshev's")
axes.plot(constant, ":", label="the best constant one")
axes.set(xlabel="step size, sorted", ylabel="size", yscale="log")
axes.set_title("Learnt step sizes are close to the theoretical optimum")
axes.legend()
plt.show()
