"""Jacobians of stochastic gradient descent: the interval covers, and rates are those of theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

N = 20
A = jax.random.normal(jax.random.key(0), (N, 2)) + jnp.array([[1.0, 0.0]])
B = A @ jnp.array([1.0, -0.5]) + jax.random.normal(jax.random.key(1), (N,))
THETA = jnp.array([0.5, 1.0])
PROBLEM = itd.Minimization(
    lambda x, theta, i: jnp.mean((A[i] @ x - B[i]) ** 2) / 2 + jnp.sum(theta * x**2) / 2
)


def run(step_sizes, **options):
    options = {"samples": N, "steps": 2000, "chains": 64, **options}
    return itd.bilevel.unrolled_sgd(PROBLEM, jnp.zeros(2), THETA, step_sizes, **options)


def truth():
    normal = A.T @ A / N + jnp.diag(THETA)
    x = jnp.linalg.solve(normal, A.T @ B / N)
    return -jnp.linalg.solve(normal, jnp.diag(x))


def test_decreasing_steps_converge_at_the_rate_of_theory():
    found = run(lambda k: 4 / (k + 40))
    away = np.abs(found.jacobian[-1] - truth())
    assert np.all(away <= 2 * found.half_width[-1])
    late = found.steps >= 200  # the mean square distance falls like 1 / k, up to logarithms
    slope = np.polyfit(np.log(found.steps[late]), np.log(found.spread[late]), 1)[0]
    assert -0.65 < slope < -0.35


def test_the_noise_of_constant_steps_is_of_the_order_of_the_step():
    long, short = (run(lambda k, h=h: h) for h in (0.04, 0.01))
    ratio = long.spread[-1] ** 2 / short.spread[-1] ** 2
    assert 2 < ratio < 8  # 4 in the limit
    np.testing.assert_allclose(short.jacobian[-1], truth(), atol=3 * short.half_width[-1].max())


def test_full_batches_follow_gradient_descent():
    found = run(lambda k: 0.1, batch=N, steps=30, chains=2)
    assert np.all(found.half_width < 1e-14)

    def descended(theta):
        whole = itd.Minimization(lambda x, theta: PROBLEM.objective(x, theta, jnp.arange(N)))
        descent, stop = itd.GradientDescent(0.1), itd.Steps(30)
        return itd.solve(whole, descent, jnp.zeros(2), theta, stop=stop, mode=itd.Unrolled()).x

    np.testing.assert_allclose(found.jacobian[-1], jax.jacobian(descended)(THETA), rtol=1e-10)
    np.testing.assert_allclose(found.x[-1], descended(THETA), rtol=1e-10)


def test_wrong_arguments_are_named():
    for kind, name, options in (
        (ValueError, "`steps`", {"steps": 0}),
        (ValueError, "`chains`", {"chains": 1}),
        (ValueError, "`samples`", {"samples": 0}),
    ):
        with pytest.raises(kind, match=name):
            run(lambda k: 0.1, **options)
