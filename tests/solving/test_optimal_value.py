"""The value of a minimum: orders of its errors, its report, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

PROBLEM = itd.Minimization(lambda x, theta: jnp.sum(jnp.cosh(x - theta) + x**2 * theta**2 / 2))
THETA = jnp.array([0.7, 1.3])


def value(theta, start, report=None, *, corrected=True, steps=60):
    return itd.optimal_value(
        PROBLEM,
        itd.Newton() if steps == 60 else itd.GradientDescent(0.1),
        start,
        theta,
        stop=itd.Steps(steps),
        corrected=corrected,
        report=report,
    )


def test_orders_of_the_errors():
    """Halve the distance from the minimiser: errors fall by powers of two."""
    minimiser = itd.solve(
        PROBLEM, itd.Newton(), jnp.zeros(2), THETA, stop=itd.ResidualBelow(1e-14)
    ).x
    exact = PROBLEM.objective(minimiser, THETA)
    slope = jax.grad(PROBLEM.objective, argnums=1)(minimiser, THETA)

    def errors(distance, corrected):
        start = minimiser + distance * jnp.array([1.0, -0.6])

        def of(theta):
            return itd.optimal_value(
                PROBLEM,
                itd.GradientDescent(1e-12),  # stays where it starts
                start,
                theta,
                stop=itd.Steps(1),
                corrected=corrected,
            )

        found, gradient = jax.value_and_grad(of)(THETA)
        return jnp.abs(found - exact), jnp.linalg.norm(gradient - slope)

    distances = jnp.array([4e-3, 2e-3])
    for corrected, orders in ((False, (2, 1)), (True, (3, 2))):
        measured = jax.vmap(lambda d, corrected=corrected: errors(d, corrected))(distances)
        for error, order in zip(measured, orders, strict=True):
            assert abs(np.log2(error[0] / error[1]) - order) < 0.15


def test_second_derivative_is_that_of_the_solution():
    found = jax.hessian(lambda t: value(t, jnp.zeros(2)))(THETA)

    def slope(theta):
        x = itd.solve(PROBLEM, itd.Newton(), jnp.zeros(2), theta, stop=itd.Steps(60)).x
        return jax.grad(PROBLEM.objective, argnums=1)(x, theta)

    np.testing.assert_allclose(found, jax.jacfwd(slope)(THETA), rtol=1e-9)


@pytest.mark.parametrize("corrected", (True, False))
def test_the_report_is_the_error_of_the_gradient(corrected):
    graded = jax.jit(
        itd.value_and_grad_with_report(
            lambda t, report: 3 * value(t, jnp.zeros(2), report, corrected=corrected, steps=12)
        )
    )
    _, gradient, report = graded(THETA)
    true = 3 * jax.grad(lambda t: value(t, jnp.zeros(2)))(THETA)
    error = jnp.linalg.norm(gradient - true) / jnp.linalg.norm(true)
    assert bool(report.trusted)
    assert 0.5 < float(report.relative / error) < 2
    assert bool(report.flagged) == (not corrected)


def test_a_lasso_with_its_penalty():
    data = jnp.array([3.0, -0.4, 1.5])
    problem = itd.CompositeMinimization(
        lambda x, theta: jnp.sum((x - data) ** 2) / 2,
        lambda x, step, theta: itd.prox.soft_threshold(x, step * theta),
        lambda x, theta: theta * jnp.sum(jnp.abs(x)),
    )

    def of(theta, problem=problem):
        return itd.optimal_value(
            problem, itd.ProximalGradient(0.5), data, theta, stop=itd.ResidualBelow(1e-12)
        )

    # The shrunk unknowns cost theta**2 / 2 + theta * (|b| - theta) each, the zero one b**2 / 2.
    found, slope = jax.value_and_grad(of)(jnp.array(1.0))
    np.testing.assert_allclose(found, 0.08 + 2.5 + 1.0, rtol=1e-10)
    np.testing.assert_allclose(slope, 2.0 + 0.5, rtol=1e-10)
    with pytest.raises(ValueError, match="`problem`.*`penalty`"):
        of(1.0, itd.CompositeMinimization(problem.smooth, problem.prox))


def test_a_root_finding_has_no_value():
    problem = itd.RootFinding(lambda x, theta: x - theta)
    with pytest.raises(ValueError, match="`problem`"):
        itd.optimal_value(problem, itd.Newton(), 0.0, 1.0, stop=itd.Steps(1))
