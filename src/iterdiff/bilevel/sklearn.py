"""Linear models for scikit-learn whose penalties are learned by the gradient of their own error.

Each estimator fits its model to the folds of a cross-validation and minimises the mean held-out
loss over the logarithms of its penalties, by `iterdiff.bilevel.minimize`. One penalty for each
feature costs little more than one for all. Then it fits the model to all data, in float64. The
module needs scikit-learn: ``pip install 'iterdiff[sklearn]'``.
"""

from typing import Any, ClassVar

import numpy as np
from scipy.special import logsumexp
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from iterdiff.bilevel.linear_models import ELASTIC_NET, LASSO, LOGISTIC, RIDGE, Model, Tables
from iterdiff.bilevel.penalty_search import PenaltySearch, Regressor, SparseRegressor


class RidgeHO(Regressor):
    r"""Ridge regression that learns its penalty, or one for each feature.

    The model minimises :math:`\tfrac{1}{2n} \|y - X w - b\|^2 + \tfrac12 \sum_j \alpha_j w_j^2`:
    that of ``sklearn.linear_model.Ridge(alpha=n * alpha_)``.

    Parameters
    ----------
    per_feature : bool
        Whether each feature has a penalty of its own; otherwise all share one.
    fit_intercept : bool
        Whether the model has an intercept, without penalty.
    cv : int, splitter or iterable, optional
        The folds, as in scikit-learn; five by default.
    penalty_range : pair of float, optional
        Lowest and highest penalty, relative to the mean variance of the features.
    max_outer : int
        The most steps of the search.
    rtol : float
        The search ends where the projected gradient has fallen to this fraction.

    Attributes
    ----------
    alpha_ : float, or array of shape (features,)
        The learned penalties.
    coef_ : array of shape (features,)
        The coefficients of the model that is fitted to all data.
    intercept_ : float
        Its intercept.
    cv_loss_, cv_loss_error_ : float
        The mean held-out loss, half the mean squared error, and its error bar.
    status_, message_ : str
        How the search ended: the name of a `bilevel.Ending`, and the same in words.
    history_ : dict of arrays
        The columns of the history of `bilevel.minimize`.
    n_iter_ : int
        Steps of the search.
    n_features_in_ : int
        Number of features.

    Raises
    ------
    ValueError
        From `fit`, if data or parameters are wrong; the message names them.

    Examples
    --------
    >>> import numpy as np
    >>> from iterdiff.bilevel.sklearn import RidgeHO
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 3))
    >>> y = X[:, 0] + 0.5 * rng.standard_normal(40)
    >>> model = RidgeHO(per_feature=True).fit(X, y)
    >>> int(np.argmin(model.alpha_))  # the feature that matters is penalised least
    0
    """

    model: ClassVar[Model] = RIDGE


class LassoHO(SparseRegressor):
    r"""Lasso that learns its penalty, or one for each feature.

    The model minimises :math:`\tfrac{1}{2n} \|y - X w - b\|^2 + \sum_j \alpha_j |w_j|`: that of
    ``sklearn.linear_model.Lasso(alpha=alpha_)``.
    The held-out loss has kinks in the penalties. Where its minimum is at one, the search ends as
    ``MAX_OUTER_REACHED``: it has closed in on the kink as far as `max_outer` steps allow.

    Parameters
    ----------
    per_feature : bool
        Whether each feature has a penalty of its own; otherwise all share one.
    fit_intercept : bool
        Whether the model has an intercept, without penalty.
    cv : int, splitter or iterable, optional
        The folds, as in scikit-learn; five by default.
    penalty_range : pair of float, optional
        Lowest and highest penalty, relative to the smallest shared one that makes
        all coefficients zero.
    max_outer : int
        The most steps of the search.
    rtol : float
        The search ends where the projected gradient has fallen to this fraction.

    Attributes
    ----------
    alpha_ : float, or array of shape (features,)
        The learned penalties.
    coef_ : array of shape (features,)
        The coefficients of the model that is fitted to all data.
    intercept_ : float
        Its intercept.
    cv_loss_, cv_loss_error_ : float
        The mean held-out loss, half the mean squared error, and its error bar.
    status_, message_ : str
        How the search ended: the name of a `bilevel.Ending`, and the same in words.
    history_ : dict of arrays
        The columns of the history of `bilevel.minimize`.
    n_iter_ : int
        Steps of the search.
    n_features_in_ : int
        Number of features.

    Raises
    ------
    ValueError
        From `fit`, if data or parameters are wrong; the message names them.
    """

    model: ClassVar[Model] = LASSO


