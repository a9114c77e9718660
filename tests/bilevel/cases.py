"""Outer problems whose truth is known, shared by the tests: each is compiled once."""

import jax
import jax.numpy as jnp

import iterdiff as itd

PROBLEM = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) + x**2 / 2))
"""Smooth, with a curved solution map; the condition number is that of a sum over three unknowns."""
DESCENT = itd.GradientDescent(0.1)
X0, THETA = jnp.zeros(3), jnp.array([0.3, 1.0, 2.0])


def loss(x, theta):
    return jnp.sum((x - 1.0) ** 2) / 2 + 0.05 * jnp.sum(theta**4)


def true_loss(theta):
    """Return the loss at the exact inner solution, differentiable."""
    x = itd.solve(PROBLEM, itd.Newton(), X0, theta, stop=itd.Steps(30)).x
    return loss(x, theta)


truth = jax.jit(jax.vmap(jax.value_and_grad(true_loss)))
