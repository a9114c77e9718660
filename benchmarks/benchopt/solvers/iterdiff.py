"""Gradient descent in the log-penalties, with iterdiff's derivative of the inner solution."""

import jax
import jax.numpy as jnp
import numpy as np
from benchopt import BaseSolver

import iterdiff as itd


def loss(x, theta, data):
    """Return the penalised training loss."""
    features, targets = data
    gap = features @ x - targets
    return gap @ gap / targets.size / 2 + jnp.exp(theta) @ x**2 / 2


INNER = itd.Minimization(loss)


class Solver(BaseSolver):
    """Steps along the hypergradient; the inner problem is solved by gradient descent."""

    name = "iterdiff"
    requirements = ["pip::iterdiff"]
    sampling_strategy = "iteration"
    parameters = {"mode": ["implicit", "unrolled"], "step_size": [1.0]}

    def set_objective(self, train, validation):
        """Compile one step."""
        jax.config.update("jax_enable_x64", True)
        data = tuple(map(jnp.asarray, train))
        features, targets = map(jnp.asarray, validation)
        largest = float(np.linalg.eigvalsh(train[0].T @ train[0] / len(train[1]))[-1])
        mode = {"implicit": itd.Implicit(), "unrolled": itd.Unrolled()}[self.mode]
        stop = itd.ResidualBelow(rtol=1e-6, max_steps=5000)

        def outer(theta):
            algorithm = itd.GradientDescent(1 / (largest + jnp.exp(jnp.max(theta))))
            start = jnp.zeros(theta.size)
            run = (INNER, algorithm, start, theta)
            x = itd.solve(*run, stop=stop, mode=mode, args=data).x
            gap = features @ x - targets
            return gap @ gap / targets.size / 2

        gradient = jax.jit(jax.grad(outer))
        self.step = lambda theta: theta - self.step_size * gradient(theta)
        self.start = jnp.zeros(train[0].shape[1])
        self.step(self.start).block_until_ready()

    def run(self, n_iter):
        """Take `n_iter` steps."""
        theta = self.start
        for _ in range(n_iter):
            theta = self.step(theta)
        self.theta = np.asarray(theta)

    def get_result(self):
        """Return the log-penalties."""
        return {"theta": self.theta}
