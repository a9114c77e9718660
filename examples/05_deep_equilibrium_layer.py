r"""
A deep equilibrium layer that reads digits: training memory does not grow with the iterations
=============================================================================================

The hidden state of each image solves the equation :math:`z = \tanh(W z + U x + c)`. Anderson's
method finds it; the gradient comes from the equation. So the memory of a training step is the same
for five iterations and for fifty, while that of unrolling grows.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

digits = load_digits()
rows = np.random.default_rng(0).permutation(len(digits.target))
images, labels = jnp.asarray(digits.data[rows] / 16), jnp.asarray(digits.target[rows])
train, test, width = slice(0, 200), slice(200, 600), 16

# %%
# The layer. Dividing W by its norm, if that is larger than 0.9, keeps the map a contraction.


def update(z, weights, x):
    return jnp.tanh(weights["W"] @ z + weights["U"] @ x + weights["c"])


layer = itd.FixedPoint(update)


def hidden(weights, x, mode, steps):
    norm = jnp.sqrt(jnp.sum(weights["W"] ** 2))
    weights = {**weights, "W": weights["W"] * jnp.minimum(1.0, 0.9 / norm)}
    run = (layer, itd.Anderson(depth=3), jnp.zeros(width), weights)
    return itd.solve(*run, stop=itd.Steps(steps), mode=mode, args=x).x


def scores(parameters, x, mode, steps):
    states = jax.vmap(lambda x: hidden(parameters["layer"], x, mode, steps))(x)
    return states @ parameters["read"]


def loss(parameters, mode, steps=10):
    rows = jax.nn.log_softmax(scores(parameters, images[train], mode, steps))
    return -jnp.mean(jnp.take_along_axis(rows, labels[train][:, None], axis=1))


# %%
# Train it.

keys = jax.random.split(jax.random.key(0), 3)
parameters = {
    "layer": {
        "W": 0.1 * jax.random.normal(keys[0], (width, width)),
        "U": 0.2 * jax.random.normal(keys[1], (width, 64)),
        "c": jnp.zeros(width),
    },
    "read": 0.1 * jax.random.normal(keys[2], (width, 10)),
}
adam = optax.adam(0.02)
state = adam.init(parameters)


@jax.jit
def train_step(parameters, state):
    value, gradient = jax.value_and_grad(loss)(parameters, itd.Implicit())
    updates, state = adam.update(gradient, state)
    return value, optax.apply_updates(parameters, updates), state


for _ in range(100):
    value, parameters, state = train_step(parameters, state)
guess = jnp.argmax(scores(parameters, images[test], itd.Implicit(), 10), axis=1)
accuracy = float(jnp.mean(guess == labels[test]))
print(f"training loss {value:.3f}, accuracy on unseen images {accuracy:.2f}")
assert accuracy > 0.85

# %%
# The memory that the compiled gradient plans, over the number of iterations of the layer.

counts, planned = (5, 50), {}
picard = {"Implicit()": itd.Implicit(), "Unrolled()": itd.Unrolled(checkpoint="none")}


def memory(mode, steps):
    def picard_loss(parameters):
        weights = parameters["layer"]

        def state_of(x):
            run = (layer, itd.Picard(), jnp.zeros(width), weights)
            return itd.solve(*run, stop=itd.Steps(steps), mode=mode, args=x).x

        return jnp.sum(jax.vmap(state_of)(images[train]) @ parameters["read"])

    compiled = jax.jit(jax.grad(picard_loss)).lower(parameters).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, mode in picard.items():
    planned[name] = [memory(mode, steps) for steps in counts]
    print(name, [f"{megabytes:.2f} MiB" for megabytes in planned[name]])
    axes.plot(counts, planned[name], "o-", label=name)
axes.set(xlabel="iterations of the layer", ylabel="memory of a gradient, MiB", ylim=(0, None))
axes.set_title("The implicit gradient needs the same memory for any number of iterations")
axes.legend()
plt.show()
