"""What `trace` measures, against closed forms and brute force.

Compiling the recorded scan takes most of the time, so tests share datasets and programs.
"""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import xarray

import iterdiff as itd
from iterdiff.diagnostics.dataset import installed_version
from iterdiff.jaxtools import tree
from tests.cases import build
from tests.helpers import compiled

# f = theta x^2 / 2 - b x by gradient descent: e_t = (1 - h theta)^t e_0, and
# dx_t/dtheta = -h t (1 - h theta)^(t-1) e_0 + (1 - (1 - h theta)^t) dx*/dtheta
CURVATURE, STEP, START = 0.05, 0.1, 0.5
MODES = {"unrolled": itd.Unrolled(), "implicit": itd.Implicit(), "one-step": itd.OneStep()}


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_scalar_quadratic_is_the_closed_form(slope):
    problem = itd.Minimization(lambda x, theta: theta * x**2 / 2 - slope * x)
    task = (problem, itd.GradientDescent(STEP), START, CURVATURE)
    data = itd.trace(*task, steps=1000, modes=MODES)
    t = np.arange(1001)
    rho = 1 - STEP * CURVATURE
    solution, jacobian = slope / CURVATURE, -slope / CURVATURE**2
    error = rho**t * (START - solution)
    x = solution + error
    expected = {
        "unrolled": -STEP * t * rho ** (t - 1.0) * (START - solution) - rho**t * jacobian,
        "implicit": -x / CURVATURE - jacobian,
        # only the last step: -h x_{t-1}
        "one-step": np.where(t > 0, -STEP * np.roll(x, 1), 0) - jacobian,
    }
    scale = max(abs(jacobian), 1.0)
    for label, curve in expected.items():
        measured = data.jacobian_error.sel(mode=label)
        np.testing.assert_allclose(measured, np.abs(curve), rtol=1e-12, atol=1e-12 * scale)
    size = abs(START - solution)
    np.testing.assert_allclose(data.iterate_error, np.abs(error), rtol=1e-12, atol=1e-12 * size)
    height = CURVATURE * error**2 / 2
    np.testing.assert_allclose(
        data.objective_error, height, rtol=1e-12, atol=1e-12 * max(height[0], abs(slope * solution))
    )
    np.testing.assert_allclose(
        data.residual_norm, CURVATURE * np.abs(error), rtol=1e-12, atol=1e-12 * max(slope, 0.01)
    )
    assert data.jacobian_error.attrs["reference_norm"] == pytest.approx(abs(jacobian), rel=1e-12)
    if slope == 0:  # a linear times an exponential sequence peaks at -1 / ln(rho) = 199.5
        assert int(np.argmax(data.jacobian_error.sel(mode="unrolled").values)) in (199, 200)


ALL_MODES = {
    "all": itd.Unrolled(),
    "last 2": itd.Unrolled(last=2),
    "one": itd.OneStep(),
    "implicit": itd.Implicit(),
    "refined": itd.Implicit(refine=1),
    "checked": itd.Checked(itd.Unrolled(), on_failure="nan"),
}


@pytest.mark.parametrize(("name", "index"), [("coupled_tree", 1), ("spd_system", 1)])
def test_every_mode_against_brute_force_at_every_iteration(name, index):
    case, steps = build(name), 3
    algorithm = case.algorithms[index].algorithm
    data = itd.trace(
        case.problem,
        algorithm,
        case.x0,
        case.theta,
        steps=steps,
        modes=ALL_MODES,
        reference=case.solution,
    )
    assert list(data.mode.values) == list(ALL_MODES)
    truth = jax.jacfwd(case.solution)(case.theta)

    def plain(theta, t, last):
        """Take t steps, of which the last `last` are differentiated."""
        state = algorithm.init(case.problem, case.x0, theta)
        for s in range(t):
            if last is not None and s == max(t - last, 0):
                state = jax.lax.stop_gradient(state)
            state = algorithm.step(case.problem, state, theta)
        return jax.lax.stop_gradient(state.x) if last is not None and t == 0 else state.x

    def implicit(theta, t, refine):
        x = plain(case.theta, t, None)
        attach = itd.Implicit(refine=refine).attach
        return attach(case.problem, x, theta, throw=True)

    def error(solution):
        found = jax.jacfwd(solution)(case.theta)
        return tree.norm(tree.sub(found, truth))

    @compiled
    def brute_force():
        rows = {label: [] for label in ALL_MODES}
        for t in range(steps + 1):
            for label, last in (("all", None), ("last 2", 2), ("one", 1)):
                rows[label].append(error(lambda theta, t=t, last=last: plain(theta, t, last)))
            for label, refine in (("implicit", 0), ("refined", 1)):
                rows[label].append(error(lambda theta, t=t, r=refine: implicit(theta, t, r)))
        rows["checked"] = rows["all"]
        return {label: jnp.stack(row) for label, row in rows.items()}

    for label, row in brute_force().items():
        measured = data.jacobian_error.sel(mode=label).values
        np.testing.assert_allclose(measured, row, rtol=1e-10, atol=1e-12, err_msg=label)
    assert data.iterate_error[0] > data.iterate_error[-1] > 0


