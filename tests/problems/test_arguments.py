"""Arguments of unusual kinds: computed right, or refused by a sentence whose advice works."""

import jax
import jax.numpy as jnp
import jaxtyping
import lineax as lx
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

import iterdiff as itd
from tests.problems.test_bad_input import check_message


@pytest.fixture(autouse=True)
def as_users_call(monkeypatch):
    """Check no annotations and allow promotion, as in a user's program."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"):
        yield


PROBLEM = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))
DESCENT = itd.GradientDescent(0.5)
X0, THETA, STOP = jnp.zeros(2), jnp.ones(2), itd.Steps(2)
VALUE = np.array([1.0, 2.0])


def solve(problem=PROBLEM, algorithm=DESCENT, x0=X0, theta=THETA, **options):
    return itd.solve(problem, algorithm, x0, theta, **{"stop": STOP, **options})


def deleted():
    array = jnp.zeros(2)
    array.delete()
    return array


REFUSED = {  # the call, the exception, what its message names
    "x0 masked": (lambda: solve(x0=np.ma.masked_equal(VALUE, 1.0)), TypeError, "`x0`"),
    "x0 of objects": (lambda: solve(x0=np.array([1.0, None])), TypeError, "`x0`"),
    "x0 extended": (lambda: solve(x0=np.zeros(2, np.longdouble)), TypeError, "`x0`"),
    "x0 a date": (lambda: solve(x0=np.array(["2020-01-01"], "M8[D]")), TypeError, "`x0`"),
    "x0 a key": (lambda: solve(x0=jax.random.key(0)), ValueError, "`x0`"),
    "x0 with a counter": (lambda: solve(x0={"x": X0, "n": 3}), TypeError, "`x0`['n']"),
    "x0 with mixed keys": (lambda: solve(x0={"x": X0, 1: X0}), ValueError, "`x0`"),
    "theta with mixed keys": (lambda: solve(theta={"x": X0, 1: X0}), ValueError, "`theta`"),
    "x0 deleted": (lambda: solve(x0=deleted()), ValueError, "`x0`"),
    "theta of objects": (lambda: solve(theta=np.array([1.0, None])), TypeError, "`theta`"),
    "theta a shape": (
        lambda: solve(theta=(THETA, jax.ShapeDtypeStruct((2,), float))),
        TypeError,
        "`theta`[1]",
    ),
    "theta a sparse matrix of SciPy": (
        lambda: solve(theta=(THETA, scipy.sparse.eye(2).tocsr())),
        TypeError,
        "`theta`[1]",
    ),
    "theta masked": (lambda: solve(theta=np.ma.ones(2)), TypeError, "`theta`"),
    "theta too large": (lambda: solve(theta=(THETA, 2**70)), ValueError, "`theta`[1]"),
    "Newton's solver": (lambda: itd.Newton("cg"), TypeError, "`linear_solver`"),
    "solver of an estimate": (
        lambda: itd.derivative_error(PROBLEM, X0, THETA, jnp.eye(2), linear_solver=1.0),
        TypeError,
        "`linear_solver`",
    ),
    "near": (
        lambda: itd.derivative_error(PROBLEM, X0, THETA, jnp.eye(2), near="x"),
        TypeError,
        "`near`",
    ),
    "derivative a text": (
        lambda: itd.derivative_error(PROBLEM, X0, THETA, "J"),
        TypeError,
        "`derivative`",
    ),
    "kinks of nothing": (lambda: itd.weakly_active(None, X0, THETA), TypeError, "`problem`"),
    "kinks within a text": (
        lambda: itd.weakly_active(PROBLEM, X0, THETA, "a"),
        TypeError,
        "`tol`",
    ),
    "root of nothing": (lambda: itd.adapters.custom_root(None), TypeError, "`optimality_fun`"),
    "solve a number": (
        lambda: itd.adapters.custom_root(PROBLEM.residual, solve=1.0),
        TypeError,
        "`solve`",
    ),
    "no auxiliary output": (
        lambda: itd.adapters.custom_root(PROBLEM.residual, True)(lambda x, t: t)(X0, THETA),
        TypeError,
        "`has_aux`",
    ),
    "loss a number": (lambda: itd.value_and_grad_with_report(3), TypeError, "`loss`"),
    "progress a number": (
        lambda: itd.trace(PROBLEM, DESCENT, X0, THETA, steps=2, modes={}, progress=3),
        TypeError,
        "`progress`",
    ),
    "tolerance of last a text": (
        lambda: itd.Unrolled(last="auto", rtol="a"),
        TypeError,
        "`rtol`",
    ),
    "residual step a text": (
        lambda: itd.CompositeMinimization(jnp.sum, lambda x, *_: x, residual_step="a"),
        TypeError,
        "`residual_step`",
    ),
    "penalty a number": (
        lambda: itd.CompositeMinimization(jnp.sum, lambda x, *_: x, penalty=1.0),
        TypeError,
        "`penalty`",
    ),
    "report of three": (
        lambda: itd.Checked(itd.Implicit(), report=jnp.ones(3)),
        ValueError,
        "`report`",
    ),
    "diagonal a number": (lambda: itd.Jacobi(diagonal=2.0), TypeError, "`diagonal`"),
    "symmetric an array": (
        lambda: itd.LinearSystem(jnp.eye(2), lambda t: t, symmetric=jnp.array(1.0)),
        TypeError,
        "`symmetric`",
    ),
    "step size a key": (
        lambda: itd.GradientDescent(jax.random.key(0)),
        TypeError,
        "`step_size`",
    ),
    "end of a bracket": (lambda: itd.Bisection("a", 1.0), TypeError, "`lower`"),
    "last a list": (lambda: itd.Unrolled(last=[3]), TypeError, "`last`"),
    "norm a list": (
        lambda: itd.Sobolev(1.0, 2.0, norm=["B"]),
        ValueError,
        "`norm`",
    ),
    "word a list": (
        lambda: itd.Checked(itd.Implicit(), on_failure=["warn"]),
        ValueError,
        "`on_failure`",
    ),
    "tolerance a text in an array": (
        lambda: itd.ResidualBelow(rtol=np.array("x")),
        TypeError,
        "`rtol`",
    ),
    "tolerance of forty digits": (
        lambda: itd.ResidualBelow(rtol=10**40),
        ValueError,
        "`rtol`",
    ),
    "throw a word": (lambda: solve(throw="no"), TypeError, "`throw`"),
    "throw of the decorator": (lambda: itd.implicit(PROBLEM, throw=0), TypeError, "`throw`"),
    "traceable": (lambda: itd.implicit(PROBLEM, traceable="no"), TypeError, "`traceable`"),
    "a decorated number": (lambda: itd.implicit(PROBLEM)(3.0), TypeError, "`solver`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_a_sentence(name):
    call, kind, argument = REFUSED[name]
    with pytest.raises(kind) as info:
        call()
    check_message(str(info.value), argument)


ACCEPTED = {  # of the value 1, 2
    "big-endian": VALUE.astype(">f8"),
    "big-endian float32": VALUE.astype(">f4"),
    "not contiguous": np.array([1.0, 0.0, 2.0, 0.0])[::2],
    "read-only": np.broadcast_to(VALUE, (2,)),
    "filled": np.ma.masked_equal([1.0, 9.0], 9.0).filled(2.0),
    "objects, converted": np.asarray(np.array([1, 2], object), float),
    "extended, converted": np.asarray(VALUE.astype(np.longdouble), float),
    "bfloat16, converted": jnp.asarray(VALUE, jnp.bfloat16).astype("float32"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_arrays(name):
    value = ACCEPTED[name]
    # one step of 1/2 of the gradient 2 (x - theta) ends at theta
    assert np.array_equal(solve(x0=value).x, np.ones(2))
    found = jax.jacobian(lambda theta: solve(theta=(theta, value)[0]).x)(jnp.asarray(VALUE))
    assert np.array_equal(found, np.eye(2))
    assert np.array_equal(solve(x0=jnp.zeros(2), theta=value).x, VALUE)


def test_numbers_that_do_not_fit_float32():
    with jax.enable_x64(False):
        for value in (1e300, np.array([1e300, 0.0])):
            with pytest.raises(ValueError, match="`x0`.*float32"):
                solve(x0=value)
        with pytest.raises(ValueError, match="`theta`.*int32"):
            solve(x0=jnp.zeros(2), theta=(jnp.ones(2), np.array([2**40])))


def test_a_complex_constant_and_a_key_in_the_problem():
    constant = jnp.array([1.0 + 1j, 2.0])
    by_closure = itd.Minimization(lambda x, t: jnp.sum(jnp.abs(x - t + 1j * constant.imag) ** 2))
    np.testing.assert_allclose(solve(by_closure).x, THETA)
    noisy = itd.Minimization(lambda x, t: jnp.sum((x - t[0] - jax.random.normal(t[1], (2,))) ** 2))
    key = jax.random.key(3)
    found = jax.jacobian(lambda t: solve(noisy, theta=(t, key)).x)(THETA)
    assert np.array_equal(found, np.eye(2))
    np.testing.assert_allclose(
        solve(noisy, theta=(THETA, key)).x, THETA + jax.random.normal(key, (2,))
    )


@pytest.mark.parametrize(
    "mode", [None, itd.Unrolled(), itd.Checked(itd.Implicit()), itd.Checked(itd.Unrolled())]
)
def test_a_python_number_as_parameter_of_float32_unknowns(mode):
    problem = itd.FixedPoint(lambda x, t: x * t / 2 + 1)
    x0 = jnp.zeros(2, jnp.float32)

    def total(theta):
        return jnp.sum(solve(problem, itd.Picard(), x0, theta, stop=itd.Steps(40), mode=mode).x)

    # x = 1 / (1 - t / 2), of slope 1/2 / (1 - t / 2)^2
    found = jax.grad(total)(0.5)
    np.testing.assert_allclose(found, 2 * 0.5 / 0.75**2, rtol=1e-5)


def test_an_estimate_at_a_point_of_mixed_types():
    problem = itd.Minimization(lambda x, t: sum(jnp.sum((leaf - t) ** 2) for leaf in x))
    x = [jnp.ones(2, jnp.float32), jnp.array(3.0)]  # the second is weakly typed
    wrong = [jnp.zeros(2), jnp.zeros(())]
    estimate = itd.derivative_error(problem, x, jnp.ones(()), wrong)
    np.testing.assert_allclose(estimate.absolute, 3**0.5, rtol=1e-6)


def test_results_of_scipy():
    squares = itd.implicit(itd.RootFinding(lambda x, theta: x**2 - theta))

    @squares
    def newton(x0, theta):
        return scipy.optimize.newton(
            lambda x: x**2 - np.asarray(theta), np.asarray(x0), full_output=True
        )

    @squares
    def bracketed(x0, theta):
        return scipy.optimize.brentq(lambda x: x**2 - float(theta), 0.0, 9.0, full_output=True)

    @squares
    def infeasible(x0, theta):
        return scipy.optimize.linprog([1], A_ub=[[1], [-1]], b_ub=[-1, -1])

    np.testing.assert_allclose(newton(X0 + 1, jnp.array([2.0, 3.0])), np.sqrt([2.0, 3.0]))
    np.testing.assert_allclose(jax.grad(bracketed, argnums=1)(1.0, 4.0), 0.25, rtol=1e-9)
    with pytest.raises(itd.SolverFailed, match="infeasible"):
        infeasible(1.0, 4.0)


def test_own_linear_solver_is_accepted():
    mode = itd.Implicit(lx.CG(rtol=1e-10, atol=1e-10))
    found = jax.jacobian(lambda theta: solve(theta=theta, mode=mode).x)(THETA)
    np.testing.assert_allclose(found, np.eye(2), rtol=1e-8)
