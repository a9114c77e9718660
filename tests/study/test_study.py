"""Studies: datasets against closed forms, and their views."""

import json
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

import iterdiff as itd
from iterdiff.study import physics
from iterdiff.study.catalog import find, load_study
from iterdiff.study.config import Overrides
from iterdiff.study.explorer import page, step_sizes
from iterdiff.study.grid import cases, run
from iterdiff.study.plots import figures, save_figures
from iterdiff.study.report import save_report, verdicts
from iterdiff.study.summary import converged, deviation, jacobian_of

UNROLLED = {"unrolled": {"type": "Unrolled"}}
GD = {"GD": {"type": "GradientDescent", "step_size": "1/L"}}


@pytest.fixture(scope="module")
def scalar():
    """The scalar quadratic, both values of b, far enough to see the peak."""
    seen = []
    study = load_study("scalar-quadratic", Overrides(steps=260))
    data = run(study, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (520, 520) and seen == sorted(seen)
    return data


@pytest.fixture
def made_up():
    """A dataset of two algorithms with everything that is awkward to draw, made by hand."""
    t = np.arange(41)
    falling = 0.5 ** t.astype(float)
    hump = (1 + t) * 0.8**t
    broken = np.where(t < 30, 2.0**t, np.inf)
    ended = np.where(t <= 20, 0.1**t, np.nan)
    jacobian = np.array([[hump, falling], [broken, ended]])
    late = np.array([[hump[:21], falling[:21]], [np.full(21, np.inf), 0 * falling[:21]]])
    late[:, 0, 11:] = np.nan
    return xarray.Dataset(
        {
            "iterate_error": (("algorithm", "iteration"), np.array([falling, 0 * falling])),
            "jacobian_error": (("algorithm", "mode", "iteration"), jacobian),
            "jacobian_error_estimate": (("algorithm", "mode", "iteration"), np.nan * jacobian),
            "estimate_trusted": (("algorithm", "mode", "iteration"), jacobian < -np.inf),
            "reference_norm": ("algorithm", np.array([1.0, 0.0])),
            "late_start_error": (("algorithm", "total", "start"), late),
            "late_start_predicted": ("algorithm", np.array([3.0, np.nan])),
            "steps": ("algorithm", np.array([40, 40])),
            "every": ("algorithm", np.array([1, 1])),
            "status": ("algorithm", ["finite throughout", "diverged: not finite from 30 on"]),
        },
        coords={
            "algorithm": ["good", "bad"],
            "mode": ["unrolled", "implicit"],
            "iteration": t,
            "total": [10, 20],
            "start": t[:21],
        },
        attrs={"title": "made up", "axis": "algorithm", "study": "none"},
    )


def test_scalar_quadratic_is_its_closed_form(scalar):
    t, rho = np.arange(261.0), 0.995
    zero, one = (scalar.sel(b=b, mode="unrolled").jacobian_error.values for b in (0.0, 1.0))
    assert np.max(np.abs(zero - 0.1 * t * rho ** (t - 1) * 0.5)) <= 1e-12
    exact = np.abs(400 * rho**t + 0.1 * t * rho ** (t - 1) * 19.5)
    np.testing.assert_allclose(one, exact, rtol=1e-12)
    for _, case in cases(scalar):
        absolute, relative = deviation(case)
        assert absolute <= 1e-12 * 400 and relative <= 1e-12
    np.testing.assert_allclose(scalar.reference_norm, [0.0, 400.0])
    np.testing.assert_allclose(scalar.sel(b=0.0).iterate_error, 0.5 * rho**t, rtol=1e-12)
    # Suboptimality of the objective: theta (x - x*)^2 / 2.
    np.testing.assert_allclose(
        scalar.sel(b=1.0).objective_error, 0.025 * (19.5 * rho**t) ** 2, rtol=1e-9
    )


def test_scalar_quadratic_tells_the_peak(scalar):
    found = jacobian_of(dict(cases(scalar))["b = 0"], "unrolled")
    # |J_199| = |J_200| exactly: 199 = 0.995 * 200.
    assert found.peak_iteration in (199, 200) and found.start_iteration == 1
    assert found.growth == pytest.approx(200 * 0.995**199, rel=1e-12)
    assert found.burn_in_end is None and not found.relative
    text = "\n".join(verdicts(scalar))
    assert "-1/ln(1 - eta theta) = 199.5" in text and "1/(eta theta) = 200" in text
    end = int(re.search(r"burn-in over at iteration (\d+)", text)[1])
    assert end * 0.995 ** (end - 1) <= 1 < (end - 1) * 0.995 ** (end - 2)


def test_scalar_quadratic_explains_the_peak(scalar):
    drawn = figures(scalar)
    assert set(drawn) == {"convergence", "explanation"}
    zero = scalar.sel(b=0.0)
    product = zero.linear_factor * zero.exponential_factor
    np.testing.assert_allclose(product, zero.closed_form, rtol=1e-12)
    texts = [text.get_text() for axes in drawn["explanation"].axes for text in axes.texts]
    assert any("199.5" in text for text in texts)


def test_dataset_survives_a_file(scalar, tmp_path):
    scalar.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    back = xarray.load_dataset(tmp_path / "a.nc", engine="h5netcdf")
    xarray.testing.assert_identical(back.drop_vars("status"), scalar.drop_vars("status"))
    assert list(back.status.values) == list(scalar.status.values)
    assert back.attrs["dtype"] == "float64" and "iterdiff_version" in back.attrs


def test_ridge_is_measured_against_its_normal_equations(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,y\n1,2,3\n2,1,5\n4,4,4\n0,3,1\n7,5,9\n")
    overrides = Overrides(
        steps=6,
        every=3,
        problem={"data": str(path), "target": "y"},
        algorithms=GD,
        modes=UNROLLED,
    )
    data = run(load_study("ridge", overrides))
    raw = np.loadtxt(path, delimiter=",", skiprows=1)
    z = (raw - raw.mean(0)) / raw.std(0)
    features, y = z[:, :2], z[:, 2]
    hessian = features.T @ features / 5 + 0.1 * np.eye(2)
    weights = np.linalg.solve(hessian, features.T @ y / 5)
    jacobian = -np.linalg.solve(hessian, 0.1 * np.diag(weights))
    x = np.random.default_rng(0).standard_normal(2)
    step, slope, errors = 1 / np.linalg.eigvalsh(hessian)[-1], np.zeros((2, 2)), []
    for t in range(7):
        if t % 3 == 0:
            errors.append([np.linalg.norm(x - weights), np.linalg.norm(slope - jacobian)])
        slope = slope - step * (hessian @ slope + 0.1 * np.diag(x))
        x = x - step * (hessian @ x - features.T @ y / 5)
    measured = data.isel(algorithm=0, mode=0)
    np.testing.assert_allclose(measured.iterate_error, np.array(errors)[:, 0], rtol=1e-10)
    np.testing.assert_allclose(measured.jacobian_error, np.array(errors)[:, 1], rtol=1e-10)
    assert measured.iteration.values.tolist() == [0, 3, 6]
    # What is estimated without the truth is exact on a quadratic, and drawn.
    assert measured.estimate_trusted.all()
    np.testing.assert_allclose(
        measured.jacobian_error_estimate, measured.jacobian_error, rtol=1e-10
    )
    labels = figures(data)["convergence"].axes[0].get_legend_handles_labels()[1]
    assert "estimated error, where trusted" in labels


def test_logistic_is_bounded_by_its_spectrum(getkey):
    case = load_study("logistic").cases[0]
    assert case.theta.shape == case.x0.shape == (30,)
    low, high = find("logistic").build(**find("logistic").options)[0].spectrum
    hessian = jax.jit(jax.hessian(case.problem.objective))
    for point in (jnp.zeros(30), case.x0, jax.random.normal(getkey(), (30,))):
        values = np.linalg.eigvalsh(hessian(point, case.theta))
        assert low <= values[0] * (1 + 1e-9) and values[-1] <= high * (1 + 1e-9)
    assert values.size == 30
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian(jnp.zeros(30), case.theta))[-1], high)


