"""Stochastic outer optimisation against closed forms: it arrives, and its intervals hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

Ending = itd.bilevel.Ending
N, M, P = 48, 40, 3
KEYS = jax.random.split(jax.random.key(5), 4)
A, C = jax.random.normal(KEYS[0], (N, P)), jax.random.normal(KEYS[1], (M, P))
TRUE = jnp.array([1.0, -1.0, 0.0])
B = A @ TRUE + jax.random.normal(KEYS[2], (N,))
D = C @ TRUE + 0.5 * jax.random.normal(KEYS[3], (M,))
THETA, X0 = jnp.array([-1.0, 0.0, 1.0]), jnp.zeros(P)


def objective(x, theta, i):
    return jnp.mean((A[i] @ x - B[i]) ** 2) / 2 + jnp.sum(jnp.exp(theta) * x**2) / 2


def loss(x, theta, j):
    return jnp.mean((C[j] @ x - D[j]) ** 2) / 2 + 1e-2 * jnp.sum(theta**2)


def true_loss(theta):
    x = jnp.linalg.solve(A.T @ A / N + jnp.diag(jnp.exp(theta)), A.T @ B / N)
    return loss(x, theta, jnp.arange(M))


PROBLEM = itd.Minimization(objective)
value_and_grad = jax.jit(jax.value_and_grad(true_loss))


@functools.cache
def minimum():
    def step(_, theta):
        return theta - 2.0 * value_and_grad(theta)[1]

    return jax.lax.fori_loop(0, 500, step, THETA)


METHODS = {
    "SOBA": itd.bilevel.SOBA(0.05, 0.05),
    "SABA": itd.bilevel.SABA(0.05, 0.3),
    "AmIGO": itd.bilevel.AmIGO(0.05, 0.3, inner_steps=3, adjoint_steps=3),
}


def minimize(method, theta=THETA, **options):
    options = {"samples": (N, M), "batch": 8, "steps": 200, "chains": 6, **options}
    return itd.bilevel.minimize_stochastic(loss, PROBLEM, X0, theta, method=method, **options)


@pytest.mark.parametrize("name", METHODS)
def test_the_interval_covers_the_closed_form(name):
    value, gradient = value_and_grad(THETA)
    held, tries = 0, 12
    for seed in range(tries):
        found = minimize(METHODS[name], max_rounds=0, key=seed)
        assert found.settled
        held += np.abs(np.asarray(found.gradient - gradient)) <= np.asarray(found.half_width) + 1e-9
        assert np.linalg.norm(found.half_width) < 0.3 * np.linalg.norm(gradient)
    # 36 numbers, each inside with probability 0.95: fewer than 29 has probability 1e-4.
    assert held.sum() >= 29


def test_variance_reduction_arrives():
    exact = minimum()
    result = minimize(METHODS["SABA"], max_rounds=60, rtol=1e-3)
    assert result.status in (Ending.STATIONARY, Ending.AT_PRECISION)
    np.testing.assert_allclose(result.theta, exact, atol=0.03)
    np.testing.assert_allclose(result.value, true_loss(exact), rtol=1e-4)
    history = result.history
    assert history.samples[-1] == result.samples
    assert np.all(np.diff(history.value) < 1e-3)


def test_the_batch_grows_where_the_interval_covers_zero():
    result = minimize(METHODS["SOBA"], minimum(), batch=4, steps=50, max_rounds=4, lower=-6.0)
    batches = result.history.batch.values
    assert batches[0] == 4 and result.batch > 4
    assert np.all(np.diff(batches) >= 0)
    grows = np.char.find(result.history.verdict.values.astype(str), "batch grows") >= 0
    assert np.all(batches[1:][grows[:-1]] > batches[:-1][grows[:-1]])
    assert np.all(result.history.theta.values >= -6)


def test_full_batches_have_no_noise():
    result = minimize(METHODS["SOBA"], batch=N, steps=400, max_rounds=0)
    _, gradient = value_and_grad(THETA)
    np.testing.assert_allclose(result.gradient, gradient, rtol=1e-3)
    assert np.linalg.norm(result.half_width) < 1e-12


def test_a_failure_keeps_the_last_good_theta():
    result = minimize(itd.bilevel.SOBA(5.0, 0.05), max_rounds=3)
    assert result.status == Ending.INNER_FAILED
    assert result.status.failed
    np.testing.assert_array_equal(result.theta, THETA)
    assert "step sizes" in result.message
    assert minimize(METHODS["SOBA"], max_rounds=2, budget=1).status == Ending.BUDGET_SPENT


def test_wrong_arguments_are_named():
    for kind, name, options in (
        (TypeError, "`samples`", {"samples": N}),
        (ValueError, "samples", {"samples": (0, M)}),
        (ValueError, "`batch`", {"batch": 0}),
        (ValueError, "`chains`", {"chains": 1}),
        (ValueError, "`lower`", {"lower": 2.0, "upper": 1.0}),
        (ValueError, "`theta0`", {"lower": 2.0}),
    ):
        with pytest.raises(kind, match=name):
            minimize(METHODS["SOBA"], **options)
    with pytest.raises(TypeError, match="`method`"):
        minimize(itd.bilevel.LBFGS())
    with pytest.raises(ValueError, match="`step_size`"):
        itd.bilevel.SOBA(-1.0, 0.1)
    with pytest.raises(TypeError, match="`problem`"):
        itd.bilevel.minimize_stochastic(
            loss,
            itd.RootFinding(lambda x, t: x - t),
            X0,
            THETA,
            samples=(N, M),
            method=METHODS["SOBA"],
        )
