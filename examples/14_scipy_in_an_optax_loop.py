r"""
SciPy inside an optax loop: Adam tunes what L-BFGS-B fits
=========================================================

A solver that JAX cannot trace does not have to be rewritten: decorate the function that calls it
with ``@itd.implicit(problem)``. Here SciPy fits a logistic regression, and optax follows the
gradient of the validation loss in the logarithms of three penalties, one per group of features. One
linear solve with the Hessian gives this hypergradient, however many iterations SciPy took.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.optimize

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# The data, and the problem that SciPy solves: the gradient in `x` vanishes at the solution.

rng = np.random.default_rng(0)
features = jnp.asarray(rng.normal(size=(120, 9)))
labels = jnp.asarray(np.sign(features[:, :3].sum(1) + rng.normal(size=120)))
group = jnp.arange(9) // 3


def misfit(x, rows):
    return jnp.mean(jnp.logaddexp(0, -labels[rows] * (features[rows] @ x)))


def objective(x, log_penalties):
    return misfit(x, slice(0, 60)) + jnp.sum(jnp.exp(log_penalties)[group] * x**2) / 2


problem = itd.Minimization(objective)
value_and_gradient = jax.jit(jax.value_and_grad(objective))

# %%
# The solver, unchanged. The function may return SciPy's result object; if SciPy reports a failure,
# an exception with SciPy's message follows. SciPy stops at about eight digits; one Newton
# correction of the result (``refine=1``) gives sixteen.


@itd.implicit(problem, mode=itd.Implicit(refine=1))
def fit(x0, log_penalties):
    return scipy.optimize.minimize(
        value_and_gradient,
        x0,
        args=(log_penalties,),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-7, "ftol": 1e-13},
    )


# %%
# Differentiate it like a JAX function, also under ``jit``, which calls SciPy on the host.


@jax.jit
def validation(log_penalties):
    return misfit(fit(jnp.zeros(9), log_penalties), slice(60, 120))


log_penalties = jnp.array([-3.0, -3.0, -3.0])
gradient = jax.grad(validation)(log_penalties)
step = 1e-4
differences = [
    (validation(log_penalties + step * e) - validation(log_penalties - step * e)) / (2 * step)
    for e in jnp.eye(3)
]
print("hypergradient      ", gradient)
print("finite differences ", jnp.stack(differences))
assert jnp.max(jnp.abs(gradient - jnp.stack(differences))) < 1e-7

# %%
# Twelve steps of Adam on the penalties; each one fits the model by SciPy.

value_and_slope = jax.jit(jax.value_and_grad(validation))
adam = optax.adam(0.3)
state, losses = adam.init(log_penalties), []
for _ in range(12):
    loss, slope = value_and_slope(log_penalties)
    losses.append(float(loss))
    updates, state = adam.update(slope, state)
    log_penalties = optax.apply_updates(log_penalties, updates)
assert losses[-1] < losses[0]

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(losses, marker="o")
axes.set(xlabel="outer step", ylabel="validation loss")
axes.set_title("The validation loss over twelve steps of Adam")
plt.show()