def logistic():
    """Logistic regression with one log-penalty each, from a point where its loss is curved."""
    rows = jnp.array([[1.0, 0.3], [-0.4, 1.2], [0.8, -0.9], [0.2, 0.5], [-1.1, -0.2]])
    signs = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0])

    def objective(w, theta):
        losses = jnp.logaddexp(0.0, -signs * (rows @ w))
        return jnp.mean(losses) + jnp.sum(jnp.exp(theta) * w**2) / 2

    start, theta = jnp.array([2.0, -1.5]), jnp.array([-3.0, -2.0])
    return itd.Minimization(objective), itd.GradientDescent(1.0), start, theta


def nonsymmetric():
    """Return a curved fixed point of three unknowns, each of which depends on the next."""
    mix = jnp.array([[0.5, 0.6, 0.0], [0.0, 0.4, 0.7], [-0.3, 0.0, 0.5]])
    problem = itd.FixedPoint(lambda x, theta: jnp.tanh(mix @ x + theta))
    return problem, itd.Picard(), jnp.array([2.0, -2.0, 1.0]), jnp.array([0.3, -0.1, 0.2])


ESTIMATED = {"nonsymmetric": (nonsymmetric, None), "probes": (logistic, 3)}


@functools.cache
def estimated(name):
    """Return a dataset with estimates; every second of 60 steps is recorded."""
    task, probes = ESTIMATED[name]
    return itd.trace(*task(), steps=60, modes=MODES, every=2, probes=probes, estimate=True)


@pytest.mark.parametrize("name", ESTIMATED)
def test_trusted_estimates_are_within_a_factor_of_two(name):
    data = estimated(name)
    assert data.jacobian_error_estimate.dims == data.estimate_trusted.dims == ("mode", "iteration")
    trusted = data.estimate_trusted.values
    assert trusted.dtype == bool
    ratio = (data.jacobian_error_estimate / data.jacobian_error).values
    assert (ratio[trusted] >= 0.5).all() and (ratio[trusted] <= 2).all()
    # Not trusted: far from the solution at the start, and at the level of rounding at the end.
    assert trusted.mean() > 0.8
    late = data.isel(iteration=slice(10, None)).sel(mode="unrolled")
    np.testing.assert_allclose(
        late.jacobian_error_estimate, late.jacobian_error, rtol=0.05, atol=1e-13
    )


def test_an_estimate_equals_derivative_error():
    problem, algorithm, x0, theta = nonsymmetric()

    def answer(theta):
        task = (problem, algorithm, x0, theta)
        return itd.solve(*task, stop=itd.Steps(4), mode=itd.Unrolled()).x

    @compiled
    def estimate(theta):
        jacobian = jax.jacfwd(answer)(theta)
        return itd.derivative_error(problem, answer(theta), theta, jacobian, near=np.inf)

    expected, found = estimate(theta), estimated("nonsymmetric").sel(iteration=4, mode="unrolled")
    np.testing.assert_allclose(found.jacobian_error_estimate, expected.absolute, rtol=1e-10)
    assert bool(found.estimate_trusted) == bool(expected.trusted)


