"""Estimates where Newton steps mislead: noise, scales, cancellation, other roots, kinks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.accuracy.reasons import FLOOR, ONE_SIDED, REPELLED
from tests.helpers import compiled


def jittered(value, x, size):
    """Return `value` with an error that looks random, and no derivative of it."""
    place = 1e5 * jnp.arange(x.size, dtype=x.dtype)
    return value * (1 + size * jnp.sin(1e9 * jax.lax.stop_gradient(x) + place))


def in_single(value):
    """Return a cosine that is computed in float32."""
    return jnp.cos(value.astype("float32")).astype(value.dtype)


NOISY = {
    "jitter": lambda x, theta: jittered(jnp.cos(x + theta) / 2, x, 1e-6),
    "single": lambda x, theta: in_single(x + theta) / 2,
}


@pytest.mark.parametrize("name", NOISY)
def test_noise_of_the_residual_is_measured(name):
    noisy = itd.FixedPoint(NOISY[name])
    theta = jnp.array([0.1, 0.5, 0.9])

    @compiled
    def judged(theta):
        def solution(theta):
            stop = itd.Steps(60)
            return itd.solve(noisy, itd.Picard(), jnp.zeros(3), theta, stop=stop).x

        jacobian, x = jax.jacfwd(lambda t: (solution(t),) * 2, has_aux=True)(theta)
        slope = -jnp.sin(x + theta) / 2
        return itd.derivative_error(noisy, x, theta, jacobian), jacobian, slope / (1 - slope)

    estimate, jacobian, right = judged(theta)
    error = np.linalg.norm(jacobian - np.diag(right)) / np.linalg.norm(right)
    assert error < 1e-5
    assert not estimate.exceeds(1e-3)
    # The noise limits what is known of the error.
    assert estimate.exceeds(1e-9)
    assert estimate.reason_code == FLOOR and not estimate.trusted


def test_a_derivative_that_is_right_to_rounding_is_trusted():
    problem = itd.RootFinding(lambda x, theta: jnp.sinh(x) - theta)
    theta = jnp.array([0.3, 0.9])
    x = jnp.arcsinh(theta)
    estimate = itd.derivative_error(problem, x, theta, jnp.diag(1 / jnp.sqrt(1 + theta**2)))
    assert estimate.trusted and estimate.upper < 1e-14
    assert estimate.upper == estimate.absolute + estimate.uncertainty


@pytest.mark.parametrize("size", [1.0, 1e5])
def test_a_large_unknown_does_not_hide_a_small_one(size):
    def residual(x, theta):
        return jnp.stack([1e-3 * (x[0] - size * theta), jnp.exp(x[1]) - theta])

    problem, theta = itd.RootFinding(residual), jnp.array(1.0)
    x = jnp.array([0.9 * size, 6.0])  # log(1) = 0 is six Newton steps away

    def loss(x, theta):
        return jnp.tanh(x[1] - 3) + 0 * theta

    estimate = itd.derivative_error(problem, x, theta, 0.0, loss=loss, near=np.inf)
    assert estimate.exceeds(1.0) and not estimate.trusted


def test_terms_that_cancel_are_part_of_the_uncertainty():
    problem = itd.RootFinding(lambda x, theta: x - jnp.array([1.0, 1 / 3], "float32") * theta)
    theta = jnp.float32(1.0)
    x = jnp.array([1.0, 1 / 3], "float32") * theta
    w = jnp.array([1 / 3, -1.0], "float32")
    given = jnp.sum(w * x)  # is zero but for rounding
    estimate = itd.derivative_error(problem, x, theta, given, cotangent=w)
    assert estimate.exceeds(1e-2)
    assert estimate.uncertainty > 1e-8


LOGISTIC = itd.FixedPoint(lambda x, theta: theta * x * (1 - x))


@pytest.mark.parametrize("inner", [itd.Implicit(), itd.Unrolled()], ids=["implicit", "unrolled"])
def test_a_root_that_the_iteration_leaves_is_found_out(inner):
    def loss(theta, report, steps):
        mode = itd.Checked(inner, on_failure="nan", report=report)
        run = LOGISTIC, itd.Picard(), jnp.array(1e-3), theta
        return itd.solve(*run, stop=itd.Steps(steps), mode=mode).x

    @compiled
    def reported(theta):
        judged = itd.value_and_grad_with_report(loss)
        return judged(theta, 2), judged(theta, 300)

    (_, early, left), (_, late, stayed) = reported(jnp.array(2.5))
    assert np.isnan(early) and left.reason_code == REPELLED
    assert late == pytest.approx(1 / 2.5**2, rel=1e-9) and not stayed.flagged


BENDS = {
    "abs": jnp.abs,
    "relu": jax.nn.relu,
    "max": lambda v: jnp.maximum(v, 0.2 * v),
    "where": lambda v: jnp.where(v > 0, v, 0.0),
    "huber": lambda v: jnp.clip(v, 0.0, 1.0),
}


@pytest.mark.parametrize("name", BENDS)
def test_a_kink_of_any_problem_is_found(name):
    # The bends are linear on each side of zero: x = theta / (1 + w bend'), with a kink at zero.
    bend, weights = BENDS[name], jnp.array([0.3, 0.15])
    problem = itd.RootFinding(lambda x, theta: x - theta + weights * bend(x))

    @compiled
    @jax.vmap
    def judged(theta):
        scale = 1 + weights * jax.vmap(jax.grad(bend))(theta)
        estimate = itd.derivative_error(problem, theta / scale, theta, jnp.diag(1 / scale))
        return estimate.exceeds(1e-2), estimate.reason_code

    exceeds, reason = judged(jnp.array([[0.0, 0.7], [1e-4, 0.7], [-0.1, 0.7]]))
    assert exceeds.tolist() == [True, False, False]
    assert reason[0] == ONE_SIDED


def test_the_kink_is_the_one_that_check_derivative_finds():
    problem = itd.FixedPoint(lambda x, theta: 0.5 * x + jnp.abs(theta))  # a kink in theta alone
    for theta, kinked in ((0.0, True), (0.3, False)):
        run = problem, itd.Picard(), jnp.array(0.0), jnp.array(theta)
        x = itd.solve(*run, stop=itd.Steps(60)).x
        estimate = itd.derivative_error(problem, x, theta, 2.0)
        assert (estimate.reason_code == ONE_SIDED) == kinked
        assert itd.check_derivative(*run, stop=itd.Steps(60)).ok == (not kinked)


@jax.numpy_dtype_promotion("standard")  # as users have it
def test_an_empty_leaf_and_weak_types_are_no_obstacle():
    mode = itd.Checked(itd.Implicit(), on_failure="nan")
    problem = itd.Minimization(lambda x, th: jnp.sum((x - th["t"]) ** 2) + jnp.sum(th["e"]))

    def loss(theta, x0):
        run = problem, itd.GradientDescent(0.3), x0, theta
        return jnp.sum(itd.solve(*run, stop=itd.Steps(50), mode=mode).x)

    slope = jax.grad(loss)({"t": 2.0, "e": jnp.zeros(0)}, jnp.zeros(2, "float32"))
    assert slope["t"] == pytest.approx(2.0, rel=1e-5) and slope["e"].shape == (0,)
    mixed = [jnp.ones(2, "float32"), jnp.array(1.0)]  # the second is weakly typed
    apart = itd.Minimization(lambda x, t: sum(jnp.sum((leaf - t) ** 2) for leaf in x))
    estimate = itd.derivative_error(apart, mixed, jnp.ones(()), [jnp.ones(2), jnp.ones(())])
    assert estimate.absolute < 1e-6
