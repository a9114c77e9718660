"""The studies of the curse: bounds along every measured curve, and late starts."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff import theory
from iterdiff.study.bounds import SmoothBounds, contraction_rate
from iterdiff.study.catalog import METHODS, MODES, load_study
from iterdiff.study.config import Case
from iterdiff.study.late_starts import late_starts
from iterdiff.study.problems.quadratics import Quadratic
from iterdiff.study.run import cases, run
from iterdiff.study.views.summary import jacobian_of
from iterdiff.study.views.verdicts import BoundCheck, verdicts


@pytest.fixture(scope="module")
def small_curse():
    """The curse on a small quadratic: two methods, and a late start of their last two steps."""
    late = {"last 2": {"type": "Unrolled", "last": 2}}
    study = load_study(
        "curse",
        steps=40,
        problem={"size": 4, "condition": 20, "spectrum": "ends", "start": 1.0},
        algorithms={name: METHODS[name] for name in ("GD, 2/(L+ℓ)", "heavy ball")},
        modes=MODES | late,
    )
    return run(study)


def test_bounds_of_the_curse_hold_in_every_mode(small_curse):
    covered = {"GD, 2/(L+ℓ)": list(small_curse.mode.values), "heavy ball": ["unrolled", "implicit"]}
    for label, case in cases(small_curse):
        assert covered[label] == [
            m for m in case.mode.values if case.bound.sel(mode=m).notnull()[0]
        ]
        known = case.sel(mode=covered[label])
        assert (known.jacobian_error <= known.bound * (1 + 1e-10) + 1e-14).all()
        assert np.max(known.jacobian_error / known.bound) > 0.3
        # It starts where the error does.
        np.testing.assert_allclose(known.bound.sel(mode="unrolled")[0], case.reference_norm)
    found = jacobian_of(dict(cases(small_curse))["heavy ball"], "unrolled")
    assert found.growth > 1.5 and found.burn_in_end not in (0, None)
    found = [v for case in verdicts(small_curse) for v in case.verdicts]
    assert [v.holds for v in found if isinstance(v, BoundCheck)] == [True] * 6


def test_late_starts_are_those_that_were_traced(small_curse):
    for _, case in cases(small_curse):
        errors = case.late_start_error
        assert errors.total.values.tolist() == [10, 20, 40] and errors.start[-1] == 40
        for total in errors.total.values:
            traced = case.jacobian_error.sel(iteration=total)
            row = errors.sel(total=total)
            starts = {"unrolled": 0, "last 2": total - 2, "one-step": total - 1}
            for mode, start in starts.items():
                np.testing.assert_allclose(row[start], traced.sel(mode=mode), rtol=1e-10)
            np.testing.assert_allclose(row[total], case.reference_norm)
            assert row[total + 1 :].isnull().all()


def test_the_late_start_is_predicted_in_one_mode():
    problem, algorithm = itd.Minimization(lambda x, t: t * x**2 / 2 - x), itd.GradientDescent(0.1)
    case = Case("", problem, algorithm, jnp.array(-80.0), jnp.array(0.5), 300, rate=0.95)
    found = late_starts(case, [200, 300])
    drift, jacobian = 0.1 * 82, 1 / 0.5**2
    expected = float(theory.late_start(0.95, drift, jacobian))
    assert abs(found.predicted - expected) <= 0.5
    assert (abs(np.nanargmin(found.errors, axis=1) - expected) < 1).all()
    bound = theory.late_start_bound(300, np.arange(301), 0.95, drift, jacobian)
    np.testing.assert_allclose(found.errors[1], bound, rtol=1e-8)
    assert np.isnan(late_starts(dataclasses.replace(case, rate=np.nan)).predicted)


def test_every_method_of_the_curse_has_its_bound():
    study = load_study("curse", steps=10, problem={"size": 3})
    for case in study.cases:
        values = case.curves["bound"](np.arange(11))
        assert values.shape == (4, 11) and np.isfinite(values[:2]).all(), case.label
        assert 0 < case.rate < 1


def test_unknown_methods_have_no_bound():
    (posed,) = Quadratic(size=3).pose()
    modes, bounds = {"unrolled": itd.Unrolled()}, posed.theory
    for other in (itd.HeavyBall(0.1, 0.2), itd.Chebyshev(0.1, 2.0)):
        assert not bounds.curves(posed, other, modes)
    smooth = SmoothBounds(lipschitz_x=1.0, lipschitz_theta=1.0)
    for other in (itd.Nesterov(0.1, 0.5), itd.GradientDescent(2.5)):
        assert not smooth.curves(posed, other, modes)
    unsolved = dataclasses.replace(posed, reference=None)
    assert not bounds.curves(unsolved, itd.GradientDescent(0.1), modes)
    assert np.isnan(contraction_rate(posed.spectrum, itd.Chebyshev(0.1, 2.0)))
    assert np.isnan(contraction_rate(None, itd.GradientDescent(0.1)))


def test_bound_of_a_checked_mode_is_that_of_its_mode():
    (posed,) = Quadratic(size=3).pose()
    plain = [itd.Unrolled(), itd.Implicit(), itd.OneStep(), itd.Unrolled(last="auto")]
    modes = dict(enumerate(plain + [itd.Checked(mode) for mode in plain]))
    modes = {str(name): mode for name, mode in modes.items()}
    curves = posed.theory.curves(posed, itd.GradientDescent(1.0), modes)
    rows = curves["bound"](np.arange(5))
    np.testing.assert_array_equal(rows[:4], rows[4:])
    assert np.isfinite(rows[:3]).all() and np.isnan(rows[3]).all()


def test_bounds_of_a_logistic_regression_hold_for_gradient_descent():
    study = load_study("curse-logistic", steps=60, algorithms={"GD": METHODS["GD, 2/(L+ℓ)"]})
    known = run(study)
    assert known.bound.notnull().all()
    assert (known.jacobian_error <= known.bound * (1 + 1e-10)).all()
    # They start where the error does.
    start = known.bound.sel(iteration=0, mode=["unrolled", "one-step", "last 20"])
    np.testing.assert_allclose(start, np.tile(known.reference_norm.values[:, None], 3))


def test_bound_without_commutation_is_the_safe_one():
    study = load_study(
        "curse-ridge",
        steps=20,
        problem={"shared": False, "penalty": 1.0},
        algorithms={"Chebyshev": {"type": "Chebyshev"}},
        modes={"unrolled": {"type": "Unrolled"}},
    )
    data = run(study).isel(algorithm=0).sel(mode="unrolled")
    error, bound = data.jacobian_error.values, data.bound.values
    assert (error <= bound * (1 + 1e-10)).all()
    # It differs from the bound for Hessians that commute.
    assert data.attrs["parameters"] == 10 and bound[1] > error[0]
