"""Chebyshev and Sobolev: their polynomials, burn-in, speed, stability and bad arguments."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff import theory
from iterdiff.algorithms.polynomial import Chebyshev, Sobolev

DIAGONAL = itd.LinearSystem(
    lambda x, theta: theta * x, lambda theta: 0 * theta, positive_definite=True
)


@eqx.filter_jit
def residual_polynomials(algorithm, eigenvalues, steps):
    """Return P_t and P_t' at the eigenvalues by running the algorithm on a diagonal system."""

    def iterates(theta):
        state = algorithm.init(DIAGONAL, jnp.ones_like(theta), theta)

        def advance(state, _):
            return algorithm.step(DIAGONAL, state, theta), state.x

        return jax.lax.scan(advance, state, None, length=steps + 1)[1]

    return jax.jvp(iterates, (eigenvalues,), (jnp.ones_like(eigenvalues),))


@pytest.mark.parametrize(
    "low, options",
    [
        (1e-3, {}),
        (1e-3, {"norm": "A", "alpha": 0.0, "eta": 0.5}),
        (0.2, {"alpha": 2.0, "eta": 1e-3}),
    ],
    ids=["default", "A", "alpha=2"],
)
def test_sobolev_runs_the_optimal_polynomials(low, options):
    steps, z = 120, jnp.linspace(low, 1.0, 60)
    value, derivative = residual_polynomials(Sobolev(low, 1.0, **options), z, steps)
    expected = jax.jit(lambda z: theory.sobolev_polynomials(steps, z, low, 1.0, **options))(z)
    scale = np.abs(expected.value).max(axis=1, keepdims=True)
    np.testing.assert_allclose(value / scale, expected.value / scale, atol=1e-9)
    slope = np.maximum(np.abs(expected.derivative).max(axis=1, keepdims=True), scale)
    np.testing.assert_allclose(derivative / slope, expected.derivative / slope, atol=1e-8)


def test_chebyshev_runs_its_polynomials():
    steps, low, z = 120, 1e-3, jnp.linspace(1e-3, 1.0, 60)
    value, derivative = residual_polynomials(Chebyshev(low, 1.0), z, steps)
    t = np.arange(steps + 1)[:, None]
    expected = jax.jit(lambda z: theory.chebyshev_polynomial(t, z, low, 1.0))(z[None])
    scale = np.abs(expected.value).max(axis=1, keepdims=True)
    np.testing.assert_allclose(value / scale, expected.value / scale, atol=1e-9)
    slope = np.maximum(np.abs(expected.derivative).max(axis=1, keepdims=True), scale)
    np.testing.assert_allclose(derivative / slope, expected.derivative / slope, atol=1e-9)


# Jacobian errors on quadratics, from the polynomials that the algorithms run. In the eigenbasis
# of H, with divided differences P[.,.] and the errors e_0, E_0 of iterate and Jacobian at x0:
#     E_t = P_t(H) E_0 + (P_t[l_i, l_j] dH_ij) e_0.
# tests/theory holds this identity against unrolled Jacobians.

KINDS = ("ridge", "flat", "mixed")
SIZE, SEEDS, LONGEST = 40, 10, 420
# The docstring of Sobolev quotes what two draws of 40 problems of sizes 40 and 100 gave.


def jacobian_error(kind, spectrum, value, slope, rng):
    """Return ||E_t|| / ||E_0|| for a random quadratic, from P_t and P_t' at its spectrum.

    "ridge": the derivative of the gradient at x0 vanishes; "flat": H and dH commute, and E_0 is
    independent of dH; "mixed": H and dH do not commute.
    """
    e0, root = rng.normal(size=SIZE), np.sqrt(spectrum)
    if kind == "ridge":  # dH e_0 + H E_0 = 0
        E0 = rng.normal(size=SIZE)
        dH = np.diag(-spectrum * E0 / e0)
    elif kind == "flat":
        E0 = rng.normal(size=SIZE)
        dH = np.diag(spectrum * rng.uniform(-1, 1, SIZE))
    else:
        raw = rng.normal(size=(SIZE, SIZE))
        dH = root[:, None] * (raw + raw.T) / 2 / np.sqrt(SIZE) * root
        E0 = (rng.normal(size=SIZE) - dH @ e0) / spectrum
    gap = spectrum[:, None] - spectrum + np.eye(SIZE)
    divided = (value[:, :, None] - value[:, None]) / gap + slope[:, :, None] * np.eye(SIZE)
    errors = np.linalg.norm(value * E0 + (divided * dH) @ e0, axis=1)
    return errors / np.linalg.norm(E0)


