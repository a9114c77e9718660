"""The decorator `implicit`: solvers that JAX cannot trace, under every transformation."""

import ctypes
import ctypes.util
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.optimize

import iterdiff as itd
from tests.helpers import compiled

quartic = itd.Minimization(
    lambda x, theta: jnp.sum((x - theta**2) ** 2) + jnp.sum(x**4) / 10,
)
value_and_gradient = jax.jit(jax.value_and_grad(quartic.objective))
THETA = jnp.array([0.5, 1.0, 1.5])
traced = []  # whether `by_scipy` received a tracer, call by call


@itd.implicit(quartic)
def by_scipy(x0, theta, method="L-BFGS-B"):
    traced.append(isinstance(theta, jax.core.Tracer))
    options = {"gtol": 1e-9, "ftol": 1e-15}
    return scipy.optimize.minimize(
        value_and_gradient, x0, args=(theta,), jac=True, method=method, options=options
    )


def test_eagerly_jitted_batched_and_differentiated():
    x0 = jnp.zeros(3)
    x = by_scipy(x0, THETA)
    assert jnp.max(jnp.abs(quartic.residual(x, THETA))) < 1e-8
    truth = jnp.diag(4 * THETA / (2 + 1.2 * x**2))
    solution = lambda theta: by_scipy(x0, theta)  # noqa: E731
    eager = jax.jacfwd(solution)(THETA)

    @compiled
    def run(theta):
        return (
            solution(theta),
            jax.jacfwd(solution)(theta),
            jax.jacrev(solution)(theta),
            jax.hessian(lambda theta: solution(theta).sum())(theta),
        )

    same, forward, reverse, second = run(THETA)
    assert jnp.array_equal(same, x)
    for jacobian in (eager, forward, reverse):
        assert jnp.max(jnp.abs(jacobian - truth)) < 1e-12
    curvature = 2 + 1.2 * x**2
    by_hand = 4 / curvature - 4 * THETA * 2.4 * x / curvature**2 * jnp.diagonal(truth)
    assert jnp.max(jnp.abs(second - jnp.diag(by_hand))) < 1e-9
    batch = jnp.stack([THETA, THETA + 1])
    batched = compiled(jax.vmap(jax.grad(lambda theta: solution(theta).sum())))(batch)
    assert jnp.max(jnp.abs(batched[0] - jnp.diagonal(truth))) < 1e-12
    assert traced[:2] == [False, False]  # an eager call, also under jacfwd, sees numbers


def test_other_scipy_solvers_by_name():
    root = itd.implicit(itd.RootFinding(lambda x, theta: x**3 - theta))(
        lambda x0, theta: scipy.optimize.root(lambda x: x**3 - theta, x0, tol=1e-12)
    )
    fixed = itd.implicit(itd.FixedPoint(lambda x, theta: theta * jnp.cos(x)))(
        lambda x0, theta: scipy.optimize.fixed_point(lambda x: theta * np.cos(x), x0, xtol=1e-13)
    )

    @jax.jit
    def run(theta):
        return jax.jacrev(lambda t: root(jnp.ones(2), t))(theta), jax.jvp(
            lambda t: fixed(jnp.array(0.5), t), (jnp.array(0.5),), (jnp.array(1.0),)
        )

    jacobian, (x, slope) = run(jnp.array([8.0, 27.0]))
    assert jnp.max(jnp.abs(jacobian - jnp.diag(jnp.array([1 / 12, 1 / 27])))) < 1e-9
    assert jnp.abs(slope - jnp.cos(x) / (1 + 0.5 * jnp.sin(x))) < 1e-12


def test_a_c_library_and_a_program_with_files(tmp_path):
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    library.cbrt.restype, library.cbrt.argtypes = ctypes.c_double, [ctypes.c_double]
    cube = itd.RootFinding(lambda x, theta: x**3 - theta)

    @itd.implicit(cube)
    def by_c(x0, theta):
        return library.cbrt(float(theta))

    ran = []

    @itd.implicit(cube, traceable=False)
    def by_files(x0, theta):
        ran.append(1)
        (tmp_path / "in.txt").write_text(f"{float(theta)!r}", encoding="ascii")
        (tmp_path / "out.txt").write_text(
            repr(float((tmp_path / "in.txt").read_text(encoding="ascii")) ** (1 / 3)),
            encoding="ascii",
        )
        return float((tmp_path / "out.txt").read_text(encoding="ascii"))

    for solver in (by_c, by_files):
        value, slope = jax.jit(jax.value_and_grad(lambda t, solver=solver: solver(1.0, t)))(8.0)
        assert abs(value - 2) < 1e-12 and abs(slope - 1 / 12) < 1e-12
    assert len(ran) == 1  # declared untraceable, it is not called to find out


