"""jaxopt's solvers, and its own tests, with our `custom_root` in place of theirs.

``ITERDIFF_JAXOPT_TESTS=/path/to/jaxopt`` names a checkout whose ``tests`` run unmodified. They need
absl-py and, for some comparisons with scikit-learn, scikit-learn < 1.8.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxopt
import pytest

from tests.external.jaxopt_plugin import ours_in_place
from tests.external.suites import RESULTS, check_file, read, run_file, write
from tests.helpers import compiled

CHECKOUT = os.environ.get("ITERDIFF_JAXOPT_TESTS")
FILES = (
    "implicit_diff_test.py",
    "fixed_point_iteration_test.py",
    "gradient_descent_test.py",
    "proximal_gradient_test.py",
    "block_cd_test.py",
    "bisection_test.py",
    "bfgs_test.py",
    "cd_qp_test.py",
    "eq_qp_test.py",
    "iterative_refinement_test.py",
    "lbfgsb_test.py",
    "osqp_test.py",
    "projected_gradient_test.py",
    "projection_test.py",
)
# docs/solvers.md explains why ours differs in these tests; test_small_qp needs cvxpy.
OTHERWISE = {
    "eq_qp_test.py": "not test_example_from_doc",
    "osqp_test.py": "not (BoxOSQPTest and test_qp_eq_and_ineq) and not test_small_qp",
}


def objective(x, theta):
    return jnp.sum((x - theta) ** 2) / 2 + jnp.sum(jnp.cosh(x))


def update(x, theta):
    return theta * jnp.cos(x)


@pytest.mark.parametrize("kind", ["LBFGS", "FixedPointIteration"])
def test_installed_solvers_differentiate_through_ours(kind):
    theta = jnp.array([0.3, 0.7])
    if kind == "LBFGS":
        solver = jaxopt.LBFGS(objective, tol=1e-13, linesearch="backtracking")
        slope = lambda x: 1 / (1 + jnp.cosh(x))  # noqa: E731
    else:
        solver = jaxopt.FixedPointIteration(update, tol=1e-13, maxiter=200)
        slope = lambda x: jnp.cos(x) / (1 + theta * jnp.sin(x))  # noqa: E731

    @compiled
    def run(theta):
        solution = lambda theta: solver.run(jnp.zeros(2), theta).params  # noqa: E731
        return solution(theta), jax.jacrev(solution)(theta), jax.jacfwd(solution)(theta)

    with jax.numpy_dtype_promotion("standard"), ours_in_place() as calls:
        x, reverse, forward = run(theta)
        assert calls["custom_root"] == 3
    truth = jnp.diag(slope(x))
    assert jnp.max(jnp.abs(reverse - truth)) < 1e-12
    assert jnp.max(jnp.abs(forward - truth)) < 1e-12  # which theirs refuses


@pytest.mark.skipif(CHECKOUT is None, reason="ITERDIFF_JAXOPT_TESTS names no checkout")
@pytest.mark.parametrize("name", FILES)
def test_their_own_tests(name):
    check_file(Path(CHECKOUT or ""), "jaxopt", name, "-k", OTHERWISE.get(name, ""))


TINY = """
import jaxopt.implicit_diff
import pytest


def test_passes():
    assert jaxopt.implicit_diff.custom_root(lambda x: x)


def test_fails():
    assert False


@pytest.mark.skip
def test_is_skipped():
    pass
"""


def test_counts_of_a_file_are_those_of_pytest_and_the_plugin(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "tiny_test.py").write_text(TINY, encoding="utf-8")
    run = run_file(tmp_path, "jaxopt", "tiny_test.py")
    assert (run.passed, run.failed, run.skipped, run.calls) == (1, 1, 1, 1), run.report
    assert "test_fails" in run.report


def test_stored_results_are_written_as_they_were(tmp_path, monkeypatch):
    before = RESULTS.read_text(encoding="utf-8")
    results = read()
    monkeypatch.setattr("tests.external.suites.RESULTS", tmp_path / "results.json")
    write(results)
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == before
