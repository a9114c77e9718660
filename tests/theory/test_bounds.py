"""The bounds against measured curves, burn-in, and what the theory says in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff import theory
from tests.theory import runs

STEPS, LONG = 80, 3000
TIMES = np.arange(STEPS + 1)
POINTS = 512

FACTORS = {
    "gradient-1/L": lambda lo, hi: theory.gradient_descent_factors(TIMES, lo, hi, 1 / hi),
    "gradient-2/(L+l)": lambda lo, hi: theory.gradient_descent_factors(
        TIMES, lo, hi, 2 / (lo + hi)
    ),
    "gradient-1.7/L": lambda lo, hi: theory.gradient_descent_factors(TIMES, lo, hi, 1.7 / hi),
    "heavy-ball": lambda lo, hi: theory.heavy_ball_factors(TIMES, lo, hi),
    "nesterov": lambda lo, hi: theory.nesterov_factors(TIMES, lo, hi, points=POINTS),
    "chebyshev": lambda lo, hi: theory.chebyshev_factors(TIMES, lo, hi),
    "sobolev": lambda lo, hi: theory.sobolev_factors(STEPS, lo, hi, points=POINTS),
}
BOUNDS = {
    "gradient-1/L": lambda lo, hi, E, G: theory.gradient_descent_bound(TIMES, lo, hi, 1 / hi, E, G),
    "gradient-2/(L+l)": lambda lo, hi, E, G: theory.gradient_descent_bound(
        TIMES, lo, hi, 2 / (lo + hi), E, G
    ),
    "gradient-1.7/L": lambda lo, hi, E, G: theory.gradient_descent_bound(
        TIMES, lo, hi, 1.7 / hi, E, G
    ),
    "heavy-ball": lambda lo, hi, E, G: theory.heavy_ball_bound(TIMES, lo, hi, E, G),
    "nesterov": lambda lo, hi, E, G: theory.nesterov_bound(TIMES, lo, hi, E, G),
    "chebyshev": lambda lo, hi, E, G: theory.chebyshev_bound(TIMES, lo, hi, E, G),
    "sobolev": lambda lo, hi, E, G: theory.sobolev_bound(STEPS, lo, hi, E, G),
}


@pytest.mark.parametrize("method", FACTORS)
def test_bounds_hold_along_every_measured_curve(method):
    factors = None
    for commuting in (True, False):
        batch = runs.random_quadratics(50, 8, 2, commuting=commuting, seed=7)
        if factors is None:  # both batches have the same spectra
            factors = jax.jit(jax.vmap(FACTORS[method]))(batch.smallest, batch.largest)
        measured = runs.jacobian_errors(method, batch, STEPS)
        facts = runs.facts(batch)
        E, G, dH, e0 = (
            np.linalg.norm(part.reshape(50, 1, -1), axis=2)
            for part in (
                facts.initial_error,
                facts.gradient_derivative,
                batch.S,
                facts.initial_iterate_error,
            )
        )
        # Rounding leaves an error of this size in what is measured.
        truth = np.linalg.norm(facts.jacobian, axis=(1, 2))[:, None]
        floor = 1e-12 * (truth + measured.max(axis=1, keepdims=True))
        bound = np.asarray(theory.noncommuting_bound(factors, E, dH, e0))
        assert (measured <= bound * (1 + 1e-9) + floor).all()
        if commuting:
            bound = np.asarray(theory.jacobian_bound(factors, E, G))
            assert (measured <= bound * (1 + 1e-9) + floor).all()
            assert np.max(measured / bound) > 0.3, "a bound so loose that it says nothing"


# Where the bound claims to be attained: the eigenvalue, and the shares of both parts.
TIGHT = [
    ("gradient-1/L", ["smallest"], 1.0, 2.0),
    ("gradient-2/(L+l)", ["largest"], 1.0, 2.0),
    ("gradient-1.7/L", ["smallest", "largest"], 1.0, 0.5),
    ("heavy-ball", ["largest"], 1.0, 2.0),
    ("chebyshev", ["largest"], 1.0, 2.0),
    ("nesterov", ["smallest"], 0.0, 1.0),
]


@pytest.mark.parametrize("method, at, error, G", TIGHT)
def test_bounds_are_attained_on_the_worst_spectrum(method, at, error, G):
    low, high = 0.03, 1.2
    curves = [
        runs.jacobian_errors(method, runs.worst_case(low, high, end, error, G), LONG)[0, TIMES]
        for end in at
    ]
    bound = np.asarray(jax.jit(BOUNDS[method])(low, high, error, G))
    np.testing.assert_allclose(np.max(curves, axis=0), bound, rtol=1e-8, atol=1e-14 * bound.max())


def test_burn_in_of_gradient_descent_is_predicted():
    low, high, error, count = 0.01, 1.0, 1.0, 6000

    @jax.jit
    @jax.vmap
    def both(step, G):
        curve = theory.gradient_descent_bound(jnp.arange(count), low, high, step, error, G)
        return theory.burn_in(curve), theory.gradient_descent_burn_in(low, high, step, error, G)

    steps, sizes = np.meshgrid([1.0, 2 / 1.01, 0.3], [0.02, 1.0, 30.0])
    measured, predicted = both(steps.ravel(), sizes.ravel())
    assert (measured.length < count).all()
    np.testing.assert_allclose(predicted.peak, measured.peak, rtol=0.02)
    for name in ("peak_iteration", "length"):
        found, expected = getattr(predicted, name), getattr(measured, name)
        assert (abs(found - expected) <= np.maximum(1.0, 0.02 * expected)).all(), name


MOMENTUM = {
    "heavy-ball": (theory.heavy_ball_burn_in, "largest"),
    "nesterov": (theory.nesterov_burn_in, "smallest"),
    "chebyshev": (theory.chebyshev_burn_in, "largest"),
    "gradient-1/L": (
        lambda lo, hi, E, G: theory.gradient_descent_burn_in(lo, hi, 1 / hi, E, G),
        "smallest",
    ),
}


@pytest.mark.parametrize("method", MOMENTUM)
def test_burn_in_is_predicted_on_quadratics(method):
    predict, at = MOMENTUM[method]
    slow = method == "gradient-1/L"
    low, high, G = 1e-2 if slow else 1e-4, 1.0, 3.0
    error = 0.01 * G / low if method != "chebyshev" else 1.0
    measured = theory.burn_in(
        runs.jacobian_errors(method, runs.worst_case(low, high, at, error, G), LONG)[0]
    )
    predicted = jax.jit(predict)(low, high, error, G)
    assert 10 < measured.length < LONG
    np.testing.assert_allclose(predicted.peak, measured.peak, rtol=0.02)
    for name in ("peak_iteration", "length"):
        np.testing.assert_allclose(
            getattr(predicted, name), getattr(measured, name), rtol=0.02, err_msg=name
        )


def test_damped_start_of_heavy_ball_lowers_its_peak():
    low, high = 1e-4, 1.0
    peaks = {}
    for damped in (False, True):

        @jax.jit
        def both(error, G, damped=damped):
            curve = theory.heavy_ball_bound(
                np.arange(LONG), low, high, error, G, damped_start=damped
            )
            predicted = theory.heavy_ball_burn_in(low, high, error, G, damped_start=damped)
            return theory.burn_in(curve), predicted

        measured, predicted = both(1.0, 3.0)
        for found, expected in zip(predicted, measured, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0.03)
        peaks[damped] = measured.peak
    # (L/l)^(3/2) against L/l.
    assert peaks[False] > 40 * peaks[True]


def test_peak_of_one_mode():
    rho = 0.995
    t = np.arange(2000)
    np.testing.assert_allclose(theory.burn_in_peak(rho), -1 / np.log(rho), rtol=1e-14)
    assert abs(np.argmax(t * rho ** (t - 1.0)) - float(theory.burn_in_peak(rho))) < 1
    # A smaller step delays the peak, and does not lower it.
    peaks = [theory.gradient_descent_burn_in(0.05, 0.05, h, 1e-9, 1.0) for h in (1.0, 0.1)]
    np.testing.assert_allclose(peaks[1].peak_iteration, 10 * peaks[0].peak_iteration, rtol=0.03)
    np.testing.assert_allclose(peaks[1].peak, peaks[0].peak, rtol=0.03)


def test_burn_in_of_a_curve():
    found = theory.burn_in(jnp.array([[1.0, 3.0, 0.5, 2.0, 0.1], [1.0, 0.5, 0.2, 0.1, 0.0]]))
    assert found.peak_iteration.tolist() == [1, 0]
    assert found.peak.tolist() == [3.0, 1.0]
    assert found.length.tolist() == [4, 0]


def test_faster_iterates_can_mean_slower_jacobians():
    low, high, t = 1e-2, 1.0, 50
    problem = runs.worst_case(low, high, "largest", 1.0, 0.0)
    # The iterate's error is mostly in the smallest eigenvector, the Jacobian's in the largest.
    problem = problem._replace(x0=jnp.array([[1.0, 0.02]]), S=problem.S / 0.02)
    objective, jacobian = {}, {}
    for method in ("gradient-1/L", "gradient-2/(L+l)"):
        x = np.asarray(runs.runner(method, LONG)(problem)[0][0, t])
        objective[method] = x @ np.asarray(problem.H[0]) @ x / 2
        jacobian[method] = runs.jacobian_errors(method, problem, LONG)[0]
    assert objective["gradient-2/(L+l)"] < 0.5 * objective["gradient-1/L"]
    assert jacobian["gradient-2/(L+l)"][t] > 10 > 1 > jacobian["gradient-1/L"][t]


def test_steps_up_to_sqrt2_have_no_burn_in_where_the_gradient_part_vanishes():
    low, high = 1e-3, 1.0
    h = theory.largest_step_without_burn_in(high)
    np.testing.assert_allclose(h, np.sqrt(2), rtol=1e-14)
    steps = h * jnp.array([0.5, 1.0, 1.001])
    factors = jax.vmap(lambda h: theory.gradient_descent_factors(TIMES, low, high, h).jacobian)
    for curve, monotone in zip(jax.jit(factors)(steps), (True, True, False), strict=True):
        assert (np.diff(curve).max() <= 1e-14) == monotone
    # Measured: ridge regression in its regularisation, from x0 = 0.
    rng = np.random.default_rng(5)
    X = rng.normal(size=(30, 2)) * np.array([1.0, 0.1])
    H = X.T @ X / 30 + 0.01 * np.eye(2)
    b, zero = -X.T @ rng.normal(size=30) / 30, np.zeros(2)
    ends = np.linalg.eigvalsh(H)
    fields = (H, np.eye(2)[None], b, np.zeros((2, 1)), zero, np.zeros((2, 1)), *ends)
    ridge = runs.Quadratic(*(jnp.asarray(f)[None] for f in fields))
    assert np.abs(runs.facts(ridge).gradient_derivative).max() < 1e-14
    errors = runs.jacobian_errors("gradient-1/L", ridge, LONG)[0, TIMES]
    assert np.diff(errors).max() <= 1e-13 * errors[0]


def test_burn_in_of_chebyshev_grows_like_t_squared():
    low, high = 1e-6, 1.0
    problem = runs.worst_case(low, high, "largest", 1.0, 0.0)
    errors = runs.jacobian_errors("chebyshev", problem, LONG)[0]
    np.testing.assert_allclose(errors[80] / errors[40], 4.0, rtol=0.02)
    np.testing.assert_allclose(errors[40] / errors[20], 4.0, rtol=0.02)
    np.testing.assert_allclose(errors[80], 2 * 80**2, rtol=0.02)


def test_e_factors_are_those_that_were_found_independently():
    """The table of a separate numerical check: E-factors of the Sobolev method, in five places."""
    found = {1e-2: [0.970, 4.4e-3, 5.6e-7, 3e-15], 1e-3: [1.0, 0.891, 0.100, 4.2e-4]}
    worst = jax.jit(lambda low: theory.sobolev_factors(200, low, 1.0).jacobian)
    for low, expected in found.items():
        factors = np.asarray(worst(low))
        # Up to the margin of the grid of points, 1 / cos(pi t / 4096), it never grows.
        assert (factors <= 1 / np.cos(np.pi * np.arange(201) / 4096)).all()
        np.testing.assert_allclose(factors[[10, 50, 100, 200]], expected, rtol=0.05)


def test_single_mode_condition():
    s, t = 1e-4, np.arange(0, 300000, 7)

    def grows(ratio):
        return np.abs(theory.mode_error(t, s, ratio)).max() > 1 + 2e-4

    for ratio in (-1.0, 0.0, 1.0, 3.58):
        assert not grows(ratio) and not theory.mode_has_burn_in(ratio)
    for ratio in (-1.1, 3.61):
        assert grows(ratio) and theory.mode_has_burn_in(ratio)


def test_late_start_minimises_its_bound_whatever_the_total():
    rho, drift, norm = 0.98, 3.0, 0.7
    predicted = float(theory.late_start(rho, drift, norm))
    expected = 1 + np.log(drift / (-np.log(rho) * norm)) / -np.log(rho)
    np.testing.assert_allclose(predicted, expected, rtol=1e-13)
    for total in (400, 900):
        K = np.arange(total + 1)
        curve = jax.jit(theory.late_start_bound, static_argnums=0)(total, K, rho, drift, norm)
        assert abs(int(np.argmin(curve)) - predicted) <= 0.75
    assert theory.late_start(0.5, 1e-6, 1.0) == 0 and theory.late_start(0.5, 0.0, 1.0) == 0


def test_late_start_bound_is_an_equality_in_one_dimension():
    theta, b, h, x0, total, start = 0.3, 0.5, 0.4, 2.0, 40, 7
    rho, solution = 1 - h * theta, -b / theta
    jacobian = b / theta**2

    def late(theta):
        x = x0
        for t in range(total):
            x = x - h * ((theta if t >= start else jax.lax.stop_gradient(theta)) * x + b)
        return x

    measured = abs(jax.grad(late)(theta) - jacobian)
    bound = theory.late_start_bound(total, start, rho, h * abs(x0 - solution), abs(jacobian))
    np.testing.assert_allclose(measured, bound, rtol=1e-10)


def test_neumann_and_one_step_bounds():
    rng = np.random.default_rng(2)
    ratios = []
    for _ in range(50):
        A = rng.normal(size=(6, 6))
        A *= rng.uniform(0.1, 0.95) / np.linalg.norm(A, 2)
        B, rho, terms = rng.normal(size=(6, 2)), np.linalg.norm(A, 2), int(rng.integers(1, 9))
        J = np.linalg.solve(np.eye(6) - A, B)
        partial = sum(np.linalg.matrix_power(A, i) @ B for i in range(terms))
        error = np.linalg.norm(partial - J)
        ratios.append(error / theory.neumann_bound(terms, rho, np.linalg.norm(J)))
        assert np.linalg.norm(B - J) <= theory.one_step_bound(rho, np.linalg.norm(B))
    assert np.max(ratios) <= 1
    # Attained when F_x is a multiple of the identity.
    np.testing.assert_allclose(theory.neumann_bound(3, 0.5, 2.0), 0.5**3 * 2.0, rtol=1e-14)
    np.testing.assert_allclose(theory.one_step_bound(0.5, 1.0), 1.0, rtol=1e-14)
    # At another point: x - J* is off by rho^k J* plus the drift of every term.
    np.testing.assert_allclose(theory.neumann_bound(2, 0.5, 4.0, 1.0), 1.0 + 1.5, rtol=1e-14)


def test_implicit_bound_is_attained_by_a_scalar_equation():
    def function(x, theta):
        return x + x**3 / 3 - theta

    x, theta = jnp.asarray(0.9), jnp.asarray(0.75 + 0.75**3 / 3)
    J = -jax.grad(function, 1)(x, theta) / jax.grad(function)(x, theta)
    exact, slope = 1 / (1 + 0.75**2), 1 + x**2
    bound = theory.implicit_bound(x - 0.75, slope, exact, x + 0.75, 0.0)
    np.testing.assert_allclose(abs(J - exact), bound, rtol=1e-12)


def test_bounds_cover_what_the_library_runs():
    """The public path: solve with Unrolled, and the bound of the paper's one-dimensional case."""
    problem = itd.Minimization(lambda x, theta: theta * x**2 / 2)

    def answer(theta):
        solution = itd.solve(
            problem,
            itd.GradientDescent(0.1),
            jnp.asarray(0.5),
            theta,
            stop=itd.Steps(100),
            mode=itd.Unrolled(),
        )
        return solution.x

    slope = jax.grad(answer)(jnp.asarray(0.05))
    bound = theory.gradient_descent_bound(100, 0.05, 0.05, 0.1, 0.0, 0.5)
    np.testing.assert_allclose(abs(slope), bound, rtol=1e-12)
