"""optimistix's own derivative tests, with our implicit mode in place of its `ImplicitAdjoint`.

``ITERDIFF_OPTIMISTIX_TESTS=/path/to/optimistix`` names a checkout whose ``tests`` run unmodified
(they need diffrax). The tests that need only the installed package are in ``tests/adapters/``.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import optimistix as optx
import pytest

from tests.external import optimistix_plugin
from tests.external.suites import SUITES, check_file

CHECKOUT = os.environ.get("ITERDIFF_OPTIMISTIX_TESTS")


def test_complex_and_least_squares_problems_differentiate_through_ours():
    adjoint = optimistix_plugin.Ours()
    before = optimistix_plugin.calls["apply"]

    @jax.jit
    def run(z):
        def root(z):  # x^2 conj(x) = z, which is not holomorphic: x = z / |z|^(2/3)
            newton = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12)
            function = lambda x, z: x**2 * jnp.conj(x) - z  # noqa: E731
            return optx.least_squares(function, newton, 1 + 0.5j, z, adjoint=adjoint).value

        return jax.jvp(root, (z,), (1.0 + 2.0j,))

    with pytest.warns(UserWarning, match="Complex support in Optimistix"):
        x, slope = run(jnp.array(2.0 + 1.0j))
    truth, by_hand = jax.jvp(
        lambda z: z / jnp.abs(z) ** (2 / 3), (jnp.array(2.0 + 1.0j),), (jnp.array(1.0 + 2.0j),)
    )
    assert jnp.abs(x - truth) < 1e-9
    assert jnp.abs(slope - by_hand) < 1e-8
    assert optimistix_plugin.calls["apply"] > before


@pytest.mark.skipif(CHECKOUT is None, reason="ITERDIFF_OPTIMISTIX_TESTS names no checkout")
@pytest.mark.parametrize("name", SUITES["optimistix"].files)
def test_their_own_derivative_tests(name):
    check_file(Path(CHECKOUT or ""), "optimistix", name)
