r"""
Hyper-cleaning: the outer loss finds the wrong labels
=====================================================

A third of the training labels of an image classifier are wrong, and nobody knows which. Each image
gets a weight, a hyperparameter. A small set of images with checked labels judges the trained
classifier. The gradient of that loss in the weights, through the training, turns the wrong labels
down.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import iterdiff as itd

jax.config.update("jax_enable_x64", True)

# %%
# Images of the digits 3, 5 and 8, reduced to their twelve principal components.

digits = load_digits()
chosen = np.isin(digits.target, (3, 5, 8))
pixels, classes = digits.data[chosen], np.searchsorted((3, 5, 8), digits.target[chosen])
centred = pixels - pixels.mean(0)
components = centred @ np.linalg.svd(centred, full_matrices=False)[2][:12].T
features = jnp.asarray(np.column_stack([components / components.std(), np.ones(len(classes))]))

draw = np.random.default_rng(0)
rows = draw.permutation(len(classes))
train, checked, test = rows[:90], rows[90:150], rows[150:]
wrong = np.arange(90) < 30
labels = classes.copy()
labels[train[wrong]] = (labels[train[wrong]] + draw.integers(1, 3, size=30)) % 3


# %%
# The inner problem: softmax regression with a weight between 0 and 1 for each training image.


def losses(x, rows, labels):
    scores = jax.nn.log_softmax(features[rows] @ x.reshape(13, 3))
    return -jnp.take_along_axis(scores, jnp.asarray(labels[rows])[:, None], axis=1)[:, 0]


def objective(x, theta):
    fit = jnp.mean(jax.nn.sigmoid(theta) * losses(x, train, labels))
    return fit + 0.01 * jnp.sum(x**2) / 2


def loss(x, theta):
    del theta
    return jnp.mean(losses(x, checked, classes))


# %%
# The outer problem. ``minimize`` decides how accurately to train inside.

result = itd.bilevel.minimize(
    loss,
    itd.Minimization(objective),
    itd.Newton(),
    jnp.zeros(39),
    jnp.zeros(90),
    method=itd.bilevel.LBFGS(),
    lower=-5.0,
    upper=5.0,
    max_outer=12,
)
weights = np.asarray(jax.nn.sigmoid(result.theta))
area = roc_auc_score(~wrong, weights)


def accuracy(x):
    scores = features[test] @ x.reshape(13, 3)
    return float(np.mean(np.argmax(scores, axis=1) == classes[test]))


stop = itd.Steps(15)
before = itd.solve(
    itd.Minimization(objective), itd.Newton(), jnp.zeros(39), jnp.zeros(90), stop=stop
)
print(f"accuracy on unseen images: {accuracy(before.x):.3f} before, {accuracy(result.x):.3f} after")
print(f"area under the curve of 'the weight finds the right labels': {area:.3f}")
assert area > 0.9 and accuracy(result.x) > accuracy(before.x)

# %%
# Most wrong labels have lost their weight.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
parts = [weights[wrong], weights[~wrong]]
axes.hist(parts, bins=12, range=(0, 1), stacked=True, label=["wrong label", "right label"])
axes.set(xlabel="weight of a training image", ylabel="images")
axes.set_title("The weights tell wrong labels from right ones")
axes.legend()
plt.show()
