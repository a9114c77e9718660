"""`derivative_error` with a preconditioner: fewer products, and no other verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.linalg.dense_or_krylov import DenseOrKrylov, Limits
from tests.helpers import Counter

SIZE, WRONG_BY = 60, 0.01
KRYLOV = DenseOrKrylov(limits=Limits(0, 0, 0, 0))
FIVE = DenseOrKrylov(limits=Limits(0, 0, 0, 0, trial_max_products=5))
"""It gives up where five products make no progress."""
RNG = np.random.default_rng(0)
# Rows and columns of very different size: a Krylov method needs a preconditioner.
UNITS = np.exp(1.5 * RNG.normal(size=SIZE))
MATRIX = np.diag(UNITS) @ (np.eye(SIZE) + 0.1 * np.tril(RNG.normal(size=(SIZE, SIZE)), -1))
RHS, WEIGHTS = RNG.normal(size=(2, SIZE))
FORMS = {
    "tangent": (RHS, np.linalg.solve(MATRIX, RHS)),
    "cotangent": (WEIGHTS, np.linalg.solve(MATRIX.T, WEIGHTS)),
}


def exact_inverse(problem, x, theta):
    del problem, x, theta
    return lambda v: jnp.asarray(np.linalg.inv(MATRIX)) @ v


HELPERS = {
    "none": None,
    "diagonal": "diagonal",
    "exact": exact_inverse,
    "not finite": lambda *_: lambda v: jnp.nan * v,
    "singular": lambda *_: lambda v: v.at[1:].set(0.0),
}


def estimated(form, helper, solver=KRYLOV, counted=lambda v: v):
    """Return the estimate of a derivative that is wrong by `WRONG_BY`."""
    problem = itd.RootFinding(lambda x, theta: jnp.asarray(MATRIX) @ counted(x) - theta)
    x = jnp.asarray(np.linalg.solve(MATRIX, RHS))
    v, exact = map(jnp.asarray, FORMS[form])
    given = {form: v, "linear_solver": solver, "preconditioner": helper}
    return itd.derivative_error(problem, x, jnp.asarray(RHS), (1 + WRONG_BY) * exact, **given)


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [("tangent", "exact", "singular"), ("cotangent", "diagonal", "not finite")],
)
def test_it_saves_products_and_a_bad_one_changes_no_verdict(form, good, bad):
    counter, counts = Counter(), {}
    for name in (good, "none", bad):
        estimate = estimated(form, HELPERS[name], counted=counter)
        counts[name] = counter.take()
        assert estimate.trusted
        np.testing.assert_allclose(estimate.relative, WRONG_BY, rtol=1e-5)
    assert counts[good] < counts["none"] / 2


def test_where_it_is_needed_a_bad_one_leaves_no_estimate_and_the_reason():
    # GMRES makes no progress with a cyclic shift before as many products as there are unknowns.
    shift = np.roll(np.eye(SIZE), 1, 0)
    problem = itd.RootFinding(lambda x, theta: jnp.asarray(shift) @ x - theta)
    x, theta = jnp.asarray(shift.T @ RHS), jnp.asarray(RHS)

    def with_helper(helper):
        given = {"tangent": theta, "linear_solver": FIVE, "preconditioner": helper}
        return itd.derivative_error(problem, x, theta, (1 + WRONG_BY) * x, **given)

    assert with_helper(lambda *_: lambda v: jnp.asarray(shift.T) @ v).trusted
    estimate = with_helper(HELPERS["not finite"])
    assert not estimate.trusted
    assert estimate.reason
    assert jnp.isinf(estimate.upper)


@pytest.mark.parametrize(
    ("bad", "error"),
    {
        "jacobi": ValueError,
        "algorithm": ValueError,  # there was no run
        lambda *_: lambda v: v[:-1]: ValueError,
        lambda *_: 3.0: TypeError,
    }.items(),
    ids=["no name", "no run", "shape", "no function"],
)
def test_what_is_no_preconditioner_is_refused(bad, error):
    with pytest.raises(error, match="`preconditioner"):
        estimated("tangent", bad)


def test_the_derivative_of_the_estimate_uses_it_too():
    problem = itd.RootFinding(lambda x, theta: jnp.asarray(MATRIX) @ x - theta)
    x = jnp.asarray(np.linalg.solve(MATRIX, RHS))

    def absolute(tangent):
        given = {"linear_solver": FIVE, "preconditioner": exact_inverse}
        wrong = (1 + WRONG_BY) * x
        theta = jnp.asarray(RHS)
        return itd.derivative_error(problem, x, theta, wrong, tangent=tangent, **given).absolute

    # |A^-1 v - wrong| at v = RHS, where the difference is -WRONG_BY x.
    expected = np.linalg.solve(MATRIX.T, -np.asarray(x) / np.linalg.norm(x))
    np.testing.assert_allclose(jax.grad(absolute)(jnp.asarray(RHS)), expected, rtol=1e-6)
