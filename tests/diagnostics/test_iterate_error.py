"""`iterate_derivative_error` against the closed form of two steps of gradient descent."""

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.helpers import compiled

# x_{t+1} = x_t - h (a x_t - theta), from 0: x_2 = h (1 + (1 - h a)) theta
STEP, CURVATURES = 0.25, np.array([1.0, 2.0])
SLOPES = STEP * (2 - STEP * CURVATURES)
THETA, DIRECTION = np.array([1.0, 3.0]), np.array([0.5, -1.0])


def objective(x, theta):
    return jnp.sum(CURVATURES * x**2) / 2 - theta @ x


def loss(x, theta):
    return jnp.sum(x**2) / 2 + theta[0]


EXACT = {
    "jacobian": ({}, np.diag(SLOPES)),
    "tangent": ({"tangent": DIRECTION}, SLOPES * DIRECTION),
    "cotangent": ({"cotangent": DIRECTION}, SLOPES * DIRECTION),
    "loss": ({"loss": loss}, SLOPES**2 * THETA + np.array([1.0, 0.0])),
}


def error(derivative, **options):
    run = (itd.Minimization(objective), itd.GradientDescent(STEP), jnp.zeros(2), jnp.array(THETA))
    return itd.iterate_derivative_error(*run, derivative, stop=itd.Steps(2), **options)


@pytest.mark.parametrize("name", EXACT)
def test_is_exact(name):
    options, exact = EXACT[name]
    options = {k: v if callable(v) else jnp.asarray(v) for k, v in options.items()}
    found = compiled(lambda derivative: error(derivative, **options))(jnp.asarray(1.5 * exact))
    np.testing.assert_allclose(found.corrected, exact, rtol=1e-12)
    np.testing.assert_allclose(found.absolute, 0.5 * np.linalg.norm(exact), rtol=1e-12)
    np.testing.assert_allclose(found.relative, 0.5, rtol=1e-12)
    assert found.uncertainty == 0 and found.trusted and found.reason == ""


def test_a_derivative_that_is_not_finite_is_not_trusted():
    found = error(jnp.full((2, 2), jnp.nan))
    assert not found.trusted and found.reason


def test_a_derivative_of_the_wrong_shape():
    with pytest.raises(ValueError, match="`derivative`"):
        error(jnp.zeros(2))


def test_at_most_one_keyword():
    with pytest.raises(ValueError, match="`tangent`"):
        error(jnp.zeros(2), tangent=jnp.ones(2), cotangent=jnp.ones(2))
