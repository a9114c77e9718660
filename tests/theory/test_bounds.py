"""The bounds against measured curves, burn-in, and what the theory says in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff import theory
from tests.theory import runs

TIMES = np.arange(runs.STEPS + 1)
LONG = 3000
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
    "sobolev": lambda lo, hi: theory.sobolev_factors(runs.STEPS, lo, hi, points=POINTS),
}


@pytest.fixture(scope="module")
def factors():
    """Return the factors of every method on the spectra that were measured, from one program."""
    program = jax.jit(jax.vmap(lambda lo, hi: {m: f(lo, hi) for m, f in FACTORS.items()}))
    batch = runs.measured(commuting=True).batch  # the other batch has the same spectra
    return program(batch.smallest, batch.largest)


@pytest.mark.parametrize("commuting", [True, False])
@pytest.mark.parametrize("method", FACTORS)
def test_bounds_hold_along_every_measured_curve(method, commuting, factors):
    measured = runs.measured(commuting=commuting)
    errors, facts = measured.errors(method), measured.facts
    E, G, dH, e0 = (
        np.linalg.norm(part.reshape(runs.COUNT, 1, -1), axis=2)
        for part in (
            facts.initial_error,
            facts.gradient_derivative,
            measured.batch.S,
            facts.initial_iterate_error,
        )
    )
    # Rounding leaves an error of this size in what is measured.
    truth = np.linalg.norm(facts.jacobian, axis=(1, 2))[:, None]
    floor = 1e-12 * (truth + errors.max(axis=1, keepdims=True))
    bound = np.asarray(theory.noncommuting_bound(factors[method], E, dH, e0))
    assert (errors <= bound * (1 + 1e-9) + floor).all()
    if commuting:
        bound = np.asarray(theory.jacobian_bound(factors[method], E, G))
        assert (errors <= bound * (1 + 1e-9) + floor).all()
        assert np.max(errors / bound) > 0.3, "the bound is too loose to be useful"


# Where the bound claims to be attained: the eigenvalue, and the shares of both terms.
SPECTRUM = 0.03, 1.2
ATTAINED = {
    "gradient-1/L": (["smallest"], 1.0, 2.0),
    "gradient-2/(L+l)": (["largest"], 1.0, 2.0),
    "gradient-1.7/L": (["smallest", "largest"], 1.0, 0.5),
    "heavy-ball": (["largest"], 1.0, 2.0),
    "chebyshev": (["largest"], 1.0, 2.0),
    "nesterov": (["smallest"], 0.0, 1.0),
}


def gradient_bound(h):
    return lambda E, G: theory.gradient_descent_bound(TIMES, *SPECTRUM, h, E, G)


BOUNDS = {
    "gradient-1/L": gradient_bound(1 / SPECTRUM[1]),
    "gradient-2/(L+l)": gradient_bound(2 / sum(SPECTRUM)),
    "gradient-1.7/L": gradient_bound(1.7 / SPECTRUM[1]),
    "heavy-ball": lambda E, G: theory.heavy_ball_bound(TIMES, *SPECTRUM, E, G),
    "nesterov": lambda E, G: theory.nesterov_bound(TIMES, *SPECTRUM, E, G),
    "chebyshev": lambda E, G: theory.chebyshev_bound(TIMES, *SPECTRUM, E, G),
}


@pytest.fixture(scope="module")
def bounds():
    """Return the bounds where they claim to be attained, from one program."""
    return jax.jit(lambda: {m: BOUNDS[m](E, G) for m, (_, E, G) in ATTAINED.items()})()


@pytest.mark.parametrize("method", ATTAINED)
def test_bounds_are_attained_on_the_worst_spectrum(method, bounds):
    ends, error, G = ATTAINED[method]
    curves = [
        runs.one_mode_errors(method, SPECTRUM, at, runs.STEPS, error=error, G=G) for at in ends
    ]
    bound = np.asarray(bounds[method])
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


# The burn-in that theory predicts, the conditioning, the worst eigenvalue, and the size of E_0.
BURN_INS = {
    "heavy-ball": (theory.heavy_ball_burn_in, 1e-4, "largest", 300.0),
    "nesterov": (theory.nesterov_burn_in, 1e-4, "smallest", 300.0),
    "chebyshev": (theory.chebyshev_burn_in, 1e-4, "largest", 1.0),
    "gradient-1/L": (
        lambda lo, hi, E, G: theory.gradient_descent_burn_in(lo, hi, 1 / hi, E, G),
        *(1e-2, "smallest", 3.0),
    ),
}


@pytest.fixture(scope="module")
def burn_ins():
    """Return the predicted burn-ins, from one program."""
    return jax.jit(lambda G: {m: f(low, 1.0, E, G) for m, (f, low, _, E) in BURN_INS.items()})(3.0)


def assert_predicted(found, expected, rtol):
    for name in ("peak_iteration", "peak", "length"):
        pair = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(*pair, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("method", BURN_INS)
def test_burn_in_is_predicted_on_quadratics(method, burn_ins):
    _, low, at, error = BURN_INS[method]
    measured = theory.burn_in(
        runs.one_mode_errors(method, (low, 1.0), at, LONG, error=error, G=3.0)
    )
    assert 10 < measured.length < LONG
    assert_predicted(burn_ins[method], measured, rtol=0.02)


def test_damped_start_of_heavy_ball_lowers_its_peak():
    arguments = 1e-4, 1.0, 1.0, 3.0

    @jax.jit
    def both():
        out = []
        for damped in (False, True):
            curve = theory.heavy_ball_bound(np.arange(LONG), *arguments, damped_start=damped)
            predicted = theory.heavy_ball_burn_in(*arguments, damped_start=damped)
            out.append((theory.burn_in(curve), predicted))
        return out

    peaks = {}
    for damped, (measured, predicted) in zip((False, True), both(), strict=True):
        assert_predicted(predicted, measured, rtol=0.03)
        peaks[damped] = measured.peak
    # (L/l)^(3/2) against L/l.
    assert peaks[False] > 40 * peaks[True]


def test_burn_in_without_an_end_or_a_start():
    @jax.jit
    @jax.vmap
    def burn_ins(error):
        return (
            theory.heavy_ball_burn_in(0.1, 1.0, error, 1.0),
            theory.nesterov_burn_in(0.1, 1.0, error, 1.0),
            theory.chebyshev_burn_in(0.1, 1.0, error, 1.0),
        )

    # From an error of zero the burn-in never ends.
    found = burn_ins(jnp.array([0.0, 1e3]))
    assert all(jnp.isinf(burn_in.length[0]) for burn_in in found)
    assert all(burn_in.peak_iteration[0] > 0 for burn_in in found)
    # Nesterov's method, whose bound grows with the gradient term only, has none from a large one.
    assert [float(value[1]) for value in found[1]] == [0.0, 1e3, 0.0]


def test_peak_of_one_mode():
    rho = 0.995
    t = np.arange(2000)
    np.testing.assert_allclose(theory.burn_in_peak(rho), -1 / np.log(rho), rtol=1e-14)
    assert abs(np.argmax(t * rho ** (t - 1.0)) - float(theory.burn_in_peak(rho))) < 1
    # A smaller step delays the peak, and does not lower it.
    step = jnp.array([1.0, 0.1])
    at, peak, _ = jax.jit(theory.gradient_descent_burn_in)(0.05, 0.05, step, 1e-9, 1.0)
    np.testing.assert_allclose(at[1], 10 * at[0], rtol=0.03)
    np.testing.assert_allclose(peak[1], peak[0], rtol=0.03)


def test_burn_in_of_a_curve():
    found = theory.burn_in(jnp.array([[1.0, 3.0, 0.5, 2.0, 0.1], [1.0, 0.5, 0.2, 0.1, 0.0]]))
    assert found.peak_iteration.tolist() == [1, 0]
    assert found.peak.tolist() == [3.0, 1.0]
    assert found.length.tolist() == [4, 0]
    # Whole numbers and NaN, which counts as infinite.
    assert [float(v) for v in theory.burn_in(np.array([1, 3, 0]))] == [1.0, 3.0, 2.0]
    assert float(theory.burn_in(np.array([1.0, np.nan, 0.0])).peak) == np.inf


def test_faster_iterates_can_mean_slower_jacobians():
    bounds, t = (1e-2, 1.0), 50
    jacobian, objective = {}, {}
    for method in ("gradient-1/L", "gradient-2/(L+l)"):
        # The error of the iterate is mostly in the smallest eigenvector, that of the Jacobian in
        # the largest.
        errors = runs.one_mode_errors(method, bounds, "largest", t, error=1.0, G=0.0)
        jacobian[method] = errors[t]
        name, parameters = runs.usual(method, *bounds)
        value = runs.recurrence(name, np.array(bounds), t, **parameters)[0, t]
        objective[method] = np.sum(np.array(bounds) * (value * np.array([1.0, 0.02])) ** 2) / 2
    assert objective["gradient-2/(L+l)"] < 0.5 * objective["gradient-1/L"]
    assert jacobian["gradient-2/(L+l)"] > 10 > 1 > jacobian["gradient-1/L"]


def test_steps_up_to_sqrt2_have_no_burn_in_where_the_gradient_part_vanishes():
    low, high = 1e-3, 1.0
    h = theory.largest_step_without_burn_in(high)
    np.testing.assert_allclose(h, np.sqrt(2), rtol=1e-14)
    steps = h * jnp.array([0.5, 1.0, 1.001])
    factors = jax.vmap(lambda h: theory.gradient_descent_factors(TIMES, low, high, h).jacobian)
    for curve, monotone in zip(jax.jit(factors)(steps), (True, True, False), strict=True):
        assert (np.diff(curve).max() <= 1e-14) == monotone
    # Measured: ridge regression in its regularisation, from x0 = 0, so that dx_0 = 0.
    rng = np.random.default_rng(5)
    X = rng.normal(size=(30, 2)) * np.array([1.0, 0.1])
    eigenvalues, Q = np.linalg.eigh(X.T @ X / 30 + 0.01 * np.eye(2))
    start = Q.T @ (X.T @ rng.normal(size=30) / 30) / -eigenvalues  # x_0 - x* by eigenvectors
    initial_error = -start / eigenvalues  # -J*, as H J* = -x*
    assert np.abs(eigenvalues * initial_error + start).max() < 1e-14  # the derivative of a gradient
    value, slope = runs.recurrence("gradient-descent", eigenvalues, 80, h=1 / eigenvalues[1])
    errors = np.linalg.norm(value * initial_error + slope * start, axis=1)
    assert np.diff(errors).max() <= 1e-13 * errors[0]


def test_burn_in_of_chebyshev_grows_like_t_squared():
    errors = runs.one_mode_errors("chebyshev", (1e-6, 1.0), "largest", 80, error=1.0, G=0.0)
    np.testing.assert_allclose(errors[80] / errors[40], 4.0, rtol=0.02)
    np.testing.assert_allclose(errors[40] / errors[20], 4.0, rtol=0.02)
    np.testing.assert_allclose(errors[80], 2 * 80**2, rtol=0.02)


def test_e_factors_are_those_that_were_found_independently():
    """The table of a separate numerical check: E-factors of the Sobolev method, in five places."""
    found = {1e-2: [0.970, 4.4e-3, 5.6e-7, 3e-15], 1e-3: [1.0, 0.891, 0.100, 4.2e-4]}
    worst = jax.jit(lambda low: theory.sobolev_bound(200, low, 1.0, initial_error=1.0, G=0.0))
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
