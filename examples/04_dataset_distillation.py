r"""
Dataset distillation: ten images that train a classifier of digits
==================================================================

Which ten images, one for each digit, should a classifier be trained on? They are parameters of the
training. Their gradient is that of the loss on a thousand real images, through the solution of the
training problem. The inner problem is linear (ridge regression on ten images), and conjugate
gradients solve it in at most ten steps, because its data have rank ten.
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
images, targets = jnp.asarray(digits.data[rows] / 16), digits.target[rows]
train, test = slice(0, 1000), slice(1000, None)
onehot = jnp.eye(10)

# %%
# The training: weights W of shape (64, 10) with (X' X + penalty) W = X' Y for the ten images X,
# whose labels Y are the ten digits. No matrix of the system is ever formed.

training = itd.LinearSystem(
    lambda W, X: X.T @ (X @ W) + 0.1 * W, lambda X: X.T @ onehot, positive_definite=True
)


def trained(X):
    stop = itd.ResidualBelow(rtol=1e-10, max_steps=40)
    return itd.solve(training, itd.ConjugateGradient(), jnp.zeros((64, 10)), X, stop=stop).x


def loss(X):
    return jnp.mean((images[train] @ trained(X) - onehot[targets[train]]) ** 2)


def accuracy(X):
    return float(np.mean(np.argmax(images[test] @ trained(X), axis=1) == targets[test]))


# %%
# Start from ten real images, and follow the gradient by Adam.

first = np.array([np.argmax(targets == digit) for digit in range(10)])
X = start = images[first]
adam = optax.adam(0.02)
state, history = adam.init(X), []


@jax.jit
def step(X, state):
    value, gradient = jax.value_and_grad(loss)(X)
    updates, state = adam.update(gradient, state)
    return value, optax.apply_updates(X, updates), state


for _ in range(150):
    value, X, state = step(X, state)
    history.append(float(value))

print(f"accuracy on unseen images, trained on ten real images: {accuracy(start):.2f}")
print(f"trained on ten distilled images: {accuracy(X):.2f}")
assert accuracy(X) > accuracy(start) + 0.1

# %%
# The images have become prototypes, and contrasts between digits.

figure, axes = plt.subplots(2, 10, figsize=(8, 2.2), layout="constrained")
for row, title, shown in zip(axes, ("real", "distilled"), (start, X), strict=True):
    for axis, image in zip(row, shown, strict=True):
        axis.imshow(image.reshape(8, 8), cmap="gray")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(title)
figure.suptitle(f"Accuracy {accuracy(start):.2f} with the real images, {accuracy(X):.2f} distilled")
plt.show()