@functools.cache
def on_random_spectra(kappa):
    """Return spectra, and P_t and P_t' on them for Chebyshev and Sobolev, by spectrum."""
    spectra = np.random.default_rng(round(1 / kappa)).uniform(kappa, 1, (SEEDS, SIZE))
    spectra[:, 0], spectra[:, -1] = kappa, 1.0
    polynomials = []
    for algorithm in (Chebyshev(kappa, 1.0), Sobolev(kappa, 1.0)):
        pair = residual_polynomials(algorithm, jnp.asarray(spectra.ravel()), LONGEST)
        by_step = (np.asarray(part).reshape(-1, SEEDS, SIZE) for part in pair)
        polynomials.append([np.moveaxis(part, 1, 0) for part in by_step])
    return spectra, polynomials


@functools.cache
def curves(kind, kappa):
    """Return the error curves of Chebyshev and of Sobolev, shape (2, seeds, steps + 1)."""
    spectra, polynomials = on_random_spectra(kappa)
    out = []
    for value, slope in polynomials:
        rng = np.random.default_rng(KINDS.index(kind))  # the same problems for both
        tasks = zip(spectra, value, slope, strict=True)
        out.append([jacobian_error(kind, *task, rng) for task in tasks])
    return np.array(out)


every_kind = pytest.mark.parametrize("kind", KINDS)
every_kappa = pytest.mark.parametrize("kappa", [1e-2, 1e-3])


@every_kappa
def test_sobolev_never_amplifies_the_initial_jacobian_error(kappa):
    # the worst case of |P_t - lambda P_t'| over the spectra; Chebyshev's exceeds its start
    spectra, polynomials = on_random_spectra(kappa)
    chebyshev, sobolev = (
        np.abs(value - spectra[:, None] * slope).max() for value, slope in polynomials
    )
    assert sobolev <= 1 + 1e-9
    assert chebyshev > 0.4 / kappa


@every_kappa
@every_kind
def test_sobolev_has_hardly_any_burn_in(kind, kappa):
    chebyshev, sobolev = curves(kind, kappa)
    assert sobolev.max() <= (1 + 1e-9 if kind == "ridge" else 1.25)
    assert np.mean(sobolev.max(axis=1) > 1 + 1e-9) <= 0.1
    if kind != "mixed":  # Chebyshev has one on the same problems
        assert np.median(chebyshev.max(axis=1)) > 3


@every_kappa
@every_kind
def test_sobolev_needs_fewer_iterations_than_chebyshev(kind, kappa):
    chebyshev, sobolev = (np.argmax(errors < 1e-6, axis=1) for errors in curves(kind, kappa))
    assert min(chebyshev.min(), sobolev.min()) > 0, "not converged"
    ratios = sobolev / chebyshev
    assert 0.65 < np.median(ratios) < 0.9  # about what the docstring states
    assert 0.6 < ratios.min() and ratios.max() < 1.02


def test_sobolev_is_worse_at_first_where_chebyshev_has_no_burn_in():
    # a limit that the docstring states, for the first 4 sqrt(L / l) iterations
    chebyshev, sobolev = curves("mixed", 1e-3)
    worst = (sobolev / chebyshev)[:, :127].max(axis=1)
    assert 4 < np.median(worst) < 13


