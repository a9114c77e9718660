"""Outer problems on real and simulated data, each with a solve of its own for the truth.

The functions of a problem receive its data in `args`, so that all seeds share compiled programs.
Data are scaled so that a step of one is safe for penalties up to one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

import iterdiff as itd

PENALTIES, SPARSE, LOGITS, SMOOTHING = (-8.0, 0.0), (-5.0, 0.5), (-6.0, 6.0), (-8.0, 0.0)
"""Bounds of the outer parameters; of a lasso narrower, since its solution should be unique."""

TRUTH_STEPS, TRUTH_NEWTON, TRUTH_PROXIMAL = 300, 8, 2_000
"""The truth of a smooth problem: steps of Nesterov's method, then Newton steps. Of a lasso: steps
of FISTA, then Newton corrections on the support."""

STEP_SIZE, MOMENTUM = 0.5, 0.9
"""Of the inner algorithm, gradient descent or its proximal variant, and of the truth's start. The
curvature of the data is at most one, and so is that of the penalties."""


class Family(NamedTuple):
    """What all seeds of a case have in common.

    Attributes
    ----------
    name : str
    problem : Problem
    loss : callable
        Both take data.
    bounds : tuple
        Of theta.
    """

    name: str
    problem: itd.Problem
    loss: Callable
    bounds: tuple[float, float] = PENALTIES

    @property
    def smooth(self) -> bool:
        """Whether the inner problem is."""
        return isinstance(self.problem, itd.Minimization)

    @property
    def algorithm(self) -> itd.Algorithm:
        """The inner algorithm of every driver."""
        return (itd.GradientDescent if self.smooth else itd.ProximalGradient)(STEP_SIZE)


class Case(NamedTuple):
    """An outer problem at one seed.

    Attributes
    ----------
    family : Family
    x0, theta0, args : pytree
        Starts and data.
    """

    family: Family
    x0: Any
    theta0: Any
    args: Any

    @property
    def unknowns(self) -> int:
        """Of the inner problem."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.x0))

    def truth(self, theta: Any) -> tuple[float, np.ndarray]:
        """Return the outer loss after a direct solve, and its gradient."""
        theta = jnp.asarray(theta).reshape(jnp.shape(self.theta0))
        value, gradient = _truth(self.family)(theta, self.x0, self.args)
        return float(value), np.asarray(gradient).reshape(-1)


@functools.cache
def _truth(family: Family) -> Callable:
    problem, loss = family.problem, family.loss

    def true_loss(theta, x0, args):
        if not family.smooth:
            stop, mode = itd.Steps(TRUTH_PROXIMAL), itd.Implicit(refine=2)
            fista = itd.FISTA(STEP_SIZE)
            run = problem, fista, x0, theta
            x = itd.solve(*run, stop=stop, mode=mode, args=args, throw=False).x
            return loss(x, theta, args)
        first, stop = itd.Nesterov(STEP_SIZE, MOMENTUM), itd.Steps(TRUTH_STEPS)
        start = itd.solve(problem, first, x0, jax.lax.stop_gradient(theta), stop=stop, args=args).x
        stop = itd.Steps(TRUTH_NEWTON)
        run = problem, itd.Newton(), start, theta
        x = itd.solve(*run, stop=stop, args=args, throw=False).x
        return loss(x, theta, args)

    return jax.jit(jax.value_and_grad(true_loss))


def _standardised(features: np.ndarray) -> np.ndarray:
    spread = features.std(0)
    return (features - features.mean(0)) / np.where(spread > 0, spread, 1.0)


