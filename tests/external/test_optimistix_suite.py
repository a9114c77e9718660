"""optimistix's own derivative tests, with our implicit mode in place of its `ImplicitAdjoint`.

``ITERDIFF_OPTIMISTIX_TESTS=/path/to/optimistix`` names a checkout; its ``tests`` run unmodified and
need diffrax. Tests of the installed package are in ``tests/adapters/``.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import optimistix as optx
import pytest

from tests.external import optimistix_plugin
from tests.external.suites import run_suite

CHECKOUT = os.environ.get("ITERDIFF_OPTIMISTIX_TESTS")
FILES = ("test_fixed_point.py", "test_root_find.py", "test_minimise.py")


def test_complex_least_squares_problems_use_our_derivative():
    adjoint = optimistix_plugin.Ours()
    before = optimistix_plugin.calls["apply"]

    @jax.jit
    def run(z):
        def root(z):  # x^2 conj(x) = z, not holomorphic; the solution is x = z / |z|^(2/3)
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
@pytest.mark.parametrize("name", FILES)
def test_their_own_derivative_tests(name):
    run_suite(Path(CHECKOUT or ""), "optimistix_plugin", [f"tests/{name}"], "-k", "jvp")
