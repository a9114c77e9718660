r"""
Quickstart: differentiate a solver in two ways, and see how wrong each is
=========================================================================

We tune the penalty of a ridge regression. The weights minimise
:math:`\|Z w - y\|^2 / (2m) + e^\theta \|w\|^2 / 2`, and we need the gradient of the validation
loss in :math:`\theta`, the *hypergradient*. The argument ``mode`` chooses how to differentiate the
solver; ``trace`` shows the error of each mode at every iteration.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# The problem and an algorithm for it.

keys = jax.random.split(jax.random.key(0), 3)
scales = jnp.broadcast_to(jnp.linspace(0.1, 1.0, 8), (2, 40, 8))
Z, Z_other = jax.random.normal(keys[0], (2, 40, 8)) * scales
truth = jax.random.normal(keys[1], (8,))
y = Z @ truth + 0.5 * jax.random.normal(keys[2], (40,))


def objective(w, theta):
    return jnp.mean((Z @ w - y) ** 2) / 2 + jnp.exp(theta) * jnp.sum(w**2) / 2


problem = itd.Minimization(objective)
theta, w0 = jnp.log(0.1), jnp.zeros(8)
algorithm = itd.GradientDescent(step_size=0.5)

# %%
# The gradient of the validation loss in both modes. While the iterate is far from the solution both
# are wrong, without a warning.


def validation_loss(theta, mode, steps):
    w = itd.solve(problem, algorithm, w0, theta, stop=itd.Steps(steps), mode=mode).x
    return jnp.mean((Z_other @ (w - truth)) ** 2)


for steps in (10, 300):
    unrolled = jax.grad(validation_loss)(theta, itd.Unrolled(), steps)
    implicit = jax.grad(validation_loss)(theta, itd.Implicit(), steps)
    print(f"{steps:4d} steps: unrolled {unrolled:+.6f}, implicit {implicit:+.6f}")

# %%
# The error of both at every iteration, against the derivative of the exact solution.

modes = {"unrolled": itd.Unrolled(), "implicit": itd.Implicit()}
data = itd.trace(problem, algorithm, w0, theta, steps=300, modes=modes)
data.jacobian_error.plot.line(x="iteration", yscale="log")
plt.title("Error of two derivatives of the same run")
plt.show()
