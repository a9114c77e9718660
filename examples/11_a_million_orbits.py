r"""
Kepler's equation for a million orbits, with derivatives
========================================================

The eccentric anomaly E of an orbit of eccentricity e at mean anomaly M solves :math:`E - e \sin E =
M`. ``vmap`` solves it for a million pairs (e, M) at once by Newton's method. The implicit
derivative needs no loop, and has a closed form to compare with: :math:`\partial E / \partial e =
\sin E / (1 - e \cos E)`.
"""

import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd

jax.config.update("jax_enable_x64", True)
COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000

kepler = itd.RootFinding(lambda E, theta: E - theta["e"] * jnp.sin(E) - theta["M"])
stop = itd.ResidualBelow(rtol=0.0, atol=1e-14, max_steps=20)


@jax.jit
@jax.vmap
def orbit(e, M):
    def anomaly(e):
        start = M + 0.85 * e * jnp.sign(jnp.sin(M))  # Newton's method converges from here
        run = (kepler, itd.Newton(), start, {"e": e, "M": M})
        return itd.solve(*run, stop=stop, throw=False).x

    return jax.value_and_grad(anomaly)(e)


# %%
# Random orbits, from circles to very long ellipses.

draw = np.random.default_rng(0)
e, M = jnp.asarray(draw.uniform(0, 0.99, COUNT)), jnp.asarray(draw.uniform(-np.pi, np.pi, COUNT))
jax.block_until_ready(orbit(e, M))  # compiles
began = time.perf_counter()
E, by_e = jax.block_until_ready(orbit(e, M))
print(f"{COUNT:,} orbits with derivatives in {time.perf_counter() - began:.2f} s")

residual = jnp.abs(E - e * jnp.sin(E) - M)
exact = jnp.sin(E) / (1 - e * jnp.cos(E))
error = jnp.abs(by_e - exact) / jnp.maximum(1, jnp.abs(exact))
print(f"largest residual {jnp.max(residual):.0e}, error of a derivative {jnp.max(error):.0e}")
assert jnp.max(residual) < 1e-13 and jnp.max(error) < 1e-12

# %%
# The derivative over all orbits: largest just after the point nearest to the sun.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
shown = axes.hexbin(M, e, np.asarray(by_e), gridsize=60, cmap="RdBu_r", vmin=-6, vmax=6)
axes.set(xlabel="mean anomaly M", ylabel="eccentricity e")
axes.set_title("Derivative of the eccentric anomaly in the eccentricity")
figure.colorbar(shown, label="dE / de")
plt.show()
