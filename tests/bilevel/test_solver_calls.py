"""Solvers that JAX cannot trace, with ``@iterdiff.implicit``, inside outer runs."""

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

PROBLEM = itd.RootFinding(lambda x, theta: x**3 + x - theta)


def loss(x, theta):
    return (x - 0.5) ** 2


@itd.implicit(PROBLEM)
def roots(x0, theta):
    return np.real(np.roots([1.0, 0.0, 1.0, -np.asarray(theta)])[-1]).astype(x0.dtype)


@itd.implicit(PROBLEM)
def two_digits(x0, theta):
    return np.round(np.asarray(roots.__wrapped__(x0, theta)), 2)


def test_a_solver_is_called_and_corrected():
    run = loss, PROBLEM, roots, jnp.array(0.0), jnp.array(2.0)  # the root is 1
    found = itd.bilevel.hypergradient(*run, rtol=1e-8)
    assert found.status == itd.Status.CONVERGED
    np.testing.assert_allclose(found.gradient, 2 * 0.5 / 4, rtol=1e-10)
    for solver in (roots, two_digits):
        result = itd.bilevel.minimize(loss, PROBLEM, solver, jnp.array(0.0), jnp.array(2.0))
        assert result.status == itd.bilevel.Ending.STATIONARY
        np.testing.assert_allclose(result.theta, 0.5**3 + 0.5, atol=1e-3)


def test_what_it_cannot_do_is_named():
    run = loss, itd.Minimization(lambda x, theta: (x - theta) ** 2), roots, 0.0, 2.0
    with pytest.raises(ValueError, match="`hessian_free`"):
        itd.bilevel.hypergradient(*run, hessian_free="penalty")
    with pytest.raises(ValueError, match="`args`"):
        itd.bilevel.hypergradient(*run, args=jnp.ones(2))
