"""Constrained inner problems: hypergradients through the KKT conditions, and their edges."""

import jax
import jax.numpy as jnp
import numpy as np

import iterdiff as itd

GAP, WANTED = 1.2, jnp.array([0.8, 0.2])
PORTFOLIO = itd.QuadraticProgram(
    Q=lambda theta: jnp.exp(theta) * jnp.eye(2),
    c=jnp.array([-GAP, 0.0]),
    A=jnp.ones((1, 2)),
    b=jnp.ones(1),
    G=-jnp.eye(2),
    h=jnp.zeros(2),
)
"""Two shares whose sum is one: the first is (1 + GAP exp(-theta)) / 2, and one at most."""


def loss(x, theta):
    return jnp.sum((x - WANTED) ** 2) / 2


def closed(theta):
    first = (1 + GAP * jnp.exp(-theta)) / 2
    return loss(jnp.stack([first, 1 - first]), theta)


def found_at(theta):
    run = loss, PORTFOLIO, itd.ADMM(), jnp.zeros(2), jnp.asarray(theta)
    return itd.bilevel.hypergradient(*run, rtol=1e-6)


def test_a_quadratic_program():
    value, gradient = jax.value_and_grad(closed)(1.0)
    found = found_at(1.0)
    assert found.status == itd.Status.CONVERGED
    assert found.x.shape == (2,)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-6)
    np.testing.assert_allclose(found.value, value, rtol=1e-10)
    result = itd.bilevel.minimize(loss, PORTFOLIO, itd.ADMM(), jnp.zeros(2), jnp.array(1.0))
    assert result.status == itd.bilevel.Ending.STATIONARY
    np.testing.assert_allclose(result.theta, np.log(GAP / 0.6), atol=1e-4)
    np.testing.assert_allclose(result.x, WANTED, atol=1e-4)


def test_an_edge_of_a_constraint_has_one_sided_derivatives():
    at_edge = found_at(np.log(GAP))  # x = (1, 0), with the multiplier zero
    assert not at_edge.trusted
    assert "One-sided" in at_edge.reason
    beyond = found_at(np.log(GAP) - 0.5)  # the constraint holds x where it is
    assert beyond.trusted and abs(beyond.gradient) < 1e-12
    run = loss, PORTFOLIO, itd.ADMM(), jnp.zeros(2), jnp.array(np.log(GAP))
    result = itd.bilevel.minimize(*run)
    # Either a step to the side that leads down, or a refusal in words.
    assert result.status in (itd.bilevel.Ending.STATIONARY, itd.bilevel.Ending.AT_KINK)
    assert result.value <= float(closed(np.log(GAP)))


def test_nonlinear_constraints():
    """The projection onto a disk whose radius is learned."""
    point = jnp.array([3.0, 4.0])
    problem = itd.ConstrainedMinimization(
        lambda x, theta: jnp.sum((x - point) ** 2) / 2,
        inequality=lambda x, theta: jnp.sum(x**2) - jnp.exp(2 * theta),
    )
    inner = itd.AugmentedLagrangian(itd.Newton())
    run = loss, problem, inner, jnp.zeros(2), jnp.array(0.3)
    found = itd.bilevel.hypergradient(*run, rtol=1e-6)
    exact = jax.grad(lambda theta: loss(jnp.exp(theta) * point / 5, theta))(0.3)
    np.testing.assert_allclose(found.gradient, exact, rtol=1e-6)
    assert bool(found.trusted)
