"""An outer run that was stopped or killed goes on, on the same trajectory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.bilevel.cases import DESCENT, PROBLEM, THETA, X0, loss

METHODS = (itd.bilevel.Backtracking(), itd.bilevel.LBFGS())


def minimize(path, method, **options):
    return itd.bilevel.minimize(
        loss, PROBLEM, DESCENT, X0, THETA, method=method, resume=path, **options
    )


def same(a, b):
    np.testing.assert_array_equal(a.theta, b.theta)
    np.testing.assert_array_equal(a.x, b.x)
    assert (a.value, a.gradients, a.iterations, a.status) == (
        b.value,
        b.gradients,
        b.iterations,
        b.status,
    )
    for name, column in a.log.arrays().items():
        if name != "seconds":
            np.testing.assert_array_equal(column, b.log.arrays()[name], err_msg=name)


@pytest.mark.parametrize("method", METHODS, ids=("backtracking", "lbfgs"))
def test_it_resumes_on_the_same_trajectory(method, tmp_path):
    whole = minimize(None, method)
    path = tmp_path / "run.npz"
    for limit in (1, 3, 100):
        resumed = minimize(path, method, max_outer=limit)
    same(whole, resumed)
    again = minimize(path, method)  # nothing is left to do
    np.testing.assert_array_equal(again.theta, whole.theta)
    assert again.gradients == whole.gradients
    fine = tmp_path / "fine.npz"  # ends at the precision, in the middle of a decision
    first, second = (minimize(fine, method, rtol=1e-10) for _ in range(2))
    assert first.status == itd.bilevel.Ending.AT_PRECISION
    same(first, second)


def test_a_snapshot_of_another_problem_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    method = METHODS[0]
    minimize(path, method, max_outer=1)
    with pytest.raises(ValueError, match="`resume`.*another"):
        itd.bilevel.minimize(loss, PROBLEM, DESCENT, X0, THETA + 1, resume=path)
    with pytest.raises(ValueError, match="`resume`.*another"):
        minimize(path, method, rtol=1e-3)
    written = path.read_bytes()
    for broken in (b"no archive", written[: len(written) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="`resume`"):
            minimize(path, method)
    with pytest.raises(ValueError, match="`resume`"):
        minimize(tmp_path / "run.npz" / "below.npz", method)


KILLED = """
import tests.conftest, time
import iterdiff as itd
from iterdiff.bilevel import drivers
from tests.bilevel.test_resume import METHODS, minimize
written = drivers.write
def slowly(*args):
    written(*args)
    time.sleep(0.2)
drivers.write = slowly
minimize({path!r}, METHODS[0])
"""


def test_it_survives_a_kill(tmp_path):
    path = tmp_path / "run.npz"
    script = KILLED.format(path=str(path))
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    deadline = time.monotonic() + 300
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    resumed = minimize(path, METHODS[0])
    whole = minimize(None, METHODS[0])
    same(whole, resumed)
    assert jnp.all(jnp.isfinite(resumed.theta))