class ElasticNetHO(SparseRegressor):
    r"""Elastic net that learns both of its penalties, or two for each feature.

    The model minimises :math:`\tfrac{1}{2n} \|y - X w - b\|^2 + \sum_j (\alpha_{1j} |w_j| +
    \tfrac12 \alpha_{2j} w_j^2)`: with shared penalties that of ``sklearn.linear_model.ElasticNet``
    with ``alpha=alpha_.sum()`` and ``l1_ratio=alpha_[0] / alpha_.sum()``.

    Parameters
    ----------
    per_feature : bool
        Whether each feature has two penalties of its own; otherwise all share two.
    fit_intercept : bool
        Whether the model has an intercept, without penalty.
    cv : int, splitter or iterable, optional
        The folds, as in scikit-learn; five by default.
    penalty_range : pair of float, optional
        Lowest and highest penalty, relative to the smallest absolute one that makes
        all coefficients zero, and to the mean variance of the features.
    max_outer : int
        The most steps of the search.
    rtol : float
        The search ends where the projected gradient has fallen to this fraction.

    Attributes
    ----------
    alpha_ : array of shape (2,) or (2, features)
        The learned penalties: absolute, quadratic.
    coef_ : array of shape (features,)
        The coefficients of the model that is fitted to all data.
    intercept_ : float
        Its intercept.
    cv_loss_, cv_loss_error_ : float
        The mean held-out loss, half the mean squared error, and its error bar.
    status_, message_ : str
        How the search ended: the name of a `bilevel.Ending`, and the same in words.
    history_ : dict of arrays
        The columns of the history of `bilevel.minimize`.
    n_iter_ : int
        Steps of the search.
    n_features_in_ : int
        Number of features.

    Raises
    ------
    ValueError
        From `fit`, if data or parameters are wrong; the message names them.
    """

    model: ClassVar[Model] = ELASTIC_NET

    def _range(self, tables: Tables) -> np.ndarray:
        scales = np.array([tables.strongest, tables.variance])
        return self._relative_range()[:, None] * scales


class LogisticRegressionHO(ClassifierMixin, PenaltySearch):
    r"""Logistic regression that learns its penalty, or one for each feature.

    With the mean cross-entropy :math:`\ell` (binary, or of a softmax), the model minimises
    :math:`\ell(w, b) + \tfrac12 \sum_j \alpha_j \|w_j\|^2`: that of
    ``sklearn.linear_model.LogisticRegression(C=1 / (n * alpha_))``.

    Parameters
    ----------
    per_feature : bool
        Whether each feature has a penalty of its own; otherwise all share one.
    fit_intercept : bool
        Whether the model has an intercept, without penalty.
    cv : int, splitter or iterable, optional
        The folds, as in scikit-learn; five by default,
        stratified, or as many as the smallest class has members.
    penalty_range : pair of float, optional
        Lowest and highest penalty, relative to the mean variance of the features.
    max_outer : int
        The most steps of the search.
    rtol : float
        The search ends where the projected gradient has fallen to this fraction.

    Attributes
    ----------
    alpha_ : float, or array of shape (features,)
        The learned penalties.
    coef_ : array of shape (1, features) or (classes, features)
        The coefficients of the model that is fitted to all data.
    intercept_ : array of shape (1,) or (classes,)
        Its intercepts.
    cv_loss_, cv_loss_error_ : float
        The mean held-out loss, the cross-entropy, and its error bar.
    status_, message_ : str
        How the search ended: the name of a `bilevel.Ending`, and the same in words.
    history_ : dict of arrays
        The columns of the history of `bilevel.minimize`.
    n_iter_ : int
        Steps of the search.
    n_features_in_ : int
        Number of features.
    classes_ : array
        The labels.

    Raises
    ------
    ValueError
        From `fit`, if data or parameters are wrong; the message names them.
    """

    model: ClassVar[Model] = LOGISTIC
    classifies: ClassVar[bool] = True

    def _encoded(self, y: Any) -> np.ndarray:
        check_classification_targets(y)
        self.classes_, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "`y` must have at least two classes, but it has one class; add samples of another."
            )
        if counts.min() < 2:
            raise ValueError(
                f"`y`: each class needs two samples for a cross-validation, but the class "
                f"{self.classes_[counts.argmin()]!r} has one; leave it out."
            )
        if len(self.classes_) == 2:
            return 2.0 * codes[:, None] - 1
        return np.eye(len(self.classes_))[codes]

    def _shaped(self, coefficients: np.ndarray, intercept: Any) -> tuple[np.ndarray, Any]:
        return coefficients.T, intercept

    def decision_function(self, X):
        """Return the logits, of shape (samples,) for two classes, else (samples, classes).

        Parameters
        ----------
        X : array-like of shape (samples, features)
            The features.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        logits = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X):
        """Return the most probable class of each row of `X`.

        Parameters
        ----------
        X : array-like of shape (samples, features)
            The features.
        """
        logits = self.decision_function(X)
        codes = (logits > 0).astype(int) if logits.ndim == 1 else np.argmax(logits, axis=1)
        return self.classes_[codes]

    def predict_log_proba(self, X):
        """Return the logarithms of the probabilities, of shape (samples, classes).

        Parameters
        ----------
        X : array-like of shape (samples, features)
            The features.
        """
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return -np.logaddexp(0.0, np.stack([logits, -logits], axis=1))
        return logits - logsumexp(logits, axis=1, keepdims=True)

    def predict_proba(self, X):
        """Return the probabilities, of shape (samples, classes).

        Parameters
        ----------
        X : array-like of shape (samples, features)
            The features.
        """
        return np.exp(self.predict_log_proba(X))
