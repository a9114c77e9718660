"""Spectra estimated from products: eigenvalues, symmetry, and maps without bound."""

import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff.linalg.spectrum import probe

LIKE = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}


def test_eigenvalues_of_a_symmetric_map_of_pytrees():
    found = probe(lambda v: {"a": 2 * v["a"], "b": -3 * v["b"]}, LIKE)
    assert found.exact
    np.testing.assert_allclose(np.sort(found.values.real), [-3, 2], rtol=1e-12)
    assert found.radius == pytest.approx(3.0)
    assert found.asymmetry < 1e-15


def test_the_extreme_eigenvalues_come_first():
    diagonal = jnp.linspace(0.0, 1.0, 500) ** 2
    found = probe(lambda v: diagonal * v, diagonal, products=40)
    assert not found.exact
    assert found.values.shape == (40,)
    assert 0.999 < found.radius <= 1 + 1e-12


def test_complex_eigenvalues_and_asymmetry():
    rotation = jnp.array([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 0.5]])
    found = probe(lambda v: rotation @ v, jnp.zeros(3))
    assert found.exact
    assert found.radius == pytest.approx(1.0)
    assert np.max(found.values.imag) == pytest.approx(0.8)
    assert found.asymmetry > 1e-2


def test_products_that_overflow_make_the_spectrum_infinite():
    found = probe(lambda v: 1e200 * v, jnp.zeros(3))
    assert found.radius == np.inf
    assert found.asymmetry == np.inf
