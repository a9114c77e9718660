"""Residual polynomials, the exact error of the unrolled Jacobian, and the checks of arguments."""

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


def plain_recurrence(first, step):
    """Run x -> x - h x-like recurrences on the pair (P, P') by the product rule."""
    one = np.stack([np.ones_like(GRID), np.zeros_like(GRID)])

    def times_eigenvalue(v):
        return np.stack([GRID * v[0], GRID * v[1] + v[0]])

    out = [one, first(one, times_eigenvalue)]
    while len(out) <= STEPS:
        out.append(step(out[-1], out[-2], times_eigenvalue))
    return np.stack(out, 1)


def gradient_descent(h):
    def step(x, _, times):
        return x - h * times(x)

    return plain_recurrence(lambda x, times: step(x, x, times), step)


def heavy_ball(h, beta, first_step):
    return plain_recurrence(
        lambda x, times: x - first_step * times(x),
        lambda x, old, times: x - h * times(x) + beta * (x - old),
    )


def nesterov(h, beta):
    def step(x, old, times):
        y = x + beta * (x - old)
        return y - h * times(y)

    return plain_recurrence(lambda x, times: step(x, x, times), step)


def chebyshev(low, high):
    """Evaluate T_t by its definition: the cosine inside [-1, 1], the hyperbolic one outside."""
    sigma = (high + low - 2 * GRID) / (high - low)
    angle = np.arccos(np.clip(sigma, -1, 1))
    t = TIMES
    top = np.cosh(t * np.arccosh((high + low) / (high - low)))
    sine = np.sin(angle)
    inner = sine > 1e-9
    u = np.where(inner, np.sin(t * angle) / np.where(inner, sine, 1), t * np.sign(sigma) ** (t + 1))
    return np.stack([np.cos(t * angle) / top, -2 / (high - low) * t * u / top])


POLYAK = tuple(map(float, theory.polyak_parameters(LOW, HIGH)))
NESTEROV = tuple(map(float, theory.nesterov_parameters(LOW, HIGH)))


@pytest.mark.parametrize(
    "found, expected",
    [
        (lambda t, z: theory.gradient_descent_polynomial(t, z, 1.2), gradient_descent(1.2)),
        (lambda t, z: theory.heavy_ball_polynomial(t, z, *POLYAK), heavy_ball(*POLYAK, POLYAK[0])),
        (
            lambda t, z: theory.heavy_ball_polynomial(t, z, *POLYAK, damped_start=True),
            heavy_ball(*POLYAK, POLYAK[0] / (1 + POLYAK[1])),
        ),
        # Roots of either kind, and a negative momentum.
        (lambda t, z: theory.heavy_ball_polynomial(t, z, 0.9, 0.3), heavy_ball(0.9, 0.3, 0.9)),
        (lambda t, z: theory.heavy_ball_polynomial(t, z, 0.9, -0.3), heavy_ball(0.9, -0.3, 0.9)),
        (lambda t, z: theory.nesterov_polynomial(t, z, *NESTEROV), nesterov(*NESTEROV)),
        # A step above 1/L: 1 - h lambda is negative for some.
        (lambda t, z: theory.nesterov_polynomial(t, z, 0.8, 0.5), nesterov(0.8, 0.5)),
        (lambda t, z: theory.chebyshev_polynomial(t, z, LOW, HIGH), chebyshev(LOW, HIGH)),
    ],
    ids=["gd", "hb", "hb-damped", "hb-real", "hb-negative", "nes", "nes-long", "cheb"],
)
def test_polynomials_follow_their_recurrence(found, expected):
    value, derivative = jax.jit(found)(TIMES, GRID[None])
    scale = np.abs(expected).max(axis=2, keepdims=True)
    np.testing.assert_allclose(value / scale[0], expected[0] / scale[0], atol=2e-11)
    slope = np.maximum(scale[1], 1e-300)
    np.testing.assert_allclose(derivative / slope, expected[1] / slope, atol=2e-11)


