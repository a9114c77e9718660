r"""
Optimal transport: the derivative of Sinkhorn's iteration converges late
========================================================================

Entropic optimal transport between histograms :math:`a` and :math:`b` with cost :math:`C` has
potentials :math:`f, g` that satisfy

.. math::

    f_i = -\varepsilon \log \sum_j b_j e^{(g_j - C_{ij}) / \varepsilon}, \qquad
    g_j = -\varepsilon \log \sum_i a_i e^{(f_i - C_{ij}) / \varepsilon},

Sinkhorn's iteration applies the two equations in turn (here in the log domain). Its derivative
converges slowly: for small :math:`\varepsilon` the contraction rate is close to 1. Adding a
constant to :math:`g` changes nothing. Without a correction, 1 would therefore be an eigenvalue of
the Jacobian, and the implicit derivative would not exist. The update below removes the constant by
centring.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.special import logsumexp

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# Two clouds of points; the second moves with the parameters.

rng = np.random.default_rng(1)
source, target = jnp.asarray(rng.normal(size=(12, 2))), jnp.asarray(rng.normal(size=(9, 2)) + 1)
epsilon = 0.3


def cost(theta):
    return jnp.sum((source[:, None] - theta[None]) ** 2, axis=2) / 2


def first_potential(g, theta):
    return -epsilon * logsumexp((g[None] - cost(theta)) / epsilon - jnp.log(9.0), axis=1)


def update(g, theta):
    f = first_potential(g, theta)
    g = -epsilon * logsumexp((f[:, None] - cost(theta)) / epsilon - jnp.log(12.0), axis=0)
    return g - jnp.mean(g)


problem = itd.FixedPoint(update)


def plan(g, theta):
    f = first_potential(g, theta)
    return jnp.exp((f[:, None] + g[None] - cost(theta)) / epsilon) / (12 * 9)


# %%
# The gradient of the transport cost in the moving points, in two modes. After convergence they
# agree.


def transport(theta, mode):
    g = itd.solve(problem, itd.Picard(), jnp.zeros(9), theta, stop=itd.Steps(300), mode=mode).x
    return jnp.sum(plan(g, theta) * cost(theta))


gradients = [
    jax.jit(jax.grad(lambda t, m=m: transport(t, m)))(target)
    for m in (itd.Implicit(), itd.Unrolled())
]
print("largest difference of the gradients:", jnp.max(jnp.abs(gradients[0] - gradients[1])))
assert jnp.max(jnp.abs(gradients[0] - gradients[1])) < 1e-9

# %%
# How they converge: the error of the implicit derivative falls at the rate of the iterate, that of
# the unrolled one is larger by a factor of t.

trace = itd.trace(
    problem,
    itd.Picard(),
    jnp.zeros(9),
    target,
    steps=150,
    modes={"unrolled": itd.Unrolled(), "implicit": itd.Implicit()},
)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(trace.iteration, trace.iterate_error, color="0.6", label="potentials")
for mode in trace.mode.values:
    axes.plot(trace.iteration, trace.jacobian_error.sel(mode=mode), label=f"Jacobian, {mode}")
axes.set(yscale="log", xlabel="iteration", ylabel="absolute error (Frobenius)")
axes.set_title("Sinkhorn's iteration: the unrolled derivative lags behind")
axes.legend()
plt.show()
