"""Late starts whose length is measured at the end of the run."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.helpers import compiled

RATE = 0.5
PROBLEM = itd.FixedPoint(lambda x, theta: RATE * x + theta)  # x* = theta / (1 - RATE)


@pytest.mark.parametrize("checkpoint", ["iterates", "log"])
@pytest.mark.parametrize("stop", [itd.Steps(40), itd.ResidualBelow(1e-9, max_steps=60)])
def test_as_many_steps_are_differentiated_as_matter(stop, checkpoint):
    def slopes(theta, rtol):
        def final(theta):
            mode = itd.Unrolled(last="auto", rtol=rtol, checkpoint=checkpoint)
            return itd.solve(PROBLEM, itd.Picard(), jnp.array(0.0), theta, stop=stop, mode=mode).x

        return jax.grad(final)(theta), jax.jvp(final, (theta,), (1.0,))[1]

    found = compiled(lambda theta: [slopes(theta, rtol) for rtol in (0.1, 1e-4)])(3.0)
    # Powers of the rate fall below the tolerance after 4 and 14 steps.
    for (reverse, forward), count in zip(found, (4, 14), strict=True):
        expected = (1 - RATE**count) / (1 - RATE)
        np.testing.assert_allclose([reverse, forward], expected, rtol=1e-12)


def test_of_a_short_run_all_steps_matter():
    def final(theta):
        mode = itd.Unrolled(last="auto")
        return itd.solve(
            PROBLEM, itd.Picard(), jnp.array(0.0), theta, stop=itd.Steps(3), mode=mode
        ).x

    np.testing.assert_allclose(jax.grad(final)(3.0), 1 + RATE + RATE**2, rtol=1e-12)


def test_where_all_steps_matter_so_does_the_start():
    # The steps of conjugate gradients see the right-hand side only through the first residual.
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    system = itd.LinearSystem(lambda x, _: matrix @ x, lambda theta: theta, positive_definite=True)

    def final(theta):
        mode, stop = itd.Unrolled(last="auto"), itd.Steps(6)
        return itd.solve(
            system, itd.ConjugateGradient(), jnp.zeros(2), theta, stop=stop, mode=mode
        ).x

    found = compiled(jax.jacrev(final))(jnp.ones(2))
    np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-10)


@pytest.mark.parametrize("rtol", [0.0, 1.0, 2.0, float("nan")])
def test_a_tolerance_that_leaves_no_step_is_refused(rtol):
    with pytest.raises(ValueError, match="`rtol`"):
        itd.Unrolled(last="auto", rtol=rtol)


def final_of(algorithm, mode):
    system = itd.LinearSystem(lambda x, _: 2.0 * x, lambda theta: theta, positive_definite=True)
    run = (system, algorithm, jnp.zeros(2))
    return lambda theta: itd.solve(*run, theta, stop=itd.Steps(3), mode=mode).x


@pytest.mark.parametrize("algorithm", [itd.ConjugateGradient(), itd.GMRES(2)])
def test_last_steps_that_do_not_see_theta_are_refused(algorithm):
    for mode in (itd.OneStep(), itd.Unrolled(last=3)):
        with pytest.raises(ValueError, match="`last`"):
            final_of(algorithm, mode)(jnp.ones(2))
    # The advice of the message
    for advised in (itd.Implicit(), itd.Unrolled()):
        slope = jax.jvp(final_of(algorithm, advised), (jnp.ones(2),), (jnp.ones(2),))[1]
        np.testing.assert_allclose(slope, 0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("problem", "algorithm"),
    [
        (PROBLEM, itd.Anderson(1)),
        (itd.RootFinding(lambda x, theta: x + x**2 - theta), itd.Broyden()),
    ],
)
def test_one_step_of_a_step_that_moves_late_is_not_zero(problem, algorithm):
    def final(theta):
        stop, mode = itd.Steps(3), itd.OneStep()
        return itd.solve(problem, algorithm, jnp.array(0.3), theta, stop=stop, mode=mode).x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Anderson's caveat
        found = jax.jvp(final, (1.0,), (1.0,))[1]
    assert found > 0.1
