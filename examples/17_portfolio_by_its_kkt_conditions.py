r"""
A quadratic programme by its KKT conditions: how a portfolio moves with the appetite for risk
=============================================================================================

The shares of a portfolio minimise :math:`x^\top \Sigma x / 2 - \theta\, \mu^\top x`; they are not
negative and sum to one. The derivative of the solution is that of the KKT conditions with the
constraints that hold with equality. By hand it is a small linear system; ``QuadraticProgram`` does
the same, finds the active constraints, and marks the points where they change.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

covariance = jnp.array(
    [
        [0.04, 0.01, 0.00, 0.00],
        [0.01, 0.09, 0.02, 0.01],
        [0.00, 0.02, 0.16, 0.05],
        [0.00, 0.01, 0.05, 0.25],
    ]
)
returns = jnp.array([0.03, 0.06, 0.10, 0.13])
portfolio = itd.QuadraticProgram(
    covariance,
    lambda t: -t * returns,
    A=jnp.ones((1, 4)),
    b=jnp.ones(1),
    G=-jnp.eye(4),
    h=jnp.zeros(4),
)


@jax.jit
@jax.vmap
def shares_and_slopes(appetite):
    def shares(appetite):
        stop = itd.ResidualBelow(rtol=1e-6, max_steps=2000)
        run = (portfolio, itd.ADMM(), jnp.full(4, 0.25), appetite)
        found = itd.solve(*run, stop=stop, mode=itd.Implicit(refine=1), throw=False)
        return found.x, found

    slopes, found = jax.jacfwd(shares, has_aux=True)(appetite)
    return found.x, slopes, found.multipliers.inequality


appetites = jnp.linspace(0.05, 2.5, 50)
x, slopes, multipliers = shares_and_slopes(appetites)

# %%
# By hand, on the assets that are held: :math:`\Sigma_h\, dx_h + 1\, dy = \mu_h` and
# :math:`1^\top dx_h = 0`.

largest = 0.0
for row, slope in zip(np.asarray(x), np.asarray(slopes), strict=True):
    held = np.flatnonzero(row > 1e-6)
    ones = np.ones((len(held), 1))
    kkt = np.block([[covariance[np.ix_(held, held)], ones], [ones.T, np.zeros((1, 1))]])
    by_hand = np.zeros(4)
    by_hand[held] = np.linalg.solve(kkt, np.append(returns[held], 0.0))[:-1]
    largest = max(largest, np.max(np.abs(by_hand - slope)))
print(f"largest difference from the KKT system by hand: {largest:.1e}")
assert largest < 1e-6

# %%
# The multiplier of an asset that is not held says how far it is from being bought.

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for asset in range(4):
    axes[0].plot(appetites, x[:, asset], label=f"asset {asset + 1}")
    axes[1].plot(appetites, slopes[:, asset])
axes[0].set(xlabel="appetite for risk θ", ylabel="share", title="Shares")
axes[1].set(xlabel="appetite for risk θ", ylabel="derivative of the share", title="Derivatives")
figure.legend(loc="outside lower center", ncols=4)
plt.show()
