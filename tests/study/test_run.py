"""Datasets of studies, against closed forms."""

import numpy as np
import pytest
import xarray

from iterdiff.study.catalog import load_study
from iterdiff.study.files import write_netcdf
from iterdiff.study.run import cases, run
from iterdiff.study.views.plots import figures
from iterdiff.study.views.summary import deviation, jacobian_of
from iterdiff.study.views.verdicts import (
    ClosedFormGap,
    ImplicitAgainstUnrolled,
    JacobianConvergence,
    PredictedPeak,
    verdicts,
)

T, RHO = np.arange(261.0), 0.995


@pytest.fixture(scope="module")
def scalar():
    """The scalar quadratic for b = 0 and b = 1, run beyond the peak of the error."""
    seen = []
    data = run(load_study("scalar-quadratic", steps=260), lambda *counts: seen.append(counts))
    assert seen[-1] == (522, 522) and seen == sorted(seen)
    return data


def test_scalar_quadratic_has_its_closed_form(scalar):
    zero, one = (scalar.sel(b=b, mode="unrolled").jacobian_error.values for b in (0.0, 1.0))
    np.testing.assert_allclose(zero, 0.1 * T * RHO ** (T - 1) * 0.5, atol=1e-12)
    exact = np.abs(400 * RHO**T + 0.1 * T * RHO ** (T - 1) * 19.5)
    np.testing.assert_allclose(one, exact, rtol=1e-12)
    for _, case in cases(scalar):
        absolute, relative = deviation(case)
        assert absolute <= 1e-12 * 400 and relative <= 1e-12
    np.testing.assert_allclose(scalar.reference_norm, [0.0, 400.0])
    np.testing.assert_allclose(scalar.sel(b=0.0).iterate_error, 0.5 * RHO**T, rtol=1e-12)
    # Suboptimality of the objective: theta (x - x*)^2 / 2.
    np.testing.assert_allclose(
        scalar.sel(b=1.0).objective_error, 0.025 * (19.5 * RHO**T) ** 2, rtol=1e-9
    )


def test_peak_of_the_scalar_quadratic(scalar):
    found = jacobian_of(dict(cases(scalar))["b = 0"], "unrolled")
    # |J_199| = |J_200| exactly: 199 = 0.995 * 200.
    assert found.peak_iteration in (199, 200) and found.start_iteration == 1
    assert found.growth == pytest.approx(200 * 0.995**199, rel=1e-12)
    assert found.burn_in_end is None and not found.relative


def test_verdicts_on_the_scalar_quadratic(scalar):
    zero, one = verdicts(scalar)
    assert (zero.label, one.label) == ("b = 0", "b = 1")
    kinds = [JacobianConvergence, JacobianConvergence, ImplicitAgainstUnrolled, ClosedFormGap]
    assert list(map(type, zero.verdicts)) == [*kinds, PredictedPeak]
    assert list(map(type, one.verdicts)) == kinds
    peak = zero.verdicts[-1]
    assert peak.peak == pytest.approx(-1 / np.log(RHO), rel=1e-9)
    assert peak.inverse_rate == pytest.approx(200, rel=1e-9)
    end = peak.burn_in_end
    assert end * RHO ** (end - 1) <= 1 < (end - 1) * RHO ** (end - 2)
    # The implicit error 200 theta |x_t| / theta = 20 x_t falls below 0.1 t rho**(t-1) / 2.
    implicit = np.abs(0.5 * RHO**T / 0.05)
    first = int(np.argmax(implicit < 0.05 * T * RHO ** (T - 1)))
    assert zero.verdicts[2].first in (first, first - 1, first + 1)


def test_explanation_multiplies_to_the_error(scalar):
    drawn = figures(scalar)
    assert set(drawn) == {"convergence", "explanation"}
    zero = scalar.sel(b=0.0)
    product = zero.linear_factor * zero.exponential_factor
    np.testing.assert_allclose(product, zero.closed_form, rtol=1e-12)
    texts = [text.get_text() for axes in drawn["explanation"].axes for text in axes.texts]
    assert any("199.5" in text for text in texts)


def test_dataset_survives_a_file(scalar, tmp_path):
    write_netcdf(scalar, tmp_path / "a.nc")
    back = xarray.load_dataset(tmp_path / "a.nc", engine="h5netcdf")
    xarray.testing.assert_identical(back.drop_vars("status"), scalar.drop_vars("status"))
    assert list(back.status.values) == list(scalar.status.values)
    assert back.attrs["dtype"] == "float64" and "iterdiff_version" in back.attrs


def test_measurement_and_estimate_on_a_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,y\n1,2,3\n2,1,5\n4,4,4\n0,3,1\n7,5,9\n")
    study = load_study(
        "ridge",
        steps=6,
        every=3,
        problem={"data": str(path), "target": "y"},
        algorithms={"GD": {"type": "GradientDescent", "step_size": "1/L"}},
        modes={"unrolled": {"type": "Unrolled"}},
    )
    data = run(study)
    case = study.cases[0]
    hessian = np.stack([case.problem.residual(e, case.theta) for e in np.eye(2)]) - np.asarray(
        case.problem.residual(np.zeros(2), case.theta)
    )
    weights = np.asarray(case.reference(case.theta))
    jacobian = -np.linalg.solve(hessian, 0.1 * np.diag(weights))
    x, step, slope, errors = case.x0, 1 / np.linalg.eigvalsh(hessian)[-1], np.zeros((2, 2)), []
    for t in range(7):
        if t % 3 == 0:
            errors.append([np.linalg.norm(x - weights), np.linalg.norm(slope - jacobian)])
        slope = slope - step * (hessian @ slope + 0.1 * np.diag(x))
        x = x - step * hessian @ (x - weights)
    measured = data.isel(algorithm=0, mode=0)
    np.testing.assert_allclose(measured.iterate_error, np.array(errors)[:, 0], rtol=1e-10)
    np.testing.assert_allclose(measured.jacobian_error, np.array(errors)[:, 1], rtol=1e-10)
    assert measured.iteration.values.tolist() == [0, 3, 6]
    # On a quadratic the estimate without the solution is exact. It is drawn as well.
    assert measured.estimate_trusted.all()
    np.testing.assert_allclose(
        measured.jacobian_error_estimate, measured.jacobian_error, rtol=1e-10
    )
    labels = figures(data)["convergence"].axes[0].get_legend_handles_labels()[1]
    assert "estimated error, where trusted" in labels


def test_peak_does_not_depend_on_the_interval(scalar):
    sparse = scalar.isel(iteration=slice(None, None, 130)).assign(every=scalar.every * 130)
    assert verdicts(sparse)[0].verdicts[-1] == verdicts(scalar)[0].verdicts[-1]
    texts = [t.get_text() for a in figures(sparse)["explanation"].axes for t in a.texts]
    assert any("199.5" in text for text in texts)