@pytest.mark.parametrize("method", ["chebyshev", "sobolev"])
def test_polynomials_outside_the_interval_grow(method):
    beyond = jnp.array([2 * HIGH])
    if method == "chebyshev":
        both = jax.jit(lambda z: theory.chebyshev_polynomial(np.array([5, 20]), z, LOW, HIGH))
        value = both(beyond).value
    else:
        every = jax.jit(lambda z: theory.sobolev_polynomials(20, z, LOW, HIGH).value)(beyond)
        value = np.asarray(every)[[5, 20], 0]
    assert abs(value[1]) > 100 * abs(value[0]) > 100


def sobolev_norms(value, derivative, eigenvalue, weights, eta, norm):
    """Return the norm that the method minimises, by quadrature."""
    shown = value - eigenvalue * derivative if norm == "B" else value
    return shown**2 @ weights + eta * derivative**2 @ weights


@pytest.mark.parametrize("norm", ["A", "B"])
def test_sobolev_polynomials_are_optimal(norm):
    eta, degree = 0.3 * LOW * HIGH, 12
    nodes, weights = np.polynomial.legendre.leggauss(40)  # alpha = 1/2: a uniform weight
    lam = (HIGH + LOW) / 2 - (HIGH - LOW) / 2 * nodes
    at = np.concatenate([lam, [0.0]])

    @jax.jit
    def polynomials(z):
        return theory.sobolev_polynomials(degree, z, LOW, HIGH, eta=eta, norm=norm)

    P = theory.ResidualPolynomial(*map(np.asarray, polynomials(at)))
    np.testing.assert_allclose(P.value[:, -1], 1.0, rtol=1e-10)
    best = sobolev_norms(P.value[:, :-1], P.derivative[:, :-1], lam, weights, eta, norm)
    assert (np.diff(best) <= 1e-12 * best[0]).all()
    # Any other polynomial with P(0) = 1 is larger: add lambda times a random polynomial.
    rng = np.random.default_rng(0)
    for size in (1e-4, 1e-2, 1.0):
        q = np.polynomial.Polynomial([0.0, *(size * rng.normal(size=degree))])
        value, slope = P.value[-1, :-1] + q(lam), P.derivative[-1, :-1] + q.deriv()(lam)
        assert sobolev_norms(value, slope, lam, weights, eta, norm) > best[-1]


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


@pytest.mark.parametrize("method", METHOD_POLYNOMIALS)
def test_error_identities_are_exact(method):
    t = 25

    @jax.jit
    @jax.vmap
    def predicted(problem, facts):
        def P(z):
            return METHOD_POLYNOMIALS[method](t, z, problem.smallest, problem.largest)

        general = theory.noncommuting_error(
            P,
            problem.H,
            jnp.moveaxis(problem.S, 0, -1),
            facts.initial_error,
            facts.initial_iterate_error,
        )
        return general, theory.commuting_error(
            P, problem.H, facts.initial_error, facts.gradient_derivative
        )

    for commuting in (True, False):
        batch = runs.random_quadratics(50, 8, 2, commuting=commuting, seed=3)
        facts = runs.facts(batch)
        measured = runs.runner(method, 80)(batch)[1][:, t] - facts.jacobian

        largest = np.maximum(np.abs(facts.initial_error), np.abs(measured))
        scale = largest.max(axis=(1, 2), keepdims=True)
        general, special = (np.asarray(E) for E in predicted(batch, facts))
        np.testing.assert_allclose(general / scale, measured / scale, atol=1e-11)
        gap = np.abs(special / scale - measured / scale).max()
        assert gap < 1e-11 if commuting else gap > 1e-2


