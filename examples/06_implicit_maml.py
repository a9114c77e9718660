r"""
Implicit MAML: a start from which ten points are enough
=======================================================

Each task is to learn one sine from ten of its points. Meta-learning looks for weights
:math:`\theta` of a small network from which every task is learnt quickly. In implicit MAML a task
is learnt by minimising its loss plus :math:`\|w - \theta\|^2 \lambda / 2`, so that the learnt
weights depend on :math:`\theta` through an equation, and no inner step has to be stored.
(Rajeswaran, Finn, Kakade, Levine: *Meta-learning with implicit gradients*, NeurIPS 2019.)
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import iterdiff as itd

jax.config.update("jax_enable_x64", True)
HIDDEN, PENALTY = 12, 0.5


def network(w, x):
    first, bias, second = w[:HIDDEN], w[HIDDEN : 2 * HIDDEN], w[2 * HIDDEN : 3 * HIDDEN]
    return jnp.tanh(x[:, None] * first + bias) @ second + w[-1]


def mistake(w, points):
    return jnp.mean((network(w, points["x"]) - points["y"]) ** 2)


def objective(w, theta, points):
    return mistake(w, points) + PENALTY * jnp.sum((w - theta) ** 2) / 2


# %%
# A task: amplitude and phase of a sine, ten points to learn from and ten to be judged by.


def tasks(seed, count):
    draw = np.random.default_rng(seed)
    size, phase = draw.uniform(0.5, 2, (count, 1)), draw.uniform(0, np.pi, (count, 1))
    x = draw.uniform(-3, 3, (2, count, 10))
    return tuple({"x": jnp.asarray(part), "y": size * jnp.sin(part + phase)} for part in x)


problem, descent = itd.Minimization(objective), itd.HeavyBall(0.04, 0.7)


def learn(theta, points, steps=100):
    return itd.solve(problem, descent, theta, theta, stop=itd.Steps(steps), args=points).x


def meta_loss(theta, learnt_from, judged_by):
    return jnp.mean(jax.vmap(lambda a, b: mistake(learn(theta, a), b))(learnt_from, judged_by))


# %%
# Meta-training by Adam, on new tasks in each step.

adam = optax.adam(0.01)
start = theta = 0.5 * jax.random.normal(jax.random.key(0), (3 * HIDDEN + 1,))
state = adam.init(theta)


@jax.jit
def step(theta, state, learnt_from, judged_by):
    value, gradient = jax.value_and_grad(meta_loss)(theta, learnt_from, judged_by)
    updates, state = adam.update(gradient, state)
    return value, optax.apply_updates(theta, updates), state


for seed in range(200):
    _, theta, state = step(theta, state, *tasks(seed, 10))

unseen = tasks(10_000, 100)
before, after = (float(jax.jit(meta_loss)(t, *unseen)) for t in (start, theta))
print(f"mean squared error on unseen sines: {before:.3f} before, {after:.3f} after meta-training")
assert after < before / 3

# %%
# The inner runs stop after a hundred steps. How wrong does that make the gradient of one task?

points, others = (jax.tree.map(lambda leaf: leaf[0], part) for part in unseen)
w = learn(theta, points)
gradient = jax.grad(lambda t: mistake(learn(t, points), others))(theta)
estimate = itd.derivative_error(
    problem, w, theta, gradient, loss=lambda w, _: mistake(w, others), args=points, near=jnp.inf
)
print(f"estimated relative error of a meta-gradient: {estimate.relative:.1e}")
assert estimate.trusted and estimate.relative < 1e-2

# %%
# One unseen sine.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
x = jnp.linspace(-3, 3, 200)
axes.plot(points["x"], points["y"], "o", color="black", label="ten points")
for name, t in (("from the first start", start), ("from the meta-learnt start", theta)):
    axes.plot(x, network(learn(t, points), x), label=name)
axes.set(xlabel="x", ylabel="y")
axes.set_title("Learnt from ten points of an unseen sine")
axes.legend()
plt.show()