def primitives(function, *args):
    """Return the names of the primitives at the top level of a function's jaxpr."""
    return {equation.primitive.name for equation in jax.make_jaxpr(function)(*args).eqns}


def test_a_traceable_solver_is_traced():
    @itd.implicit(quartic)
    def by_newton(x0, theta):
        assert isinstance(theta, jax.core.Tracer)
        return itd.solve(quartic, itd.Newton(), x0, theta, stop=itd.Steps(30)).x

    assert "pure_callback" not in primitives(lambda theta: by_newton(jnp.zeros(3), theta), THETA)
    declared = itd.implicit(quartic, traceable=False)(lambda x0, theta: theta)
    assert "pure_callback" in primitives(declared, THETA, THETA)


def test_a_solver_declared_traceable_shows_why_it_is_not():
    by_numpy = itd.implicit(quartic, traceable=True)(lambda x0, theta: np.asarray(theta))
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(by_numpy)(THETA, THETA)


# Failures


def failing(**options):
    return itd.implicit(quartic, **options)(
        lambda x0, theta: scipy.optimize.minimize(
            value_and_gradient, x0, args=(theta,), jac=True, options={"maxiter": 1}
        )
    )


def test_a_solver_that_reports_failure_is_quoted():
    with pytest.raises(itd.SolverFailed) as caught:
        failing()(jnp.zeros(3), THETA)
    assert caught.value.status == itd.Status.SOLVER_FAILED
    message = caught.value.foreign_message  # SciPy's own words
    assert message and message in str(caught.value)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        jax.block_until_ready(jax.jit(failing())(jnp.zeros(3), THETA))
    assert jnp.all(jnp.isnan(failing(throw=False)(jnp.zeros(3), THETA)))


