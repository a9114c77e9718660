"""Newton corrections of an answer before it is differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd

DESCENT = itd.GradientDescent(0.3)
FREE = itd.Minimization(lambda x, theta: (x[0] - theta) ** 2 + 0 * x[1])
"""The second unknown is free: the Jacobian of the residual is singular."""
BENT = itd.Minimization(lambda x, theta: jnp.sum(jnp.sqrt(1 + (x - theta) ** 2)))
"""Newton's method goes from x to -x**3 (theta = 0): away, where ``|x| > 1``."""
CUBIC = itd.Minimization(lambda x, theta: x**4 / 4 + x - theta * x)
"""The minimiser solves ``x**3 = theta - 1``."""


def run(problem, x0, mode, steps=8, theta=0.0, **options):
    return itd.solve(problem, DESCENT, x0, theta, stop=itd.Steps(steps), mode=mode, **options)


@pytest.mark.parametrize("throw", [True, False])
@pytest.mark.parametrize("problem, x0", [(FREE, [1.0, 0.0]), (BENT, [5.0, 5.0])])
def test_a_correction_that_does_not_help_is_not_made(problem, x0, throw):
    plain = run(problem, jnp.array(x0), itd.Implicit(), throw=throw)
    for mode in (itd.Implicit(refine=3), itd.Checked(itd.Implicit(refine=3))):
        refined = run(problem, jnp.array(x0), mode, throw=throw)
        np.testing.assert_array_equal(refined.x, plain.x)
        assert refined.status == plain.status and refined.residual_norm == plain.residual_norm


def test_corrections_end_with_the_first_that_does_not_help():
    mode = itd.Implicit(refine=10**6)
    x, slope = jax.value_and_grad(lambda theta: run(CUBIC, 1.5, mode, 3, theta).x)(2.0)
    np.testing.assert_allclose([x, slope], [1.0, 1 / 3], rtol=1e-12)
