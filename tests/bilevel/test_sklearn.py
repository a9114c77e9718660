"""Estimators that learn their penalties agree with scikit-learn's models at these penalties."""

import numpy as np
import pytest
import sklearn.linear_model
from sklearn.base import clone

import iterdiff as itd
from iterdiff.bilevel.sklearn import (
    LassoHO,
    LogisticRegressionHO,
    RidgeHO,
)

RNG = np.random.default_rng(3)
FEATURES = RNG.standard_normal((60, 4)) * [1.0, 10.0, 0.1, 1.0] + [0.0, 5.0, 1.0, -2.0]
TARGET = 2 * FEATURES[:, 0] - 0.2 * FEATURES[:, 1] + 4 * RNG.standard_normal(60)
COUNT = len(TARGET)


def ridge(penalty):
    return sklearn.linear_model.Ridge(alpha=COUNT * penalty)


def lasso(penalty):
    return sklearn.linear_model.Lasso(alpha=penalty, tol=1e-12)


@pytest.mark.parametrize("ours, theirs", ((RidgeHO, ridge), (LassoHO, lasso)))
def test_a_regression_agrees_with_scikit_learn_and_has_lower_held_out_loss(ours, theirs):
    model = ours(cv=3).fit(FEATURES, TARGET)
    same = theirs(model.alpha_).fit(FEATURES, TARGET)
    np.testing.assert_allclose(model.coef_, same.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.predict(FEATURES), same.predict(FEATURES), rtol=1e-6)
    assert model.status_ in ("STATIONARY", "AT_PRECISION", "AT_KINK")

    def held_out(penalties):
        total = 0.0
        for train in np.array_split(np.arange(COUNT), 3):
            rest = np.setdiff1d(np.arange(COUNT), train)
            other = theirs(penalties)
            if ours is RidgeHO:
                other.set_params(alpha=len(rest) * penalties)
            other.fit(FEATURES[rest], TARGET[rest])
            total += np.mean((TARGET[train] - other.predict(FEATURES[train])) ** 2) / 6
        return total

    np.testing.assert_allclose(held_out(model.alpha_), model.cv_loss_, rtol=1e-6)
    for factor in (0.8, 1.25):
        assert held_out(factor * model.alpha_) >= model.cv_loss_ * (1 - 1e-6)


def test_a_classifier_agrees_with_scikit_learn(classes=3):
    edges = np.quantile(TARGET, np.linspace(0, 1, classes + 1)[1:-1])
    labels = np.array(["c", "a", "b"])[np.digitize(TARGET, edges)]
    model = LogisticRegressionHO(cv=3).fit(FEATURES, labels)
    same = sklearn.linear_model.LogisticRegression(
        C=1 / (COUNT * model.alpha_), tol=1e-11, solver="newton-cholesky"
    ).fit(FEATURES, labels)
    np.testing.assert_allclose(model.coef_, same.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        model.predict_proba(FEATURES), same.predict_proba(FEATURES), rtol=1e-4, atol=1e-8
    )
    np.testing.assert_array_equal(model.predict(FEATURES), same.predict(FEATURES))


def test_a_penalty_for_each_feature_and_no_intercept():
    model = RidgeHO(per_feature=True, fit_intercept=False, cv=3).fit(FEATURES, TARGET)
    assert model.alpha_.shape == (4,)
    assert model.intercept_ == 0.0
    gram = FEATURES.T @ FEATURES / COUNT + np.diag(model.alpha_)
    exact = np.linalg.solve(gram, FEATURES.T @ TARGET / COUNT)
    np.testing.assert_allclose(model.coef_, exact, rtol=1e-8)
    assert model.history_["value"][-1] < model.history_["value"][0]


def test_wrong_arguments_are_named():
    for name, value in (
        ("penalty_range", (1.0, 0.1)),
        ("max_outer", 0),
        ("rtol", -1.0),
        ("per_feature", "yes"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            clone(RidgeHO()).set_params(**{name: value}).fit(FEATURES, TARGET)
    with pytest.raises(TypeError, match="'alpha'"):
        LassoHO(alpha=1.0)
    assert LassoHO.__init__.__qualname__ == "LassoHO.__init__"  # Python's message begins with it
    with pytest.raises(ValueError, match="`y`"):
        LogisticRegressionHO().fit(FEATURES, np.ones(COUNT))
    with pytest.raises(ValueError, match="`y`"):
        LogisticRegressionHO().fit(FEATURES, np.arange(COUNT) == 0)
    assert itd.bilevel.sklearn.RidgeHO is RidgeHO
