r"""
Root finding: differentiate an equation that Brent's method solves
==================================================================

Kepler's equation :math:`E - e \sin E = M` defines the eccentric anomaly :math:`E` of an orbit of
eccentricity :math:`e` at mean anomaly :math:`M`. A bracketing solver such as SciPy's ``brentq``
finds the root. Its steps have no useful derivative, but the equation does: :math:`\partial E /
\partial e = \sin E / (1 - e \cos E)` and :math:`\partial E / \partial M = 1 / (1 - e \cos E)`.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize

import iterdiff as itd

jax.config.update("jax_enable_x64", True)


def kepler(anomaly, theta):
    eccentricity, mean = theta
    return anomaly - eccentricity * jnp.sin(anomaly) - mean


@itd.implicit(itd.RootFinding(kepler))
def anomaly(x0, theta):
    del x0  # the bracket is known
    eccentricity, mean = (float(part) for part in theta)
    return scipy.optimize.brentq(
        lambda e: e - eccentricity * np.sin(e) - mean, mean - 1, mean + 1, xtol=1e-14
    )


# %%
# A whole orbit at once: ``vmap`` calls SciPy once for each time.


@jax.jit
@jax.vmap
def orbit(mean):
    theta = (jnp.array(0.6), mean)
    return anomaly(mean, theta), jax.grad(anomaly, argnums=1)(mean, theta)


means = jnp.linspace(0.1, 6.0, 7)
found, (by_eccentricity, by_mean) = orbit(means)
slope = 1 / (1 - 0.6 * jnp.cos(found))
for mean, x, d in zip(means, found, by_eccentricity, strict=True):
    print(f"M = {mean:.3f}   E = {x:.6f}   dE/de = {d:+.6f}")
assert jnp.max(jnp.abs(by_mean - slope)) < 1e-12
assert jnp.max(jnp.abs(by_eccentricity - jnp.sin(found) * slope)) < 1e-12

# %%
# The derivatives over an orbit.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(means, by_eccentricity, marker="o", label="by the eccentricity")
axes.plot(means, by_mean, marker="o", label="by the mean anomaly")
axes.set(xlabel="mean anomaly", ylabel="derivative of the eccentric anomaly")
axes.set_title("The derivatives of the eccentric anomaly over an orbit, e = 0.6")
axes.legend()
plt.show()
