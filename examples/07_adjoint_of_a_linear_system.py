r"""
The adjoint method for a linear system: a network of resistors
==============================================================

A current enters a grid of resistors at one corner and leaves at the opposite one. How does the
voltage between the corners depend on each resistor? The potentials satisfy :math:`L(g)\, v = i`,
where g are the conductances. We differentiate by hand, by the adjoint method and by iterdiff, and
get the same numbers three times.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# Each edge of the grid joins two nodes. The incidence matrix takes potentials to voltages over the
# edges. The last node is grounded, and not among the unknowns.

side = 6
node = np.arange(side**2).reshape(side, side)
ends = np.concatenate(
    [
        np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()], axis=1),
        np.stack([node[:-1].ravel(), node[1:].ravel()], axis=1),
    ]
)
incidence = np.zeros((len(ends), side**2))
incidence[np.arange(len(ends)), ends[:, 0]] = 1
incidence[np.arange(len(ends)), ends[:, 1]] = -1
D = jnp.asarray(incidence[:, :-1])
current = jnp.zeros(side**2 - 1).at[0].set(1.0)
conductance = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, len(ends)))

# %%
# By hand: differentiate :math:`L v = i` in one conductance. :math:`L\, dv = -dL\, v`, where dL has
# the row of that edge only. Every resistor needs a system of its own.

L = D.T @ (conductance[:, None] * D)
v = jnp.linalg.solve(L, current)
columns = [jnp.linalg.solve(L, -D[edge] * (D[edge] @ v)) for edge in range(len(ends))]
by_hand = jnp.stack([dv[0] for dv in columns])

# %%
# By the adjoint method: only :math:`w^\top dv` is wanted, with w the first unit vector. So one
# system with the transposed matrix is enough, :math:`L^\top \lambda = w`, and the derivative is
# :math:`-\lambda^\top dL\, v` for each edge.

adjoint = jnp.linalg.solve(L.T, jnp.zeros(side**2 - 1).at[0].set(1.0))
by_adjoint = -(D @ adjoint) * (D @ v)

# %%
# By iterdiff: state the system, and call ``jax.grad``. Conjugate gradients solve it without a
# matrix; the adjoint system is solved likewise.

network = itd.LinearSystem(
    lambda v, g: D.T @ (g * (D @ v)), lambda _: current, positive_definite=True
)


def resistance(g):
    stop = itd.ResidualBelow(rtol=1e-13, max_steps=100)
    run = (network, itd.ConjugateGradient(), jnp.zeros(side**2 - 1), g)
    return itd.solve(*run, stop=stop).x[0]


by_iterdiff = jax.grad(resistance)(conductance)
for name, other in {"by hand": by_hand, "by adjoint": by_adjoint}.items():
    difference = float(jnp.max(jnp.abs(by_iterdiff - other)))
    print(f"largest difference between iterdiff and {name}: {difference:.1e}")
    assert difference < 1e-12
print("resistance between the corners:", resistance(conductance))

# %%
# Each resistor's influence. It is never positive: more conductance anywhere lowers the resistance
# (Rayleigh's monotonicity law).

assert jnp.all(by_iterdiff <= 0)
figure, axes = plt.subplots(figsize=(5.6, 5), layout="constrained")
strongest = float(jnp.max(-by_iterdiff))
for (a, b), slope in zip(ends, by_iterdiff, strict=True):
    (ya, xa), (yb, xb) = divmod(int(a), side), divmod(int(b), side)
    width = 0.5 + 9 * float(-slope) / strongest
    axes.plot([xa, xb], [ya, yb], color="#0072B2", linewidth=width, solid_capstyle="round")
axes.plot([0, side - 1], [0, side - 1], "o", color="#D55E00", markersize=12)
axes.set(aspect="equal", xticks=[], yticks=[])
axes.set_title("Influence of each resistor on the resistance between the corners")
plt.show()