def test_diffusion_is_the_five_point_stencil_and_symmetric():
    options = {"cells": 4, "contrast": 5.0, "roughness": 0.5, "seed": 0}
    (setting,) = physics.diffusion(**options)

    def matrix(theta):
        units = jnp.eye(16).reshape(16, 4, 4)
        return jax.vmap(lambda v: setting.problem.operator(v, theta).ravel())(units)

    one_way = 2 * np.eye(4) - np.eye(4, k=1) - np.eye(4, k=-1) + np.diag([1.0, 0, 0, 1])
    plain = np.kron(one_way, np.eye(4)) + np.kron(np.eye(4), one_way)
    np.testing.assert_allclose(matrix(jnp.ones((4, 4))), plain, atol=1e-14)
    uneven = matrix(setting.theta)
    np.testing.assert_allclose(uneven, uneven.T, atol=1e-13)
    np.testing.assert_allclose(np.linalg.eigvalsh(uneven)[[0, -1]], setting.spectrum)
    exact = setting.reference(setting.theta)
    residual = setting.problem.residual(exact, setting.theta)
    np.testing.assert_allclose(residual, np.zeros((4, 4)), atol=1e-14)


def test_bratu_approaches_the_known_solution():
    (setting,) = physics.bratu(points=63, source=2.0)
    stop = itd.ResidualBelow(rtol=1e-12, max_steps=30)
    u = itd.solve(setting.problem, itd.Newton(), setting.x0, setting.theta, stop=stop).x
    omega = 1.0
    for _ in range(200):
        omega = np.sqrt(4.0) * np.cosh(omega / 4)
    s = np.arange(1, 64) / 64
    exact = -2 * np.log(np.cosh((s - 0.5) * omega / 2) / np.cosh(omega / 4))
    np.testing.assert_allclose(u, exact, atol=1e-3 * exact.max())


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([1, 3, 2, 0.5, 1e-9], {"peak": 3, "peak_iteration": 2, "burn_in_end": 4, "small_from": 8}),
        ([1, 0.5, 0.2, 0.1, 0.1], {"peak": 1, "burn_in_end": 0, "small_from": None}),
        ([0, 1, 2, 3, 4], {"start": 1, "start_iteration": 2, "burn_in_end": None}),
        ([1, 2, np.nan, 1, 1], {"peak": np.inf, "peak_iteration": 4, "burn_in_end": 4}),
        ([0, 0, 0, 0, 0], {"start": 0, "peak": 0, "burn_in_end": 0, "small_from": 0}),
    ],
)
def test_numbers_of_a_curve(errors, expected):
    found = converged(np.arange(0, 10, 2), np.array(errors, float), 1.0)
    assert {name: getattr(found, name) for name in expected} == expected


