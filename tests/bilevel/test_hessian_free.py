"""Hypergradients by nudged inner problems: no second derivative, black boxes, error bars."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import iterdiff as itd
from tests.bilevel.cases import DESCENT, PROBLEM, THETA, X0, loss, truth


def bfgs(fun, x0, tol):
    return scipy.optimize.minimize(fun, x0, jac=True, method="BFGS", options={"gtol": tol})


def found_at(algorithm=DESCENT, problem=PROBLEM, **options):
    options = {"hessian_free": "penalty", **options}
    return itd.bilevel.hypergradient(loss, problem, algorithm, X0, THETA, **options)


@pytest.mark.parametrize("rtol", (1e-2, 1e-4, 1e-7))
def test_it_is_accurate_and_its_bars_hold(rtol):
    found = found_at(rtol=rtol)
    (value,), (gradient,) = truth(THETA[None])
    error = jnp.linalg.norm(found.gradient - gradient)
    assert found.status == itd.Status.CONVERGED
    assert error <= rtol * jnp.linalg.norm(gradient)
    assert jnp.linalg.norm(found.corrected - gradient) <= found.uncertainty
    assert jnp.abs(found.value - value) <= 2 * found.value_error
    assert not found.trusted or 0.5 < found.error / error < 2
    if rtol <= 1e-4:
        assert bool(found.trusted)
        again = found_at(rtol=rtol, state=found.state)
        assert int(again.counts.steps) < int(found.counts.steps) / 2


def test_no_second_derivative_is_taken():
    @jax.custom_jvp
    def once(x):
        return jnp.cosh(x)

    @jax.custom_jvp
    def slope(x):
        return jnp.sinh(x)

    @slope.defjvp
    def _(primals, tangents):
        raise AssertionError("a second derivative was taken")

    once.defjvp(lambda primals, tangents: (once(*primals), slope(*primals) * tangents[0]))
    problem = itd.Minimization(lambda x, theta: jnp.sum(once(x - theta) + x**2 / 2))
    found = found_at(problem=problem, rtol=1e-4)
    _, (gradient,) = truth(THETA[None])
    np.testing.assert_allclose(found.corrected, gradient, rtol=1e-4)
    with pytest.raises(AssertionError, match="second derivative"):
        found_at(problem=problem, hessian_free=None)


@pytest.mark.parametrize("algorithm", (DESCENT, bfgs))
def test_it_minimises(algorithm, tmp_path):
    run = loss, PROBLEM, algorithm, X0, THETA
    options = {"hessian_free": "penalty", "resume": tmp_path / "run.npz"}
    itd.bilevel.minimize(*run, **options, max_outer=2)
    result = itd.bilevel.minimize(*run, **options)
    exact = itd.bilevel.minimize(loss, PROBLEM, DESCENT, X0, THETA)
    assert result.status == itd.bilevel.Ending.STATIONARY
    np.testing.assert_allclose(result.theta, exact.theta, atol=1e-3)
    rows = result.log.arrays()
    values, _ = truth(jnp.asarray(rows["theta"]))
    assert np.all(np.diff(values[rows["accepted"]]) < 0)


def test_failures_and_wrong_arguments_are_named():
    lost = found_at(itd.GradientDescent(1e3))
    assert lost.status == itd.Status.DIVERGED
    assert found_at(rtol=1e-16).status == itd.Status.MAX_STEPS_REACHED
    for kind, name, given in (
        (ValueError, "`hessian_free`", {"hessian_free": "hessian"}),
        (ValueError, "`hessian_free`", {"problem": itd.RootFinding(lambda x, t: x - t)}),
        (TypeError, "algorithm", {"algorithm": 3}),
        (TypeError, "algorithm", {"algorithm": bfgs, "hessian_free": None}),
        (ValueError, "`algorithm`", {"algorithm": lambda fun, x0, tol: x0[:1]}),
    ):
        with pytest.raises(kind, match=name):
            found_at(**given)
    with pytest.raises(TypeError, match="hessian_free"):
        jax.jit(
            lambda theta: (
                itd.bilevel.hypergradient(
                    loss, PROBLEM, DESCENT, X0, theta, hessian_free="penalty"
                ).value
            )
        )(THETA)
