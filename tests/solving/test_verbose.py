"""`solve(..., verbose=...)` prints how a run goes, and changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.loop.reporting import reporting

PROBLEM = itd.Minimization(lambda x, theta: jnp.sum(theta * x**2 / 2 - x))


def test_a_line_every_so_many_steps(capsys):
    def total(theta, verbose):
        run = PROBLEM, itd.GradientDescent(0.1), jnp.zeros(2), theta
        solution = itd.solve(*run, stop=itd.Steps(80), mode=itd.Unrolled(), verbose=verbose)
        return jnp.sum(solution.x), solution.status

    def both(theta):
        return [jax.grad(total, has_aux=True)(theta, verbose) for verbose in (40, False)]

    (loud, status), (silent, other) = jax.jit(both)(jnp.array([1.0, 0.5]))
    jax.effects_barrier()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 0", "step 40", "step 80"]
    assert float(lines[-1].split()[-1]) == pytest.approx(0.95, abs=1e-3)
    np.testing.assert_allclose(loud, silent, rtol=1e-12)
    assert status == other == itd.Status.STEPS_DONE


def test_silence_costs_nothing():
    stop = itd.Steps(3)
    assert reporting(stop, False) is stop
    assert reporting(stop, 0) is stop


@pytest.mark.parametrize(("verbose", "error"), [("yes", TypeError), (-1, ValueError)])
def test_what_it_refuses(verbose, error):
    with pytest.raises(error, match="`verbose`"):
        reporting(itd.Steps(3), verbose)