def test_views_of_awkward_numbers(made_up, tmp_path):
    names = save_figures(made_up, tmp_path, paper=True)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert {name.rsplit(".", 1)[1] for name in names} == {"png", "svg", "pdf"}
    picture = plt.imread(tmp_path / "convergence.png")
    assert picture.std() > 0.05  # something is drawn
    save_report(made_up, tmp_path / "report.txt")
    text = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 100
    assert "diverged: not finite from 30 on" in text
    assert "burn-in until iteration 11, peak 2.05x its start at" in text


def test_page_holds_every_curve_and_loads_nothing(made_up):
    made_up.attrs["title"] = "made up </script>"
    text = page(made_up)
    assert not re.search(r"https?:|src=|@import|url\((?!#)", text)
    content = json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE)[1])
    assert [case["label"] for case in content["cases"]] == ["good", "bad"]
    unrolled = content["cases"][0]["curves"][0]
    assert unrolled["name"] == "Jacobian, unrolled" and len(unrolled["points"]) == 41
    assert unrolled["points"][2] == [2, round(np.log10(3 * 0.64), 4)]
    # What is not finite or zero is left out: the bad case's error is infinite from 30 on.
    assert len(content["cases"][1]["curves"][0]["points"]) == 30
    assert text.count("</script>") == 1


def test_slider_runs_along_step_sizes():
    study = step_sizes(count=3, steps=5)
    assert study.axis == "step_size" and [c.label for c in study.cases] == [0.1, 1.045, 1.99]
    assert [float(c.algorithm.step_size) for c in study.cases] == [0.1, 1.045, 1.99]


def test_curves_are_cut_where_a_log_scale_ends(made_up):
    axes = figures(made_up)["convergence"].axes
    for line in (line for panel in axes for line in panel.lines):
        heights = np.asarray(line.get_ydata(), float)
        assert not (heights <= 0).any() and not np.isinf(heights).any()
