"""Late starts whose length is measured at the end of the run."""

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
