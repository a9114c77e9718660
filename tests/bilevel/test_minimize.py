"""Outer optimisation: it arrives, never goes uphill, its bars hold, and failures have names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import iterdiff as itd
from tests.bilevel.cases import DESCENT, PROBLEM, THETA, X0, loss, truth

RUN = (loss, PROBLEM, DESCENT, X0, THETA)
Ending = itd.bilevel.Ending


def minimize(*run, **options):
    with jax.numpy_dtype_promotion("standard"):  # optax's own code needs it
        return itd.bilevel.minimize(*(run or RUN), **options)


METHODS = {
    "backtracking": {},
    "lbfgs": {"method": itd.bilevel.LBFGS()},
    "adam": {"method": itd.bilevel.Optax(optax.adam(0.1)), "max_outer": 60},
    "box": {"lower": 0.2, "upper": jnp.array([1.2, 3.0, 9.0])},
    "box, lbfgs": {
        "method": itd.bilevel.LBFGS(),
        "lower": 0.2,
        "upper": jnp.array([1.2, 3.0, 9.0]),
    },
    "ball": {"projection": lambda t: t * jnp.minimum(1.0, 2.5 / jnp.linalg.norm(t))},
}


@pytest.mark.parametrize("name", METHODS)
def test_it_arrives_and_its_bars_hold(name):
    options = METHODS[name]
    result = minimize(**options)
    history = result.history
    values, gradients = truth(jnp.asarray(history.theta.values))
    accepted = history.accepted.values
    if name != "adam":
        assert result.status == Ending.STATIONARY
        assert np.all(np.diff(values[accepted]) < 0)  # never uphill, by a direct solve
    error = np.linalg.norm(history.gradient.values - gradients, axis=1)
    checked = history.trusted.values & (error > 1e-10)
    assert checked.sum() >= 5
    ratio = history.gradient_error.values[checked] / error[checked]
    assert np.all((ratio > 0.5) & (ratio < 2))
    away = np.abs(history.value.values - values)
    # The error of a value changes its sign now and then, where no estimate of it is sharp.
    assert np.mean(away <= 2 * history.value_error.values) >= 0.98
    # A projected gradient step from the end, with the true gradient, leads nowhere.
    theta, gradient = result.theta, truth(result.theta[None])[1][0]
    if "projection" in options:
        nearest = options["projection"](theta - gradient)
    else:
        nearest = jnp.clip(theta - gradient, options.get("lower"), options.get("upper"))
    limit = 0.1 if name == "adam" else 3e-4
    assert jnp.linalg.norm(theta - nearest) < limit * jnp.linalg.norm(truth(THETA[None])[1][0])


def test_a_budget_and_a_limit():
    short = minimize(budget=25)
    assert short.status == Ending.BUDGET_SPENT
    assert 25 <= short.gradients < 60
    assert minimize(max_outer=0).status == Ending.MAX_OUTER_REACHED
    one = minimize(budget=itd.bilevel.Budget(seconds=1e-9))
    assert (one.status, one.iterations) == (Ending.BUDGET_SPENT, 1)
    assert "budget" in one.message


def test_an_inner_run_that_is_too_short():
    result = minimize(*RUN[:2], itd.GradientDescent(1e-4), *RUN[3:], max_steps=1)
    assert result.status == Ending.INNER_INACCURATE
    assert result.status.failed
    np.testing.assert_array_equal(result.theta, THETA)


def test_a_loss_that_is_not_finite():
    def outer(x, theta):  # theta = 1 is the edge of its domain, behind the minimum
        return (x - 0.9) ** 2 + jnp.where(theta < 1, 0.0, jnp.nan)

    problem = itd.Minimization(lambda x, theta: (x - theta) ** 2 / 2)
    run = (outer, problem, itd.GradientDescent(0.5), jnp.array(0.0))
    result = minimize(*run, jnp.array(0.0))
    np.testing.assert_allclose(result.theta, 0.9, atol=1e-3)
    far = minimize(*run, jnp.array(2.0))
    assert far.status == Ending.INNER_FAILED
    assert float(far.theta) == 2.0


@pytest.mark.parametrize("power", [2, 4])
def test_an_inner_run_that_diverges(power):
    """Within steps, or slowly: while it goes on to decide on a step."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.standard_normal((2, 8, 2)))
    target = matrix @ jnp.ones(2) + rng.standard_normal((2, 8))

    def misfit(x, part):
        return jnp.mean(jnp.log1p((matrix[part] @ x - target[part]) ** 2))

    problem = itd.Minimization(
        lambda x, theta: misfit(x, 0) + jnp.sum(jnp.exp(theta) * x**power) / 2
    )
    run = lambda x, theta: misfit(x, 1), problem, itd.GradientDescent(40.0), jnp.zeros(2)
    result = minimize(*run, jnp.full(2, -2.0), max_outer=3)
    assert result.status == Ending.INNER_FAILED
    assert not result.trusted
    assert result.message == Ending.INNER_FAILED.advice  # nothing of a singular Jacobian
    np.testing.assert_array_equal(result.theta, -2.0)


