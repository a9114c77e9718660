"""Nonlinear least squares: losses, algorithms, and what the Hessian's second term is worth."""

import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from scipy import optimize

import iterdiff as itd
from tests.helpers import compiled

TIMES = np.linspace(0.0, 4.0, 12)
NOISE = 0.3 * np.random.default_rng(0).standard_normal(12)
STOP = itd.ResidualBelow(rtol=0.0, atol=1e-10, max_steps=200)
X0 = {"size": np.array(1.0), "rate": np.array(0.3)}


def decay(x, theta):
    """Return residuals that do not vanish at the solution."""
    return x["size"] * jnp.exp(-x["rate"] * TIMES) + theta - (2 * np.exp(-0.7 * TIMES) + NOISE)


def _pseudo_huber(squares):
    return 2 * (jnp.sqrt(1 + squares) - 1)


@pytest.mark.parametrize("loss", ["linear", "huber", "cauchy", _pseudo_huber])
def test_a_loss_is_minimised_and_differentiated(loss):
    problem = itd.LeastSquares(decay, loss=loss, scale=0.5)

    def solution(theta, mode=None):
        run = (problem, itd.LevenbergMarquardt(), X0, theta)
        x = itd.solve(*run, stop=STOP, mode=mode).x
        return x["rate"], x

    @compiled
    def found(theta):
        by_steps = jax.jvp(lambda t: solution(t, itd.Unrolled())[0], (theta,), (1.0,))[1]
        implicit, x = jax.grad(solution, has_aux=True)(theta)
        return implicit, by_steps, x

    @compiled
    def newton(x, theta):  # from the solution: the same objective as a plain minimisation
        plain = itd.Minimization(problem.objective)
        return jax.jvp(
            lambda t: itd.solve(plain, itd.Newton(), x, t, stop=itd.Steps(5)).x["rate"],
            (theta,),
            (1.0,),
        )

    implicit, unrolled, x = found(0.1)
    rate, truth = newton(x, 0.1)
    assert np.abs(x["rate"] - rate) < 1e-9
    assert np.abs(implicit - truth) < 1e-8 * np.abs(truth)
    assert np.abs(unrolled - truth) < 1e-6 * np.abs(truth)


@pytest.mark.parametrize("name", ["soft_l1", "huber", "cauchy", "arctan"])
def test_losses_are_scipys(name):
    squares = jnp.array([0.0, 0.5, 1.0, 4.0])
    problem = itd.LeastSquares(lambda x, theta: x - theta, loss=name, scale=0.7)
    theta = jnp.zeros(4)
    x = 0.7 * jnp.sqrt(squares)
    cost = optimize.least_squares(lambda x: x, np.asarray(x), loss=name, f_scale=0.7, max_nfev=1)
    assert float(problem.objective(cost.x, theta)) == pytest.approx(cost.cost, rel=1e-12)