def test_no_estimate_unless_requested():
    without = ridge()
    assert without.jacobian_error_estimate.isnull().all() and not without.estimate_trusted.any()
    nothing = ridge(modes={})
    assert nothing.jacobian_error_estimate.shape == nothing.estimate_trusted.shape == (0, 13)


def ridge(**options):
    case = build("ridge")
    algorithm = case.algorithms[0].algorithm
    options = {"steps": 12, "modes": {"unrolled": itd.Unrolled()}} | options
    return itd.trace(case.problem, algorithm, case.x0, case.theta, **options)


def test_the_layout_of_the_dataset():
    data = ridge(modes=MODES)
    assert isinstance(data, xarray.Dataset)
    assert dict(data.sizes) == {"mode": 3, "iteration": 13}
    assert data.jacobian_error.dims == ("mode", "iteration")
    for name in ("iterate_error", "objective_error", "residual_norm"):
        assert data[name].dims == ("iteration",)
    assert data.iteration.values.tolist() == list(range(13))
    assert data.mode.values.tolist() == list(MODES)
    expected = {"unknowns": 3, "parameters": 3, "problem": "Minimization", "dtype": "float64"}
    assert expected.items() <= data.attrs.items()
    assert data.status == "finite throughout"


def test_no_objective_where_there_is_none():
    case = build("sqrt")
    data = itd.trace(case.problem, itd.Newton(), case.x0, case.theta, steps=5, modes={})
    assert "objective_error" not in data
    assert data.jacobian_error.shape == (0, 6)
    assert data.iterate_error[5] < 1e-12


def test_every_records_a_subset():
    full, thin = ridge(), ridge(every=5)
    assert thin.iteration.values.tolist() == [0, 5, 10]
    xarray.testing.assert_allclose(thin, full.sel(iteration=[0, 5, 10]), rtol=1e-13)


def test_progress_is_reported_and_changes_nothing():
    seen = []
    data = ridge(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 13) for k in range(1, 14)]  # the start included
    xarray.testing.assert_allclose(data, ridge(), rtol=1e-13)


def test_probes_are_unbiased():
    full = ridge(modes=MODES).jacobian_error
    count = 4000
    data = ridge(modes=MODES, probes=count)
    assert data.jacobian_error.attrs["directions"] == "4000 probes"
    # the square's relative standard deviation is at most sqrt(2 / count) = 2.2 %
    np.testing.assert_allclose(data.jacobian_error**2, full**2, rtol=4 * np.sqrt(2 / count))
    other = ridge(modes=MODES, probes=(count, jax.random.key(1))).jacobian_error
    assert not np.allclose(other, data.jacobian_error, rtol=1e-6)
    np.testing.assert_allclose(other**2, full**2, rtol=4 * np.sqrt(2 / count))


def test_references_of_each_kind_agree():
    case = build("ridge")
    computed = ridge()
    for given in (case.solution, case.solution(case.theta), np.asarray(case.solution(case.theta))):
        data = ridge(reference=given)
        np.testing.assert_allclose(data.jacobian_error, computed.jacobian_error, rtol=1e-9)
        np.testing.assert_allclose(data.iterate_error, computed.iterate_error, rtol=1e-9)


def test_a_given_reference_is_believed():
    data = ridge(reference=lambda theta: 0 * theta)
    assert data.jacobian_error.attrs["reference_norm"] == 0
    assert data.iterate_error[0] == 0  # x0 = 0


def not_isolated(x, theta):
    """Be smallest on a line."""
    return (jnp.sum(x) - theta) ** 2


def without_minimizer(x, theta):
    """Fall forever."""
    return theta * jnp.sum(jnp.logaddexp(0.0, -x))


def outside(x, theta):
    """Be undefined at negative x."""
    return jnp.sum(x * jnp.log(x) - theta * x)