def test_commuting_identity_fails_without_commutation():
    H, dH = jnp.diag(jnp.array([0.2, 1.0])), jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    e0, E0 = jnp.ones(2), jnp.zeros((2, 1))

    def P(z):
        return theory.gradient_descent_polynomial(2, z, 1.0)

    # dG = dH e_0 + H E_0 = 0, so that the identity and every bound of the kind say: no error.
    assert not theory.commuting_error(P, H, E0, (dH @ e0)[:, None]).any()
    assert theory.gradient_descent_bound(2, 0.2, 1.0, 1.0, 0.0, 0.0) == 0
    error = theory.noncommuting_error(P, H, dH[..., None], E0, e0)[:, 0]
    np.testing.assert_allclose(error, -dH @ (jnp.eye(2) - H) @ e0, atol=1e-14)
    assert jnp.linalg.norm(error) > 1.13
    factors = theory.gradient_descent_factors(2, 0.2, 1.0, 1.0)
    assert theory.noncommuting_bound(factors, 0.0, 2.0, jnp.sqrt(2.0)) > jnp.linalg.norm(error)


def test_divided_differences_do_not_cancel():
    def P(z):
        return theory.chebyshev_polynomial(30, z, LOW, HIGH)

    lam = jnp.array([0.3, 0.3, 0.3 + 1e-9, 0.3 + 1e-4, 0.7])
    found = np.asarray(jax.jit(lambda lam: theory.divided_differences(P, lam))(lam))
    value, slope = (np.asarray(part) for part in jax.jit(P)(lam))
    np.testing.assert_allclose(found[0, :2], slope[0], rtol=1e-12)
    np.testing.assert_allclose(found[0, 2], slope[0], rtol=1e-6)
    middle = np.asarray(jax.jit(P)(lam + 5e-5).derivative)[0]
    np.testing.assert_allclose(found[0, 3], middle, rtol=1e-5)
    np.testing.assert_allclose(found[0, 4], (value[4] - value[0]) / 0.4, rtol=1e-12)
    np.testing.assert_allclose(found, found.T, rtol=1e-12)


def test_rates_are_those_of_the_polynomials():
    t, ends = 4000, jnp.array([LOW, HIGH])
    pairs = [
        (
            theory.gradient_descent_rate(LOW, HIGH, 1.3),
            theory.gradient_descent_polynomial(t, ends, 1.3),
        ),
        (
            theory.heavy_ball_rate(LOW, HIGH, 0.9, 0.3),
            theory.heavy_ball_polynomial(t, ends, 0.9, 0.3),
        ),
        (theory.nesterov_rate(LOW, HIGH, 0.9, 0.2), theory.nesterov_polynomial(t, ends, 0.9, 0.2)),
    ]
    for rate, polynomial in pairs:
        reached = jnp.max(jnp.abs(polynomial.value)) ** (1 / t)
        np.testing.assert_allclose(reached, rate, rtol=2e-3)
    np.testing.assert_allclose(
        theory.heavy_ball_rate(LOW, HIGH, *POLYAK), theory.chebyshev_rate(LOW, HIGH), rtol=1e-7
    )
    best = 1 - np.sqrt(LOW / HIGH)
    np.testing.assert_allclose(theory.nesterov_rate(LOW, HIGH, *NESTEROV), best, rtol=1e-7)


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
    for name in ("burn_in_peak", "late_start", "gradient_descent_bound"):
        np.testing.assert_allclose(CALLS[name](0.0), compiled[name][1], rtol=1e-12)


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
        ("G", lambda: theory.nesterov_bound(1, 0.1, 1.0, 1.0, -1.0)),
        ("steps", lambda: theory.sobolev_factors(3000, 0.1, 1.0)),
        ("alpha", lambda: theory.sobolev_polynomials(3, 0.5, 0.1, 1.0, alpha=-0.5)),
        ("eta", lambda: theory.sobolev_polynomials(3, 0.5, 0.1, 1.0, eta=0.0)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()


@pytest.mark.parametrize("value", [np.array("0.5"), 0.5 + 0j], ids=["text", "complex"])
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(TypeError, match="`rho` must be a real number"):
        theory.burn_in_peak(value)
