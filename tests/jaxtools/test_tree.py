"""Norms at every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.jaxtools import tree
from iterdiff.linalg.least_squares import safe_length
from tests.helpers import compiled

SCALES = {
    "float32": [1e-36, 1e-23, 1e-13, 1.0, 1e13, 1e23, 1e37],
    "float64": [1e-305, 1e-180, 1e-100, 1.0, 1e100, 1e180, 1e307],
}


@pytest.mark.parametrize("dtype", SCALES)
def test_norm_and_its_derivative_at_every_scale(dtype):
    def one(scale):
        v = {"a": jnp.array([3.0, 0.0], dtype) * scale, "b": jnp.array(-4.0, dtype) * scale}
        along = {"a": jnp.ones(2, dtype), "b": jnp.ones((), dtype)}
        value, slope = jax.jvp(tree.norm, (v,), (along,))
        return value / scale, slope, jax.grad(tree.norm)(v), safe_length(v["a"]) / scale

    value, slope, gradient, length = compiled(jax.vmap(one))(jnp.array(SCALES[dtype], dtype))
    close = {"rtol": 8 * jnp.finfo(dtype).eps}
    np.testing.assert_allclose(value, 5.0, **close)
    np.testing.assert_allclose(length, 3.0, **close)
    np.testing.assert_allclose(slope, -0.2, **close)
    np.testing.assert_allclose(gradient["a"], [[0.6, 0.0]] * len(value), **close)
    np.testing.assert_allclose(gradient["b"], -0.8, **close)


def test_second_derivative_of_a_norm_at_every_scale():
    def hessian(scale):
        return jax.hessian(tree.norm)(jnp.array([3.0, -4.0], "float32") * scale) * scale

    found = compiled(jax.vmap(hessian))(jnp.array([1e-30, 1e-13, 1.0, 1e13, 1e30], "float32"))
    exact = np.array([[0.128, 0.096], [0.096, 0.072]])
    np.testing.assert_allclose(found, np.broadcast_to(exact, found.shape), rtol=1e-5)


def test_norm_of_zero_and_of_what_is_not_finite():
    value, gradient = jax.value_and_grad(tree.norm)(jnp.zeros(3))
    assert value == 0 and not gradient.any()
    assert tree.norm([jnp.zeros(0), jnp.ones(4)]) == 2
    several = tree.norms({"a": jnp.ones(4), "b": jnp.zeros(())}, {"a": jnp.zeros(4), "b": 3.0})
    assert [float(length) for length in several] == [2, 3]
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        assert jnp.isnan(tree.norm(jnp.array([bad, 1.0])))