@pytest.mark.parametrize("algorithm", [Chebyshev(1e-3, 1.0), Sobolev(1e-3, 1.0)])
def test_stable_to_thousands_of_steps(algorithm):
    z = jnp.concatenate([jnp.array([1e-3, 1.0]), jnp.linspace(1e-3, 1.0, 14)])
    solution = jnp.linspace(-1.0, 2.0, 16)
    problem = itd.LinearSystem(lambda x, s: s * x, lambda s: s * solution, positive_definite=True)

    def iterates(scale):
        theta = z * scale
        state = algorithm.init(problem, jnp.zeros(16), theta)
        step = lambda state, _: (algorithm.step(problem, state, theta), state.x)  # noqa: E731
        return jax.lax.scan(step, state, None, length=5000)[1]

    # The solution does not depend on the scale: its derivative is zero.
    x, slope = jax.jit(lambda s: jax.jvp(iterates, (s,), (jnp.ones(()),)))(jnp.ones(()))
    assert jnp.abs(x[1000:] - solution[None]).max() < 1e-11
    assert jnp.abs(slope[1000:]).max() < 1e-10
    # Without the rounding of the right-hand side, the polynomial keeps falling at its rate, up
    # to a power of t.
    value, _ = residual_polynomials(algorithm, z, 4000)
    size = np.abs(value).max(axis=1)
    assert (size[4000] / size[3000]) ** 1e-3 == pytest.approx(
        float(theory.chebyshev_rate(1e-3, 1.0)), rel=1e-4
    )


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [
        (Chebyshev(0.5, 3.0), "float64"),
        (Sobolev(0.5, 3.0), "float64"),
        (Sobolev(0.5, 3.0), "float32"),
    ],
)
def test_trees_dtypes_and_derivatives_at_the_solution(algorithm, dtype):
    problem = itd.Minimization(
        lambda x, theta: jnp.sum((x["a"] - theta) ** 2) / 2 + (x["b"][0] - theta[0]) ** 2
    )
    theta = jnp.array([0.5, -1.0], dtype)
    x0 = {"a": jnp.zeros(2, dtype), "b": (jnp.zeros((), dtype),)}

    def run(theta, x0, steps):
        state = algorithm.init(problem, x0, theta)
        step = lambda state, _: (algorithm.step(problem, state, theta), None)  # noqa: E731
        return jax.lax.scan(step, state, None, length=steps)[0].x

    # The iterate stays at the exact solution, and its derivative converges too.
    def from_the_solution(start):
        there = {"a": start, "b": (start[0],)}
        return jax.jacfwd(lambda theta: run(theta, there, 40)["a"])(theta)

    x, J = jax.jit(lambda: (run(theta, x0, 40), from_the_solution(theta)))()
    assert jax.tree.map(lambda v: (v.shape, v.dtype), x) == jax.tree.map(
        lambda v: (v.shape, v.dtype), x0
    )
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(x["a"], theta, atol=tolerance)
    np.testing.assert_allclose(x["b"][0], theta[0], atol=tolerance)
    np.testing.assert_allclose(J, np.eye(2), atol=100 * tolerance)


def test_hyper_parameters_are_leaves():
    z = jnp.linspace(0.1, 1.0, 7)

    def last(low):
        algorithm = Sobolev(low, 1.0)
        state = algorithm.init(DIAGONAL, jnp.ones(7), z)
        step = lambda state, _: (algorithm.step(DIAGONAL, state, z), None)  # noqa: E731
        return jax.lax.scan(step, state, None, length=6)[0].x

    @jax.jit
    @jax.vmap
    def with_slope(low):
        return jax.jvp(last, (low,), (jnp.ones(()),))

    values, slopes = with_slope(jnp.array([0.05, 0.1 - 1e-6, 0.1, 0.1 + 1e-6]))
    np.testing.assert_allclose(values[2], jax.jit(last)(0.1), rtol=1e-12)
    difference = (values[3] - values[1]) / 2e-6
    np.testing.assert_allclose(slopes[2], difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [Chebyshev, Sobolev])
@pytest.mark.parametrize(
    "arguments, name",
    [((0.0, 1.0), "smallest"), ((2.0, 1.0), "smallest"), ((1.0, 1.0), "smallest")],
)
def test_bad_bounds_name_the_argument(kind, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        kind(*arguments)


@pytest.mark.parametrize("options", [{"alpha": -0.5}, {"eta": 0.0}, {"norm": "C"}])
def test_bad_options_name_the_argument(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        Sobolev(0.1, 1.0, **options)
