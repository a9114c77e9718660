r"""
Hyperparameters of logistic regression: one penalty for each feature, and no tolerance to choose
================================================================================================

Logistic regression on the breast cancer table has one log-penalty for each of its 30 features. They
are chosen to minimise the loss on held-out rows. Nobody has to say how accurately to solve inside:
an outer step is made only where the error bars of gradient and loss allow it, and otherwise the
same inner run goes on.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

data = sklearn.datasets.load_breast_cancer()
features = (data.data - data.data.mean(0)) / data.data.std(0)
signed = features * (2.0 * data.target - 1)[:, None]
order = np.random.default_rng(0).permutation(len(signed))
train, held_out = jnp.asarray(signed[order[:380]]), jnp.asarray(signed[order[380:]])

# %%
# The inner problem, and the outer loss.


def objective(x, theta):
    fit = jnp.mean(jnp.logaddexp(0.0, -(train @ x)))
    return fit + jnp.sum(jnp.exp(theta) * x**2) / 2


def loss(x, theta):
    del theta
    return jnp.mean(jnp.logaddexp(0.0, -(held_out @ x)))


result = itd.bilevel.minimize(
    loss,
    itd.Minimization(objective),
    itd.GradientDescent(0.2),
    jnp.zeros(30),
    jnp.full(30, -2.0),
    method=itd.bilevel.LBFGS(),
    lower=-8.0,
    upper=0.0,
    max_outer=15,
)
print(result)
print(result.message)

# %%
# A direct solve confirms that no accepted step went uphill, and that the error bars hold.

history = result.history
accepted = history.sel(evaluation=history.accepted)


def true_loss(theta):
    x = itd.solve(itd.Minimization(objective), itd.Newton(), result.x, theta, stop=itd.Steps(20)).x
    return loss(x, theta)


truth = jax.jit(true_loss)
true = np.array([truth(jnp.asarray(theta)) for theta in accepted.theta.values])
assert np.all(np.diff(true) < 0)
assert np.all(np.abs(accepted.value - true) <= 2 * accepted.value_error)

# %%
# The run, over the inner work.

itd.bilevel.plot(result)
plt.show()