root_of = itd.RootFinding(lambda x, theta: x**2 - theta)
plain = itd.Minimization(lambda x, theta: jnp.sum((x - theta) ** 2))  # one Hessian, even at NaN
OUTSIDE = {
    "NumPy": (root_of, lambda x0, theta: np.asarray(theta) * np.nan),
    "JAX": (root_of, lambda x0, theta: jnp.sqrt(theta - 9.0)),
    "a residual without x": (plain, lambda x0, theta: jnp.sqrt(theta - 9.0)),
    "SciPy, success": (
        plain,
        lambda x0, theta: scipy.optimize.OptimizeResult(x=np.full(3, np.inf), success=True),
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_answer_that_is_not_finite_is_a_failure(name):
    problem, function = OUTSIDE[name]
    x0, solver = jnp.ones(3), itd.implicit(problem)(function)
    with pytest.raises(itd.SolverFailed, match="`<lambda>`.*not finite") as caught:
        solver(x0, THETA)
    assert caught.value.status == itd.Status.SOLVER_FAILED
    assert caught.value.foreign_message == ""
    for call in (solver, jax.grad(lambda x0, t: solver(x0, t).sum(), argnums=1)):
        with pytest.raises(RuntimeError, match="`<lambda>`.*not finite"):
            jax.block_until_ready(jax.jit(call)(x0, THETA))

    lenient = itd.implicit(problem, throw=False)(function)

    @jax.jit
    def run(theta):
        return (
            lenient(x0, theta),
            jax.jacfwd(lenient, 1)(x0, theta),
            jax.jacrev(lenient, 1)(x0, theta),
        )

    x, forward, reverse = run(THETA)
    assert not jnp.any(jnp.isfinite(x))
    assert jnp.all(jnp.isnan(forward)) and jnp.all(jnp.isnan(reverse))


def test_one_member_of_a_batch_that_is_not_finite():
    solver = itd.implicit(root_of, throw=False)(lambda x0, theta: jnp.sqrt(theta - 9.0) + 0 * x0)
    slopes = jax.vmap(jax.grad(lambda theta: solver(1.0, theta)))(jnp.array([10.0, 1.0]))
    assert jnp.isfinite(slopes[0]) and jnp.isnan(slopes[1])


def test_an_answer_that_does_not_depend_on_a_batch_keeps_its_shape():
    answer = itd.implicit(itd.RootFinding(lambda x, theta: x - theta))(lambda x0, theta: x0)
    several = jnp.array([[0.5, 1.5], [2.0, 3.0], [1.0, 4.0]])
    x, tangent = jax.jvp(jax.vmap(lambda theta: answer(jnp.ones(2), theta)), (several,), (several,))
    np.testing.assert_array_equal(x, np.ones((3, 2)))
    np.testing.assert_allclose(tangent, several)


def test_exceptions_of_the_solver_pass_through():
    @itd.implicit(quartic)
    def broken(x0, theta):
        raise LookupError("no licence for this solver")

    with pytest.raises(LookupError, match="no licence"):
        broken(jnp.zeros(3), THETA)
    with pytest.raises(RuntimeError, match=r"(?s)in broken.*LookupError: no licence"):
        jax.block_until_ready(jax.jit(broken)(jnp.zeros(3), THETA))


def test_the_decorator_checks_mode_and_problem_at_once(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    for mode in (itd.Unrolled(), itd.OneStep(), itd.Checked(itd.Unrolled())):
        with pytest.raises(ValueError, match=r"`mode`.*Unrolled.*iterdiff.Implicit\(\)"):
            itd.implicit(quartic, mode=mode)
    with pytest.raises(TypeError, match="`mode`"):
        itd.implicit(quartic, mode="implicit")
    with pytest.raises(TypeError, match="`problem`"):
        itd.implicit(lambda x0, theta: x0)


def test_checked_flags_an_answer_that_is_not_a_solution():
    mode = itd.Checked(itd.Implicit(), rtol=1e-3, on_failure="nan")
    cube = itd.implicit(itd.RootFinding(lambda x, theta: x**3 - theta), mode=mode)
    exact = cube(lambda x0, theta: np.cbrt(np.asarray(theta)))
    early = cube(lambda x0, theta: np.cbrt(np.asarray(theta)) + 0.1)

    @jax.jit
    def run(theta):
        return jax.grad(exact, argnums=1)(1.0, theta), jax.grad(early, argnums=1)(1.0, theta)

    right, wrong = run(8.0)
    assert abs(right - 1 / 12) < 1e-12
    assert np.isnan(wrong)


WRONG_ANSWERS = {
    "shape": (lambda x0, theta: np.zeros(4), ValueError),
    "structure": (lambda x0, theta: {"x": x0}, ValueError),
    "complex": (lambda x0, theta: np.zeros(3) + 1j, TypeError),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_an_answer_must_be_like_x0(name):
    function, kind = WRONG_ANSWERS[name]
    with pytest.raises(kind, match="`<lambda>`"):
        itd.implicit(quartic)(function)(jnp.zeros(3), THETA)


def test_a_wrong_call_and_a_missing_return_are_named():
    def good(u0, k):
        return u0 + k

    def forgetful(x0, theta):
        good(x0, theta)

    solved = itd.implicit(itd.RootFinding(lambda u, k: u - k))(good)
    assert solved(0.0, theta=2.0) == solved(0.0, 2.0) == solved(x0=0.0, theta=2.0) == 2
    for call in (lambda: solved(0.0), lambda: solved(0.0, k=2.0), lambda: solved(theta=2.0)):
        with pytest.raises(TypeError, match=r"`good` is called as good\(x0, theta"):
            call()
    with pytest.raises(ValueError, match="`forgetful`.*`return`"):
        itd.implicit(quartic)(forgetful)(jnp.zeros(3), THETA)


def test_a_hidden_tracer_is_found():

    @jax.jit
    def closing_over(theta):
        hidden = itd.implicit(quartic)(lambda x0, other: np.asarray(theta))
        return hidden(jnp.zeros(3), theta)

    with pytest.raises(RuntimeError, match="TypeError: `<lambda>` closes over"):
        jax.block_until_ready(closing_over(THETA))