SOLVERS = {
    "Gauss-Newton": itd.GaussNewton(),
    "Gauss-Newton, normal equations": itd.GaussNewton(lx.Normal(lx.Cholesky())),
    "Levenberg-Marquardt, LSMR": itd.LevenbergMarquardt(linear_solver=lx.LSMR(1e-12, 1e-12)),
    "optimistix": itd.adapters.from_optimistix(optx.LevenbergMarquardt(1e-9, 1e-9)),
    "jaxopt": itd.adapters.from_jaxopt(jaxopt.GaussNewton(None)),
    "a minimiser": itd.adapters.from_optimistix(optx.BFGS(1e-9, 1e-9)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_same_solution(name):
    problem = itd.LeastSquares(decay)
    theta, stop = np.array(0.1), itd.ResidualBelow(rtol=0.0, atol=1e-6, max_steps=200)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        x = itd.solve(problem, SOLVERS[name], X0, theta, stop=stop).x
    reference = itd.solve(problem, itd.LevenbergMarquardt(), X0, theta, stop=STOP).x
    assert jnp.abs(x["rate"] - reference["rate"]) < 1e-5


def test_a_jacobian_without_full_rank_is_damped():
    problem = itd.LeastSquares(lambda x, theta: jnp.array([1.0, 2.0]) * (x[0] * x[1] - theta))
    stop = itd.ResidualBelow(atol=1e-9, max_steps=100)
    run = (problem, itd.LevenbergMarquardt(), jnp.array([3.0, 0.5]), jnp.array(2.0))
    x = itd.solve(*run, stop=stop).x
    assert jnp.abs(x[0] * x[1] - 2.0) < 1e-9


def test_float32_and_pytrees_of_residuals():
    problem = itd.LeastSquares(lambda x, theta: {"a": x - theta, "b": [(x * x - 1.0)[:1]]})
    theta = jnp.array([1.0, 3.0], jnp.float32)

    def solution(theta):
        run = (problem, itd.LevenbergMarquardt(), jnp.zeros(2, jnp.float32), theta)
        return itd.solve(*run, stop=itd.ResidualBelow(atol=1e-5, max_steps=60)).x

    slope = compiled(jax.jacobian(solution))(theta)
    # f = ((x - t)^2 + (x^2 - 1)^2) / 2 for the first unknown, whose solution at t = 1 is 1.
    assert slope.dtype == jnp.float32
    np.testing.assert_allclose(slope, [[1 / 5, 0], [0, 1]], atol=1e-4)


def test_the_gauss_newton_derivative_is_wrong_by_the_second_term_and_flagged():
    # r = (x - t, c (x^2 - 2)): at the solution r_2 does not vanish.
    problem = itd.LeastSquares(lambda x, theta: jnp.stack([x - theta, 0.6 * (x * x - 2.0)]))

    def solution(theta, mode=None):
        run = (problem, itd.LevenbergMarquardt(), jnp.array(1.0), theta)
        return itd.solve(*run, stop=STOP, mode=mode).x

    theta = jnp.array(0.2)
    x = float(solution(theta))
    whole = 1 + 0.36 * (6 * x**2 - 4)
    approximate = 1 + 0.36 * (2 * x) ** 2
    approximation = itd.Implicit(gauss_newton=True)
    assert float(jax.grad(solution)(theta)) == pytest.approx(1 / whole, rel=1e-9)
    found = jax.grad(solution)(theta, approximation)
    assert float(found) == pytest.approx(1 / approximate, rel=1e-9)
    with pytest.warns(itd.DerivativeWarning, match="relative error"):
        jax.grad(solution)(theta, itd.Checked(approximation))
    estimate = itd.derivative_error(problem, x, theta, found, cotangent=jnp.array(1.0))
    truth = abs(float(found) - 1 / whole) * whole
    assert float(estimate.relative) == pytest.approx(truth, rel=1e-6)


def test_data_and_auxiliary_output():
    problem = itd.LeastSquares(lambda x, theta, data: (x - data * theta, x.sum()), has_aux=True)
    run = (problem, itd.GaussNewton(), jnp.zeros(2), jnp.array([1.0, 2.0]))
    solution = itd.solve(*run, stop=itd.Steps(2), args=jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(solution.x, [3.0, 8.0])
    assert float(solution.aux) == pytest.approx(11.0)


BAD = {
    "loss": (ValueError, lambda: itd.LeastSquares(decay, loss="L2")),
    "scale": (ValueError, lambda: itd.LeastSquares(decay, scale=0.0)),
    "damping": (ValueError, lambda: itd.LevenbergMarquardt(damping=-1.0)),
    "linear_solver": (TypeError, lambda: itd.GaussNewton(linear_solver="qr")),
    "problem": (TypeError, lambda: solve(itd.LeastSquares(lambda x, theta: 1))),
    "algorithm": (ValueError, lambda: solve(itd.Minimization(lambda x, theta: x @ theta))),
    "gauss_newton": (
        ValueError,
        lambda: solve(itd.RootFinding(lambda x, theta: x - theta), itd.Newton()),
    ),
}


def solve(problem, algorithm=None):
    """Solve a problem with a mode for least squares."""
    algorithm = itd.GaussNewton() if algorithm is None else algorithm
    run = (problem, algorithm, jnp.zeros(2), jnp.ones(2))
    return itd.solve(*run, stop=itd.Steps(1), mode=itd.Implicit(gauss_newton=True))


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_argument_is_named(name):
    error, call = BAD[name]
    with pytest.raises(error, match=f"`{name}`"):
        call()
