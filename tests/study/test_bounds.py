"""The studies of the curse: bounds along every measured curve, and late starts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from iterdiff import theory
from iterdiff.study import curse
from iterdiff.study.catalog import find, load_study
from iterdiff.study.config import Case, Overrides
from iterdiff.study.grid import cases, run
from iterdiff.study.late import late_starts
from iterdiff.study.report import verdicts
from iterdiff.study.summary import jacobian_of

UNROLLED = {"unrolled": {"type": "Unrolled"}}


@pytest.fixture(scope="module")
def small_curse():
    """The curse on a small quadratic: two methods, and a late start of their last two steps."""
    late = {"last 2": {"type": "Unrolled", "last": 2}}
    overrides = Overrides(
        steps=40,
        problem={"size": 4, "condition": 20, "spectrum": "ends", "start": 1.0},
        algorithms={name: curse.METHODS[name] for name in ("GD, 2/(L+l)", "heavy ball")},
        modes={name: curse.MODES[name] for name in ("unrolled", "implicit", "one-step")} | late,
    )
    return run(load_study("curse", overrides))


def test_bounds_of_the_curse_hold_in_every_mode(small_curse):
    covered = {"GD, 2/(L+l)": list(small_curse.mode.values), "heavy ball": ["unrolled", "implicit"]}
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
    said = "\n".join(verdicts(small_curse))
    assert said.count("the bound holds") == 6 and "DOES NOT" not in said


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
    (setting,) = curse.quadratic(**{**find("curse").options, "size": 3})
    study = load_study("curse", Overrides(steps=10, problem={"size": 3}))
    for case in study.cases:
        values = case.curves["bound"](np.arange(11))
        assert values.shape == (4, 11) and np.isfinite(values[:2]).all(), case.label
        assert 0 < case.rate < 1
    for other in (itd.HeavyBall(0.1, 0.2), itd.Chebyshev(0.1, 2.0)):
        assert not curse.bounds(setting, other, study.modes)
    unknown = dataclasses.replace(setting, facts={})
    assert not curse.bounds(unknown, itd.GradientDescent(0.1), study.modes)
    assert np.isnan(curse.rate_of(setting, itd.Chebyshev(0.1, 2.0)))


def test_bounds_of_a_logistic_regression_hold_for_gradient_descent(getkey):
    names = ("GD, 1/L", "GD, 2/(L+l)", "Nesterov")
    overrides = Overrides(steps=60, algorithms={name: curse.METHODS[name] for name in names})
    study = load_study("curse-logistic", overrides)
    data = run(study)
    known = data.sel(algorithm=list(names[:2]))
    assert known.bound.notnull().all() and data.bound.sel(algorithm="Nesterov").isnull().all()
    assert (known.jacobian_error <= known.bound * (1 + 1e-10)).all()
    # They start where the error does.
    start = known.bound.sel(iteration=0, mode=["unrolled", "one-step", "last 20"])
    np.testing.assert_allclose(start, np.tile(known.reference_norm.values[:, None], 3))
    # The constants that they are made of are Lipschitz constants.
    (setting,) = find("curse-logistic").build(**find("curse-logistic").options)
    hessian = jax.jit(jax.hessian(setting.problem.objective))
    for size in (0.01, 0.3, 10.0):
        x, step = jax.random.normal(getkey(), (2, 30))
        change = hessian(x + size * step, setting.theta) - hessian(x, setting.theta)
        distance = size * jnp.linalg.norm(step)
        assert jnp.linalg.norm(change, 2) <= setting.facts["lipschitz_x"] * distance
    moved = jax.jacobian(setting.problem.residual, 1)(x, setting.theta)
    assert jnp.linalg.norm(moved) <= setting.facts["lipschitz_theta"] * jnp.linalg.norm(x) * 1.0001


def test_bound_without_commutation_is_the_safe_one():
    overrides = Overrides(
        steps=20,
        problem={"shared": False, "penalty": 1.0},
        algorithms={"Chebyshev": {"type": "Chebyshev"}},
        modes=UNROLLED,
    )
    data = run(load_study("curse-ridge", overrides)).isel(algorithm=0).sel(mode="unrolled")
    error, bound = data.jacobian_error.values, data.bound.values
    assert (error <= bound * (1 + 1e-10)).all()
    # It is another bound than the one for Hessians that commute.
    assert data.attrs["parameters"] == 10 and bound[1] > error[0]
