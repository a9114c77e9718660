"""Residual polynomials, the exact error of the unrolled Jacobian, rates, and argument checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterdiff import theory
from tests.theory import runs

LOW, HIGH = 0.02, 1.5
STEPS = 40
GRID = np.linspace(LOW, HIGH, 101)

TIMES = np.arange(STEPS + 1)[:, None]


POLYAK = tuple(map(float, theory.polyak_parameters(LOW, HIGH)))
NESTEROV = tuple(map(float, theory.nesterov_parameters(LOW, HIGH)))
DAMPED = POLYAK[0] / (1 + POLYAK[1])
# A polynomial of the library, the recurrence that defines it, and its parameters.
POLYNOMIALS = {
    "gradient descent": (
        lambda t, z: theory.gradient_descent_polynomial(t, z, 1.2),
        *("gradient-descent", {"h": 1.2}),
    ),
    "heavy ball": (
        lambda t, z: theory.heavy_ball_polynomial(t, z, *POLYAK),
        *("heavy-ball", {"h": POLYAK[0], "beta": POLYAK[1]}),
    ),
    "heavy ball, damped": (
        lambda t, z: theory.heavy_ball_polynomial(t, z, *POLYAK, damped_start=True),
        *("heavy-ball", {"h": POLYAK[0], "beta": POLYAK[1], "first_step": DAMPED}),
    ),
    "heavy ball, real and complex roots": (
        lambda t, z: theory.heavy_ball_polynomial(t, z, 0.9, 0.3),
        *("heavy-ball", {"h": 0.9, "beta": 0.3}),
    ),
    "heavy ball, negative momentum": (
        lambda t, z: theory.heavy_ball_polynomial(t, z, 0.9, -0.3),
        *("heavy-ball", {"h": 0.9, "beta": -0.3}),
    ),
    "Nesterov": (
        lambda t, z: theory.nesterov_polynomial(t, z, *NESTEROV),
        *("nesterov", {"h": NESTEROV[0], "beta": NESTEROV[1]}),
    ),
    "Nesterov, 1 - h lambda of both signs": (
        lambda t, z: theory.nesterov_polynomial(t, z, 0.8, 0.5),
        *("nesterov", {"h": 0.8, "beta": 0.5}),
    ),
    "Chebyshev": (
        lambda t, z: theory.chebyshev_polynomial(t, z, LOW, HIGH),
        *("chebyshev", {"low": LOW, "high": HIGH}),
    ),
}


@pytest.fixture(scope="module")
def polynomials():
    """Return every polynomial on the grid, from one program in which t is traced."""

    @jax.jit
    def evaluate(t, z):
        return {name: P(t, z) for name, (P, *_) in POLYNOMIALS.items()}

    return evaluate(TIMES, GRID[None])


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_follow_their_recurrence(name, polynomials):
    _, method, parameters = POLYNOMIALS[name]
    expected = runs.recurrence(method, GRID, STEPS, **parameters)
    scale = np.maximum(np.abs(expected).max(axis=2, keepdims=True), 1e-300)
    found = np.stack(polynomials[name])
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-11)


# The norms that the method minimises, and Gauss quadrature of their weights.
SOBOLEV = {
    ("A", 0.5): np.polynomial.legendre.leggauss,
    ("B", 0.5): np.polynomial.legendre.leggauss,
    ("B", 0.0): np.polynomial.chebyshev.chebgauss,
}
DEGREE, ETA = 12, 0.3 * LOW * HIGH


@pytest.fixture(scope="module")
def sobolev():
    """Return Sobolev polynomials at Gauss points, at 0 and above the interval, from one program."""

    @jax.jit
    def evaluate():
        return {
            (norm, alpha): theory.sobolev_polynomials(
                DEGREE,
                np.concatenate([eigenvalues(rule)[0], [0.0, 2 * HIGH]]),
                LOW,
                HIGH,
                alpha=alpha,
                eta=ETA,
                norm=norm,
            )
            for (norm, alpha), rule in SOBOLEV.items()
        }

    return jax.tree.map(np.asarray, evaluate())


def eigenvalues(rule):
    nodes, weights = rule(40)
    return (HIGH + LOW) / 2 - (HIGH - LOW) / 2 * nodes, weights


def sobolev_norms(value, derivative, eigenvalue, weights, norm):
    """Return the norm that the method minimises, by quadrature."""
    first = value - eigenvalue * derivative if norm == "B" else value
    return first**2 @ weights + ETA * derivative**2 @ weights


@pytest.mark.parametrize("norm, alpha", SOBOLEV)
def test_sobolev_polynomials_are_optimal(norm, alpha, sobolev):
    lam, weights = eigenvalues(SOBOLEV[norm, alpha])
    P = sobolev[norm, alpha]
    np.testing.assert_allclose(P.value[:, -2], 1.0, rtol=1e-10)
    best = sobolev_norms(P.value[:, :-2], P.derivative[:, :-2], lam, weights, norm)
    assert (np.diff(best) <= 1e-12 * best[0]).all()
    # Any other polynomial with P(0) = 1 is larger: add lambda times a random polynomial.
    rng = np.random.default_rng(0)
    for size in (1e-4, 1e-2, 1.0):
        q = np.polynomial.Polynomial([0.0, *(size * rng.normal(size=DEGREE))])
        value, slope = P.value[-1, :-2] + q(lam), P.derivative[-1, :-2] + q.deriv()(lam)
        assert sobolev_norms(value, slope, lam, weights, norm) > best[-1]


def test_sobolev_polynomials_grow_above_the_interval(sobolev):
    P = sobolev["B", 0.5]
    above = np.abs(P.value[:, -1])
    assert above[12] > 100 * above[4] > 100 * np.abs(P.value[12, :-2]).max()


TIME = 25
METHOD_POLYNOMIALS = {
    "gradient-1/L": lambda t, z, _lo, hi: theory.gradient_descent_polynomial(t, z, 1 / hi),
    "heavy-ball": lambda t, z, lo, hi: theory.heavy_ball_polynomial(
        t, z, *theory.polyak_parameters(lo, hi)
    ),
    "nesterov": lambda t, z, lo, hi: theory.nesterov_polynomial(
        t, z, *theory.nesterov_parameters(lo, hi)
    ),
    "chebyshev": theory.chebyshev_polynomial,
    "sobolev": lambda t, z, lo, hi: theory.ResidualPolynomial(
        *(part[t] for part in theory.sobolev_polynomials(t, z, lo, hi))
    ),
}


@pytest.fixture(scope="module")
def predicted_errors():
    """Return the errors after `TIME` steps by both formulas, of every method, by commutation."""

    def by_formulas(problem, facts):
        predicted = {}
        for method, polynomial in METHOD_POLYNOMIALS.items():
            P = lambda z, f=polynomial: f(TIME, z, problem.smallest, problem.largest)  # noqa: E731
            general = theory.noncommuting_error(
                P,
                problem.H,
                jnp.moveaxis(problem.S, 0, -1),
                facts.initial_error,
                facts.initial_iterate_error,
            )
            special = theory.commuting_error(
                P, problem.H, facts.initial_error, facts.gradient_derivative
            )
            predicted[method] = general, special
        return predicted

    program = jax.jit(jax.vmap(by_formulas))
    both = {c: runs.measured(commuting=c) for c in (True, False)}
    return {c: program(measured.batch, measured.facts) for c, measured in both.items()}


@pytest.mark.parametrize("commuting", [True, False])
@pytest.mark.parametrize("method", METHOD_POLYNOMIALS)
def test_error_formulas_are_exact(method, commuting, predicted_errors):
    _, facts, jacobians = runs.measured(commuting=commuting)
    error = np.asarray(jacobians[method][:, TIME] - facts.jacobian)
    largest = np.maximum(np.abs(facts.initial_error), np.abs(error))
    scale = largest.max(axis=(1, 2), keepdims=True)
    general, special = (np.asarray(E) for E in predicted_errors[commuting][method])
    np.testing.assert_allclose(general / scale, error / scale, atol=1e-11)
    gap = np.abs(special / scale - error / scale).max()
    assert gap < 1e-11 if commuting else gap > 1e-2


def test_commuting_formula_fails_without_commutation():
    H, dH = np.diag([0.2, 1.0]), np.array([[1.0, -1.0], [-1.0, 1.0]])
    e0, E0 = np.ones(2), np.zeros((2, 1))

    @jax.jit
    def claims(H, dH, e0, E0):
        P = lambda z: theory.gradient_descent_polynomial(2, z, 1.0)  # noqa: E731
        factors = theory.gradient_descent_factors(2, 0.2, 1.0, 1.0)
        return (
            # dG = dH e_0 + H E_0 = 0, so the formula and the bounds made from it predict no error.
            theory.commuting_error(P, H, E0, (dH @ e0)[:, None]),
            theory.gradient_descent_bound(2, 0.2, 1.0, 1.0, 0.0, 0.0),
            theory.noncommuting_error(P, H, dH[..., None], E0, e0)[:, 0],
            theory.noncommuting_bound(factors, 0.0, 2.0, np.sqrt(2.0)),
        )

    commuting, commuting_bound, error, bound = map(np.asarray, claims(H, dH, e0, E0))
    assert not commuting.any() and commuting_bound == 0
    np.testing.assert_allclose(error, -dH @ (np.eye(2) - H) @ e0, atol=1e-14)
    assert 1.13 < np.linalg.norm(error) < bound


def test_divided_differences_do_not_cancel():
    lam = np.array([0.3, 0.3, 0.3 + 1e-9, 0.3 + 1e-4, 0.7])

    @jax.jit
    def evaluate(lam):
        P = lambda z: theory.chebyshev_polynomial(30, z, LOW, HIGH)  # noqa: E731
        return theory.divided_differences(P, lam), P(lam), P(lam + 5e-5).derivative

    found, (value, slope), halfway = jax.tree.map(np.asarray, evaluate(lam))
    np.testing.assert_allclose(found[0, :2], slope[0], rtol=1e-12)
    np.testing.assert_allclose(found[0, 2], slope[0], rtol=1e-6)
    np.testing.assert_allclose(found[0, 3], halfway[0], rtol=1e-5)
    np.testing.assert_allclose(found[0, 4], (value[4] - value[0]) / 0.4, rtol=1e-12)
    np.testing.assert_allclose(found, found.T, rtol=1e-12)


def test_rates_are_those_of_the_polynomials():
    t, ends = 4000, np.array([LOW, HIGH])
    found = {
        ("gradient-descent", 1.3): theory.gradient_descent_rate(LOW, HIGH, 1.3),
        ("heavy-ball", 0.9, 0.3): theory.heavy_ball_rate(LOW, HIGH, 0.9, 0.3),
        ("nesterov", 0.9, 0.2): theory.nesterov_rate(LOW, HIGH, 0.9, 0.2),
    }
    for (method, *parameters), rate in found.items():
        names = dict(zip(("h", "beta"), parameters, strict=False))
        value = runs.recurrence(method, ends, t, **names)[0]
        np.testing.assert_allclose(np.abs(value[t]).max() ** (1 / t), rate, rtol=2e-3)
    # At the double roots of the best parameters, where rounding counts with its square root.
    best = theory.heavy_ball_rate(LOW, HIGH, *POLYAK), theory.nesterov_rate(LOW, HIGH, *NESTEROV)
    s = np.sqrt(LOW / HIGH)
    np.testing.assert_allclose(best, [(1 - s) / (1 + s), 1 - s], rtol=1e-7)


CALLS = {
    "burn_in_peak": lambda x: theory.burn_in_peak(0.9 + x),
    "late_start": lambda x: theory.late_start(0.9 + x, 1.0 + x, 0.5 + x),
    "gradient_descent_bound": lambda x: theory.gradient_descent_bound(
        jnp.arange(5), 0.1 + x, 1.0 + x, 0.9 + x, 1.0 + x, 2.0 + x
    ),
    "heavy_ball_bound": lambda x: theory.heavy_ball_bound(jnp.arange(5), 0.1 + x, 1.0 + x, 1, 2),
    "chebyshev_bound": lambda x: theory.chebyshev_bound(jnp.arange(5), 0.1 + x, 1.0 + x, 1, 2),
    "nesterov_bound": lambda x: theory.nesterov_bound(jnp.arange(5), 0.1 + x, 1.0 + x, 1, 2),
    "gradient_descent_burn_in": lambda x: jnp.stack(
        theory.gradient_descent_burn_in(0.1 + x, 1.0 + x, 0.9 + x, 1.0 + x, 2.0 + x)
    ),
    "burn_in": lambda x: jnp.stack(
        theory.burn_in(theory.chebyshev_bound(jnp.arange(60), 0.01 + x, 1.0 + x, 1, 2))
    ),
    "heavy_ball_burn_in": lambda x: jnp.stack(theory.heavy_ball_burn_in(0.1 + x, 1.0 + x, 1, 2)),
    "neumann_bound": lambda x: theory.neumann_bound(3, 0.5 + x, 1.0 + x, 0.1 + x),
    "late_start_bound": lambda x: theory.late_start_bound(9, 3, 0.5 + x, 1.0 + x, 0.1 + x),
    "implicit_bound": lambda x: theory.implicit_bound(0.1 + x, 0.5 + x, 1.0, 1.0 + x, 0.1),
    "mode_error": lambda x: theory.mode_error(jnp.arange(5), 0.5 + x, 1.0 + x),
}


def all_calls(x):
    return {name: call(x) for name, call in CALLS.items()}


def test_functions_work_under_transformations_and_in_float32():
    def with_slope(x):
        return jax.jvp(all_calls, (x,), (jnp.ones_like(x),))

    compiled, slopes = jax.jit(jax.vmap(with_slope))(jnp.array([-1e-6, 0.0, 1e-6]))
    single = jax.jit(all_calls)(jnp.float32(0.0))
    for name, value in compiled.items():
        assert value.dtype == jnp.float64 and single[name].dtype == jnp.float32, name
        np.testing.assert_allclose(single[name], value[1], rtol=3e-4, atol=1e-5, err_msg=name)
        quotient = (value[2] - value[0]) / 2e-6
        np.testing.assert_allclose(slopes[name][1], quotient, rtol=1e-5, atol=1e-5, err_msg=name)
    # Without compiling, so that the arguments are known and checked.
    np.testing.assert_allclose(CALLS["late_start"](0.0), compiled["late_start"][1], rtol=1e-12)


@pytest.mark.parametrize(
    "name, call",
    [
        ("rho", lambda: theory.burn_in_peak(1.0)),
        ("rho", lambda: theory.burn_in_peak(-0.5)),
        ("rho", lambda: theory.burn_in_peak(float("nan"))),
        ("rho", lambda: theory.late_start(1.5, 1.0, 1.0)),
        ("errors", lambda: theory.burn_in(jnp.zeros((3, 0)))),
        ("errors", lambda: theory.burn_in(1.0)),
        ("steps", lambda: theory.sobolev_factors(-1, 0.1, 1.0)),
        ("jacobian_norm", lambda: theory.late_start(0.5, 1.0, 0.0)),
        ("initial_drift", lambda: theory.late_start(0.5, -1.0, 1.0)),
        ("start", lambda: theory.late_start_bound(3, 4, 0.5, 1.0, 1.0)),
        ("smallest", lambda: theory.gradient_descent_bound(1, 2.0, 1.0, 0.1, 1.0, 1.0)),
        ("smallest", lambda: theory.gradient_descent_bound(1, 0.0, 1.0, 0.1, 1.0, 1.0)),
        ("smallest", lambda: theory.chebyshev_bound(1, 1.0, 1.0, 1.0, 1.0)),
        ("largest", lambda: theory.largest_step_without_burn_in(-1.0)),
        ("step_size", lambda: theory.gradient_descent_bound(1, 0.1, 1.0, 0.0, 1.0, 1.0)),
        ("step_size", lambda: theory.gradient_descent_burn_in(0.1, 1.0, 2.0, 1.0, 1.0)),
        ("momentum", lambda: theory.nesterov_rate(0.1, 1.0, 1.0, 1.0)),
        ("t", lambda: theory.gradient_descent_polynomial(-1, 0.1, 1.0)),
        ("t", lambda: theory.chebyshev_polynomial(1.5, 0.1, 0.1, 1.0)),
        ("initial_error", lambda: theory.chebyshev_bound(1, 0.1, 1.0, -1.0, 1.0)),
        ("G", lambda: theory.chebyshev_burn_in(0.1, 1.0, 1.0, -1.0)),
        ("smallest", lambda: theory.chebyshev_rate(-0.1, 1.0)),
        ("norm", lambda: theory.sobolev_polynomials(3, 0.5, 0.1, 1.0, norm="C")),
        ("steps", lambda: theory.sobolev_factors(3000, 0.1, 1.0)),
        ("alpha", lambda: theory.sobolev_polynomials(3, 0.5, 0.1, 1.0, alpha=-0.5)),
        ("eta", lambda: theory.sobolev_polynomials(3, 0.5, 0.1, 1.0, eta=0.0)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()


@pytest.mark.parametrize("value", [np.array("0.5"), 0.5 + 0j], ids=["text", "complex"])
def test_a_value_that_is_not_a_real_number_is_an_error(value):
    with pytest.raises(TypeError, match="`rho`"):
        theory.burn_in_peak(value)