REFUSED = {
    "not isolated": (not_isolated, 0.0, None, "`reference`"),
    "no solution": (without_minimizer, 0.0, None, "`reference`"),
    "singular at the given solution": (not_isolated, 0.0, np.array([0.5, 0.5]), "`reference`"),
    "not finite at the start": (outside, -1.0, None, "`x0`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_reference_that_cannot_be_computed(name):
    objective, start, reference, words = REFUSED[name]
    task = (itd.Minimization(objective), itd.GradientDescent(0.1), jnp.full(2, start), 1.0)
    with pytest.raises(ValueError, match=words):
        itd.trace(*task, steps=5, modes={}, reference=reference)


WRONG = {
    "reference structure": ({"reference": {"a": jnp.zeros(3)}}, ValueError, "`reference`"),
    "reference shape": ({"reference": jnp.zeros(4)}, ValueError, "`reference`"),
    "reference complex": ({"reference": jnp.zeros(3, complex)}, TypeError, "`reference`"),
    "modes a list": ({"modes": [itd.Implicit()]}, TypeError, "`modes`"),
    "modes of strings": ({"modes": {"a": "implicit"}}, TypeError, "`modes`"),
    "last": ({"modes": {"a": itd.Unrolled(last=13)}}, ValueError, "`last`"),
    "probes": ({"probes": 0}, ValueError, "`probes`"),
    "probes of a pair": ({"probes": (0, jax.random.key(0))}, ValueError, "`probes`"),
    "every": ({"every": 0}, ValueError, "`every`"),
    "every too large": ({"every": 13}, ValueError, "`every`"),
    "estimate": ({"estimate": 1}, TypeError, "`estimate`"),
    "steps": ({"steps": 0}, ValueError, "`steps`"),
    "steps no int": ({"steps": 2.0}, TypeError, "`steps`"),
    "no pair": ({"probes": (1, 2, 3)}, TypeError, "`probes`"),
    "no key": ({"probes": (3, 1)}, TypeError, "`probes`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    arguments, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        ridge(**arguments)


def test_not_under_a_transformation():
    def final(theta):
        problem = itd.Minimization(lambda x, theta: (x - theta) ** 2)
        data = itd.trace(problem, itd.GradientDescent(0.1), 0.0, theta, steps=2, modes={})
        return data.iterate_error.values[-1]

    with pytest.raises(TypeError, match="`trace`"):
        jax.jit(final)(1.0)


def test_divergence_is_recorded():
    # x_t = 2^(2^t) overflows at t = 10
    problem = itd.FixedPoint(lambda x, theta: theta * x**2)
    modes = {"unrolled": itd.Unrolled()}
    data = itd.trace(
        problem, itd.Picard(), 2.0, 1.0, steps=14, modes=modes, reference=lambda theta: 1 / theta
    )
    assert data.sizes["iteration"] == 15
    # the residual x - x^2 overflows one iteration before
    assert data.status == "diverged: not finite from iteration 9 on"
    errors = data.iterate_error.values
    np.testing.assert_allclose(errors[:9], 2.0 ** (2.0 ** np.arange(9)) - 1)
    assert not np.any(np.isfinite(errors[10:]))
    assert not np.any(np.isfinite(data.jacobian_error.values[0, 11:]))


def test_an_algorithm_that_cannot_be_unrolled():
    case = build("cubic_scalar")
    task = (case.problem, itd.Bisection(0.0, 2.0), case.x0, case.theta)
    with pytest.raises(ValueError, match="Bisection"):
        itd.trace(*task, steps=3, modes=MODES)
    data = itd.trace(*task, steps=50, modes={"implicit": itd.Implicit()})
    assert data.jacobian_error[0, -1] < 1e-12


def cosh(x, theta):
    """Be smallest at arcsinh(theta)."""
    return jnp.sum(jnp.cosh(x) - theta * x)


def test_a_second_reference_compiles_nothing():
    compilations = []

    def note(event, _, **__):
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    def trace_with_each_reference():
        compilations.clear()
        task = (itd.Minimization(cosh), itd.GradientDescent(0.3), jnp.zeros(3), jnp.full(3, 1.0))
        for reference in (None, jnp.arcsinh(jnp.ones(3)), jnp.arcsinh):
            data = itd.trace(*task, steps=30, modes=MODES, reference=reference)
            assert data.iterate_error[-1] < 1e-3
        return len(compilations)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        assert trace_with_each_reference() > 0
        assert trace_with_each_reference() == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_a_package_that_is_not_installed(monkeypatch):
    assert ridge().iterdiff_version == importlib.metadata.version("iterdiff")
    installed_version.cache_clear()
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: iter(()))
    assert ridge().iterdiff_version == "unknown"
    installed_version.cache_clear()
