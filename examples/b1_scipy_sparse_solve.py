r"""
A physics solver: differentiate a sparse direct solve by SciPy
==============================================================

Stationary heat conduction in a rod of n cells, with a conductivity :math:`k_i` on each of the n + 1
faces, is the linear system :math:`A(k)\, u = q` with a tridiagonal matrix :math:`A`. SciPy factors
the sparse matrix. JAX differentiates the equation :math:`A(k) u - q = 0`, in which :math:`A` is one
of JAX's own sparse matrices.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax.experimental import sparse

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# The matrix, given by its nonzero entries.

n = 40
row = np.arange(n)
places = np.concatenate(
    [np.stack([row, row]), np.stack([row[1:], row[:-1]]), np.stack([row[:-1], row[1:]])], axis=1
)


def entries(k):
    return jnp.concatenate([k[:-1] + k[1:], -k[1:-1], -k[1:-1]])


def matrix(k):
    return sparse.BCOO((entries(k), jnp.asarray(places.T)), shape=(n, n))


heat = jnp.ones(n) / n**2
problem = itd.LinearSystem(itd.MatrixOperator(matrix), lambda _: heat, positive_definite=True)

# %%
# The solver: SciPy's ``spsolve`` on a SciPy matrix.


@itd.implicit(problem)
def temperature(x0, k):
    del x0  # a direct solver needs no starting point
    a = scipy.sparse.csc_matrix((np.asarray(entries(k)), places), shape=(n, n))
    return scipy.sparse.linalg.spsolve(a, np.asarray(heat))


# %%
# How does the mean temperature depend on each face's conductivity? The matrix is symmetric, and the
# adjoint state solves the same system with the right-hand side 1 / n. So the gradient has a closed
# form.


def mean_temperature(k):
    return jnp.mean(temperature(jnp.zeros(n), k))


conductivity = 1 + 0.5 * jnp.sin(jnp.linspace(0, 3, n + 1))
gradient = jax.jit(jax.grad(mean_temperature))(conductivity)
u = jnp.pad(temperature(jnp.zeros(n), conductivity), 1)
adjoint = n * u  # A adjoint = 1 / n, while A u = 1 / n^2
closed_form = -jnp.diff(adjoint) * jnp.diff(u)
print("largest error of the gradient:", jnp.max(jnp.abs(gradient - closed_form)))
assert jnp.max(jnp.abs(gradient - closed_form)) < 1e-12

# %%
# More conductivity lowers the mean temperature, most at the ends, where all heat leaves.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(gradient, label="differentiated")
axes.plot(closed_form, linestyle=":", label="closed form")
axes.set(xlabel="face", ylabel="derivative of the mean temperature")
axes.set_title("The effect of each face's conductivity on the mean temperature")
axes.legend()
plt.show()
