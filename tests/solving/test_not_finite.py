"""NaN that no check can find beforehand: in traced parameters, and in data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.helpers import compiled

QUADRATIC = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
DESCENT = itd.GradientDescent(0.25)
X0, THETA, NAN = jnp.zeros(2), jnp.ones(2), np.array([1.0, np.nan])
MODES = {
    "implicit": itd.Implicit(),
    "unrolled": itd.Unrolled(),
    "last steps": itd.Unrolled(last=2),
    "checked": itd.Checked(itd.Implicit(), on_failure="nan"),
}


FIXED, ADAPTIVE = itd.Steps(3), itd.ResidualBelow(rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "stop"),
    [
        ("implicit", FIXED),
        ("implicit", ADAPTIVE),
        ("unrolled", FIXED),
        ("unrolled", ADAPTIVE),
        ("last steps", ADAPTIVE),
        ("checked", FIXED),
    ],
)
def test_nan_in_a_traced_theta_has_no_derivative(mode, stop):
    # the Hessian is finite, and so is the answer of a linear solve with it
    def solution(theta):
        task = (QUADRATIC, DESCENT, X0, theta)
        return itd.solve(*task, stop=stop, mode=MODES[mode], throw=False)

    @compiled
    @jax.vmap
    def all_of_it(theta):
        def answer(theta):
            found = solution(theta)
            return found.x, found.status

        forward, status = jax.jacfwd(answer, has_aux=True)(theta)
        return status, forward, jax.jacrev(answer, has_aux=True)(theta)[0]

    status, forward, reverse = all_of_it(jnp.stack([THETA, jnp.asarray(NAN)]))
    assert status[0] < itd.Status.MAX_STEPS_REACHED
    assert status[1] == itd.Status.NOT_FINITE_AT_START
    for jacobian in (forward, reverse):
        assert jnp.all(jnp.isfinite(jacobian[0]))
        assert jnp.all(jnp.isnan(jacobian[1]))


def test_trace_rejects_data_with_nan():
    problem = itd.Minimization(lambda x, theta: jnp.sum((x - theta * jnp.asarray(NAN)) ** 2))
    with pytest.raises(ValueError, match="`problem`.*data"):
        itd.trace(problem, DESCENT, X0, THETA, steps=2, modes={})
