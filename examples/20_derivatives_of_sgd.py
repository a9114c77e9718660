r"""
Derivatives of stochastic gradient descent
==========================================

Stochastic gradient descent on a ridge regression, differentiated through its steps with respect to
the penalties. With constant steps the Jacobian ends in noise whose size depends on the step; with
decreasing steps it converges. Theory gives the mean square error of both (Iutzeler, Pauwels and
Vaiter, arXiv 2405.15894): :math:`O(h)` for constant steps h, and :math:`O(\log^2 k / k)` for steps
of order :math:`1 / k`.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

N, P = 40, 3
matrix = jax.random.normal(jax.random.key(0), (N, P))
target = matrix @ jnp.array([1.0, -0.5, 0.0]) + jax.random.normal(jax.random.key(1), (N,))
theta = jnp.array([0.5, 1.0, 0.2])

# %%
# The objective receives the indices of a minibatch. The truth is that of the whole sum.


def objective(x, theta, i):
    return jnp.mean((matrix[i] @ x - target[i]) ** 2) / 2 + jnp.sum(theta * x**2) / 2


problem = itd.Minimization(objective)
normal = matrix.T @ matrix / N + jnp.diag(theta)
solution = jnp.linalg.solve(normal, matrix.T @ target / N)
truth = -jnp.linalg.solve(normal, jnp.diag(solution))

# %%
# Independent chains give the mean Jacobian with its confidence interval, and the spread of one
# chain around it.

SCHEDULES = {
    "constant, 0.05": (lambda _: 0.05, "#0072B2"),
    "constant, 0.01": (lambda _: 0.01, "#56B4E9"),
    "4 / (k + 40)": (lambda k: 4 / (k + 40), "#D55E00"),
}
runs = {
    name: itd.bilevel.unrolled_sgd(
        problem, jnp.zeros(P), theta, steps, samples=N, steps=20_000, chains=32
    )
    for name, (steps, _) in SCHEDULES.items()
}

# %%
# Above: one entry of the Jacobian with the interval of its mean. Below: the root mean square error
# of one chain, and the rates of theory as lines through the last points.

figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 6.4), sharex=True, layout="constrained")
for name, run in runs.items():
    color = SCHEDULES[name][1]
    entry, half = run.jacobian[:, 0, 0], run.half_width[:, 0, 0]
    above.plot(run.steps, entry, color=color, label=name)
    above.fill_between(run.steps, entry - half, entry + half, color=color, alpha=0.25, linewidth=0)
    bias = np.linalg.norm(run.jacobian - np.asarray(truth), axis=(1, 2))
    error = np.sqrt(bias**2 + run.spread**2)
    below.loglog(run.steps, error, color=color, label=name)
    if name.startswith("constant"):
        below.axhline(error[-1], color=color, linestyle=":", linewidth=1)
    else:
        k = run.steps[run.steps > 300]
        rate = np.log(k) / np.sqrt(k)
        below.loglog(k, rate * error[-1] / rate[-1], color=color, linestyle=":", linewidth=1)
above.axhline(float(truth[0, 0]), color="black", linewidth=0.8)
above.set_xscale("log")
above.set_ylabel("∂x₁ / ∂θ₁, mean of the chains")
above.legend(frameon=False)
below.set_ylabel("error of one chain's Jacobian")
below.set_xlabel("steps; dotted: the floor O(√h), and log k / √k")

# %%
# On average, the floors of two constant steps differ by the square root of their ratio.

errors = {name: run.spread[-1] for name, run in runs.items()}
print({name: round(float(value), 4) for name, value in errors.items()})
print("ratio of floors", round(float(errors["constant, 0.05"] / errors["constant, 0.01"]), 2))
print("square root of the ratio of steps", round(5**0.5, 2))