def test_an_inner_problem_without_or_with_many_solutions():
    """The run ends with its reason, and theta stays."""
    start = jnp.full(3, 0.3), jnp.array(0.5)
    for objective in (
        lambda x, theta: theta * jnp.sum(x),  # unbounded
        lambda x, theta: jnp.sum(x) - (1 + theta**2) * jnp.sum(x**2) / 2,  # a maximum only
        lambda x, theta: (jnp.sum(x) - theta) ** 2 / 2,  # a plane of minima
    ):
        run = lambda x, theta: jnp.sum((x - 1) ** 2), itd.Minimization(objective), DESCENT
        result = minimize(*run, *start, max_steps=400)
        assert result.status.failed or result.status == Ending.AT_PRECISION
        assert not result.trusted
        assert "At the last theta:" in result.message
        assert float(result.theta) == 0.5


def test_at_a_kink_a_step_decreases_or_is_refused():
    """The solution is max(b - theta, 0), with a kink in the first unknown at theta = b."""
    b, target = jnp.array([1.0, 3.0]), jnp.array([0.5, 1.0])
    problem = itd.CompositeMinimization(
        lambda x, theta: jnp.sum((x - b) ** 2) / 2,
        lambda x, step, theta: itd.prox.soft_threshold(x, step * theta),
    )
    result = minimize(
        lambda x, theta: jnp.sum((x - target) ** 2),
        problem,
        itd.ProximalGradient(0.5),
        jnp.zeros(2),
        jnp.array([1.0, 1.0]),
    )
    # The known derivative in the first penalty is zero: only the second one moves.
    np.testing.assert_allclose(result.theta, [1.0, 2.0], atol=1e-3)
    assert "accepted: one-sided" in result.history.verdict.values
    assert result.status == Ending.AT_KINK
    assert "one-sided" in result.message.lower()
    assert float(result.value) == pytest.approx(0.25)


def test_wrong_arguments_are_named():
    cases = (
        (ValueError, "`lower`", {"lower": 1.0, "upper": 0.0}),
        (ValueError, "`theta0`", {"lower": 1.0}),
        (ValueError, "`projection`", {"projection": lambda t: t, "upper": 1.0}),
        (ValueError, "`upper`", {"upper": jnp.ones(2)}),
        (TypeError, "`budget`", {"budget": 1.5}),
        (ValueError, "`max_outer`", {"max_outer": -1}),
        (ValueError, "`args`", {"batched": True}),
    )
    for kind, name, options in cases:
        with pytest.raises(kind, match=name):
            minimize(**options)
    with pytest.raises(ValueError, match="`method`"):
        minimize(method=itd.bilevel.LBFGS(), projection=lambda t: t)
    with pytest.raises(TypeError, match="`loss`"):
        minimize(lambda x, theta: x, *RUN[1:])
    with pytest.raises(TypeError, match="minimize"):
        jax.jit(lambda theta: minimize(*RUN[:4], theta).theta)(THETA)


def test_a_progress_bar_and_a_picture(capsys):
    result = minimize(progress=True, max_outer=3)
    assert "loss" in capsys.readouterr().out
    figure = itd.bilevel.plot(result)
    assert len(figure.axes) == 3
    with pytest.raises(TypeError, match="`result`"):
        itd.bilevel.plot(None)
