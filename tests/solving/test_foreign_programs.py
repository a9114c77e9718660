"""Solvers of other libraries through `implicit`; a solver that is not installed is skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.solving.foreign_programs import SOLVERS, G, Q

PROGRAM = itd.QuadraticProgram(Q, lambda t: t["c"], G=G, h=lambda t: t["h"])
THETA = {"c": jnp.array([-1.0, 1.0, -1.5]), "h": jnp.array([0.0, 0.0, 0.0, 1.0])}


def exact(theta):
    """Return the solution with x_1 at its bound and the sum of all at its own."""
    rows = jnp.asarray(G)[jnp.array([1, 3])]
    kkt = jnp.block([[jnp.asarray(Q), rows.T], [rows, jnp.zeros((2, 2))]])
    right = jnp.concatenate([-theta["c"], theta["h"][jnp.array([1, 3])]])
    return jnp.linalg.solve(kkt, right)[:3]


@pytest.mark.parametrize("package", SOLVERS)
def test_a_foreign_solver_of_quadratic_programs(package):
    pytest.importorskip(package)
    solver = itd.implicit(PROGRAM)(SOLVERS[package])
    found = jax.jit(jax.jacobian(lambda theta: solver(jnp.zeros(3), theta)))(THETA)
    wanted = jax.jacobian(exact)(THETA)
    np.testing.assert_allclose(solver(jnp.zeros(3), THETA), exact(THETA), atol=1e-6)
    for name in THETA:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6)
