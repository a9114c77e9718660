r"""
Nonlinear heat conduction: identify a conductivity, with SciPy's sparse solver inside
=====================================================================================

The conductivity of a plate depends on its temperature, :math:`k(u) = \theta_0 + \theta_1 u +
\theta_2 u^2`. Twelve noisy thermometers, and we want :math:`\theta`. Each forward solve is Newton's
method in SciPy with a sparse LU factorisation; the derivative's linear systems are solved by the
same function.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# The residual on a grid of 24 by 24 points: the heat that flows into each cell.

n = 24


def residual(u, theta):
    inner = u.reshape(n, n)
    padded = jnp.pad(inner, 1)  # the rim is kept at 0
    total = -40.0 / n**2 * jnp.ones((n, n))
    for shift in ((0, 1), (2, 1), (1, 0), (1, 2)):
        other = jax.lax.dynamic_slice(padded, shift, (n, n))
        mean = (inner + other) / 2
        k = theta[0] + theta[1] * mean + theta[2] * mean**2
        total = total + k * (inner - other)
    return total.ravel()


# %%
# The sparse Jacobian from five products: each row has five entries, and two points of the same
# colour i + 2 j (mod 5) never appear in one row.

i, j = np.divmod(np.arange(n * n), n)
colour = (i + 2 * j) % 5
seeds = jnp.asarray(np.eye(5)[colour].T)
neighbours = np.array([[0, 0], [0, 1], [0, -1], [1, 0], [-1, 0]])
rows, columns = [], []
for down, right in neighbours:
    inside = (0 <= i + down) & (i + down < n) & (0 <= j + right) & (j + right < n)
    rows.append(np.flatnonzero(inside))
    columns.append((i + down)[inside] * n + (j + right)[inside])
rows, columns = np.concatenate(rows), np.concatenate(columns)


def sparse_solve(products, b):
    values = np.asarray(products)[colour[columns], rows]
    matrix = scipy.sparse.csc_matrix((values, (rows, columns)), shape=(n * n, n * n))
    return scipy.sparse.linalg.spsolve(matrix, np.asarray(b))


def by_factors(matvec, b):
    return jax.pure_callback(sparse_solve, b, jax.vmap(matvec)(seeds), b, vmap_method="sequential")


# %%
# The forward solver, on the host: Newton's method.


@jax.jit
def products_of(u, theta):
    push = jax.linearize(lambda u: residual(u, theta), u)[1]
    return jax.vmap(push)(seeds), residual(u, theta)


heat = itd.RootFinding(residual)


@itd.implicit(heat, mode=itd.Implicit(by_factors), traceable=False)
def temperature(u0, theta):
    for _ in range(12):
        products, misfit = products_of(u0, theta)
        u0 = u0 - sparse_solve(products, misfit)
    return u0


# %%
# Measurements at twelve places, made from the true conductivity with noise.

true = jnp.array([1.0, 0.5, 0.2])
places = np.random.default_rng(1).choice(n * n, 12, replace=False)
start = jnp.array([1.5, 0.0, 0.0])
noise = 0.002 * np.random.default_rng(2).standard_normal(12)
measured = temperature(jnp.zeros(n * n), true)[places] + noise

# %%
# The identification is a least-squares problem in three unknowns, whose residuals contain the
# simulation. Its Jacobian comes from three forward-mode solves per step.

fit = itd.LeastSquares(
    lambda theta, data: (temperature(jnp.zeros(n * n), theta)[places] - data) / 0.002
)
stop = itd.ResidualBelow(rtol=1e-6, max_steps=20)
found = itd.solve(fit, itd.LevenbergMarquardt(), start, measured, stop=stop).x
print("found", found, "true", true)

k = np.linspace(0, float(jnp.max(temperature(jnp.zeros(n * n), found))), 50)
curves = {"start": start, "found": found, "true": true}
deviation = np.max(np.abs(np.polyval(found[::-1], k) / np.polyval(true[::-1], k) - 1))
print(f"the conductivity is right within {deviation:.1%}")
assert deviation < 0.05

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, theta), style in zip(curves.items(), (":", "-", "--"), strict=True):
    axes.plot(k, np.polyval(theta[::-1], k), style, label=name)
axes.set(xlabel="temperature", ylabel="conductivity")
axes.set_title("The conductivity, identified from twelve thermometers")
axes.legend()
plt.show()