def _split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(count)
    return order[: 2 * count // 3], order[2 * count // 3 :]


def _divisor(rows: np.ndarray, curvature: float) -> float:
    """Return what divides the rows so that the curvature of a mean loss is at most one."""
    return float(np.sqrt(np.linalg.eigvalsh(rows.T @ rows)[-1] * curvature / len(rows)))


class Split(NamedTuple):
    """Rows to train and to test, with their targets."""

    train: Any
    target: Any
    test: Any
    wanted: Any


def _tables(features: np.ndarray, target: np.ndarray, seed: int, curvature: float) -> Split:
    train, test = _split(len(target), seed)
    scaled = features / _divisor(features[train], curvature)
    parts = scaled[train], target[train], scaled[test], target[test]
    return Split(*map(jnp.asarray, parts))


def _penalty(x: Any, theta: Any) -> Any:
    weights = jnp.broadcast_to(jnp.exp(theta), jnp.shape(theta) or (1,))
    if jnp.ndim(x) == 2 and len(weights) == x.shape[0]:
        weights = weights[:, None]
    return jnp.sum(weights * x**2) / 2


def _logistic(x, rows, signs):
    return jnp.mean(jnp.logaddexp(0.0, -signs * (rows @ x)))


def _square(x, rows, wanted):
    return jnp.mean((rows @ x - wanted) ** 2) / 2


def _entropies(x, rows, labels):
    logits = rows @ x
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


def _entropy(x, rows, labels):
    return jnp.mean(_entropies(x, rows, labels))


def _penalised(name: str, fit: Callable) -> Family:
    def objective(x, theta, args):
        return fit(x, args.train, args.target) + _penalty(x, theta)

    def loss(x, theta, args):
        del theta
        return fit(x, args.test, args.wanted)

    return Family(name, itd.Minimization(objective), loss)


CANCER = _penalised("logistic, cancer, one penalty", _logistic)
CANCER_EACH = _penalised("logistic, cancer, 30 penalties", _logistic)
DIABETES = _penalised("ridge, diabetes, 10 penalties", _square)
WINE = _penalised("softmax, wine, 13 penalties", _entropy)
DIGITS = _penalised("softmax, digits, 16 penalties", _entropy)


def cancer(seed: int, *, shared: bool) -> Case:
    """Logistic regression on breast cancer, one log-penalty or one for each feature."""
    data = sklearn.datasets.load_breast_cancer()
    args = _tables(_standardised(data.data), 2.0 * data.target - 1, seed, 0.25)
    theta0 = jnp.array(-3.0) if shared else jnp.full(30, -4.0)
    return Case(CANCER if shared else CANCER_EACH, jnp.zeros(30), theta0, args)


def diabetes(seed: int) -> Case:
    """Ridge regression on diabetes, one log-penalty for each feature."""
    data = sklearn.datasets.load_diabetes()
    target = (data.target - data.target.mean()) / data.target.std()
    args = _tables(_standardised(data.data), target, seed, 1.0)
    return Case(DIABETES, jnp.zeros(10), jnp.full(10, -2.0), args)


def wine(seed: int) -> Case:
    """Three-class logistic regression on wine, one log-penalty for each feature."""
    data = sklearn.datasets.load_wine()
    args = _tables(_standardised(data.data), data.target, seed, 0.5)
    return Case(WINE, jnp.zeros((13, 3)), jnp.full(13, -3.0), args)


def _digits(seed: int, count: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return principal components and labels of some digits."""
    data = sklearn.datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))[:count]
    pixels = _standardised(data.data)
    _, _, axes = np.linalg.svd(pixels, full_matrices=False)
    return _standardised(pixels @ axes[:features].T)[order], data.target[order]


def digits(seed: int) -> Case:
    """Ten-class logistic regression on digits, one log-penalty for each principal component."""
    inputs, labels = _digits(seed, 360, 16)
    args = _tables(inputs, labels, seed, 0.5)
    return Case(DIGITS, jnp.zeros((16, 10)), jnp.full(16, -3.0), args)


def _lasso() -> Family:
    def smooth(x, theta, args):
        del theta
        return _square(x, args.train, args.target)

    def prox(x, step, theta):
        return itd.prox.soft_threshold(x, step * jnp.exp(theta))

    def loss(x, theta, args):
        del theta
        return _square(x, args.test, args.wanted)

    problem = itd.CompositeMinimization(smooth, prox, residual_step=1.0)
    return Family("lasso, simulated, 60×200", problem, loss, SPARSE)


LASSO = _lasso()


def lasso(seed: int, rows: int = 60, columns: int = 200, held_out: int = 200) -> Case:
    """Lasso with more columns than rows, simulated: one log-penalty."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows + held_out, columns))
    true = np.where(np.arange(columns) < 8, rng.choice([-1.0, 1.0], columns), 0.0)
    target = matrix @ true + 1.5 * rng.standard_normal(rows + held_out)
    matrix = matrix / _divisor(matrix[:rows], 1.0)
    parts = matrix[:rows], target[:rows], matrix[rows:], target[rows:]
    return Case(LASSO, jnp.zeros(columns), jnp.array(-1.25), Split(*map(jnp.asarray, parts)))


RIDGE_OF_CLEANING = 0.02
"""A fixed penalty, which keeps the inner problem strongly convex where all weights vanish."""


def _cleaning() -> Family:
    def objective(x, theta, args):
        weighted = jax.nn.sigmoid(theta) * _entropies(x, args.train, args.target)
        return jnp.mean(weighted) + RIDGE_OF_CLEANING * jnp.sum(x**2) / 2

    def loss(x, theta, args):
        del theta
        return _entropy(x, args.test, args.wanted)

    return Family("hyper-cleaning, digits", itd.Minimization(objective), loss, LOGITS)


CLEANING = _cleaning()


def cleaning(seed: int, count: int = 120) -> Case:
    """Hyper-cleaning of digits: half of the labels are wrong, each sample has a weight."""
    inputs, labels = _digits(seed, 2 * count, 16)
    rng = np.random.default_rng(seed + 1)
    wrong = rng.random(count) < 0.5
    noisy = np.where(wrong, rng.integers(0, 10, count), labels[:count])
    inputs = inputs / _divisor(inputs[:count], 0.5)
    parts = inputs[:count], noisy, inputs[count:], labels[count:]
    return Case(CLEANING, jnp.zeros((16, 10)), jnp.zeros(count), Split(*map(jnp.asarray, parts)))


class Photographs(NamedTuple):
    """Pieces of photographs, without and with noise."""

    clean: Any
    noisy: Any


def _filtered(x: Any) -> Any:
    """Return differences along rows, columns and a diagonal, and second ones; gain at most one."""
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    right, down, across = wide[:, 1:-1, 2:], wide[:, 2:, 1:-1], wide[:, 2:, 2:]
    left, up = wide[:, 1:-1, :-2], wide[:, :-2, 1:-1]
    first = [(right - x) / 2, (down - x) / 2, (across - x) / 2]
    return jnp.stack([*first, (left - 2 * x + right) / 4, (up - 2 * x + down) / 4], axis=-1)


def _denoiser() -> Family:
    def objective(x, theta, args):
        weights, widths = jnp.exp(theta[0]), jnp.exp(theta[1])
        roofs = widths**2 * (jnp.sqrt(1 + (_filtered(x) / widths) ** 2) - 1)
        return (jnp.sum((x - args.noisy) ** 2) / 2 + jnp.sum(weights * roofs)) / 6

    def loss(x, theta, args):
        del theta
        return 10 * jnp.mean((x - args.clean) ** 2)

    return Family("denoiser, photographs", itd.Minimization(objective), loss, SMOOTHING)


DENOISER = _denoiser()


def denoiser(seed: int, side: int = 9, noise: float = 0.1) -> Case:
    """Denoise pieces of two photographs: five filters, each with a weight and a width, learned."""
    rng = np.random.default_rng(seed)
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        image = sklearn.datasets.load_sample_image(name).mean(axis=2)[::3, ::3] / 255
        row, column = (rng.integers(0, size - side) for size in image.shape)
        pieces.append(image[row : row + side, column : column + side])
    clean = np.stack(pieces)
    noisy = clean + noise * rng.standard_normal(clean.shape)
    args = Photographs(jnp.asarray(clean), jnp.asarray(noisy))
    return Case(DENOISER, args.noisy, jnp.full((2, 5), -2.0), args)


CASES: dict[str, Callable[[int], Case]] = {
    "cancer": lambda seed: cancer(seed, shared=True),
    "cancer-each": lambda seed: cancer(seed, shared=False),
    "diabetes": diabetes,
    "wine": wine,
    "digits": digits,
    "lasso": lasso,
    "cleaning": cleaning,
    "denoiser": denoiser,
}
"""Each case, by its name on the command line."""
