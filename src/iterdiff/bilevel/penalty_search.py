"""Fit penalties by the gradient of a held-out loss: what our scikit-learn estimators share."""

import functools
import types
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from iterdiff.bilevel.drivers import Minimized, minimize
from iterdiff.bilevel.gradients import hypergradient
from iterdiff.bilevel.linear_models import Fold, Model, Tables
from iterdiff.bilevel.methods import LBFGS
from iterdiff.jaxtools.arguments import check_bool, check_count, check_tolerance
from iterdiff.jaxtools.extras import import_extra

import_extra("sklearn", "sklearn")

from sklearn.base import BaseEstimator, RegressorMixin  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import check_cv  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

STARTS = 6
"""Shared penalties over the range that are compared before the search, since held-out losses have
several minima."""

START_RTOL, FINAL_RTOL = 0.3, 1e-9
"""Relative accuracy of the gradient where starts are compared, and of the last fit."""

MAX_INNER_STEPS = 20_000
"""Most inner steps for one evaluation."""


class PenaltySearch(BaseEstimator):
    """Base class of linear models that learn their penalties."""

    model: ClassVar[Model]
    default_range: ClassVar[tuple[float, float]] = (1e-5, 1e1)
    classifies: ClassVar[bool] = False
    n_features_in_: int

    def __init__(
        self,
        *,
        per_feature=False,
        fit_intercept=True,
        cv=None,
        penalty_range=None,
        max_outer=30,
        rtol=1e-3,
    ):
        self.per_feature = per_feature
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.penalty_range = penalty_range
        self.max_outer = max_outer
        self.rtol = rtol

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class its own `__init__`, so that Python's errors about keywords name it."""
        super().__init_subclass__(**kwargs)
        shared = PenaltySearch.__init__
        if getattr(cls.__init__, "__code__", None) is not shared.__code__:
            return  # a subclass of a user's, which has one
        own = types.FunctionType(shared.__code__, shared.__globals__, closure=shared.__closure__)
        own.__kwdefaults__ = shared.__kwdefaults__
        functools.update_wrapper(own, shared)
        own.__qualname__ = f"{cls.__qualname__}.__init__"
        cls.__init__ = own

    def fit(self, X, y):
        """Learn the penalties by cross-validation, and fit the model to all data.

        Parameters
        ----------
        X : array-like of shape (samples, features)
            The features.
        y : array-like of shape (samples,)
            The target.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or a parameter is wrong; the message names it.
        """
        self._check_parameters()
        X, y = validate_data(
            self,
            X,
            y,
            y_numeric=not self.classifies,
            dtype=np.float64,
            ensure_min_samples=2,
        )
        target, splits = self._encoded(y), self._splits(X, y)
        with jax.enable_x64(True):
            tables = Tables(X, target, intercept=self.fit_intercept, splits=splits)
            low, high = (self._full(v) for v in np.log(self._range(tables)))
            folds = tables.folds()
            start = self._best_start(folds, tables.start, low, high)
            found = self._minimized(folds, tables.start, start, (low, high))
            last = self._graded(tables.whole(), tables.start, found.theta, FINAL_RTOL)
            self._store(found, tables, np.asarray(last.state.inner.nearest[0]))
        return self

    def _check_parameters(self) -> None:
        check_bool(per_feature=self.per_feature, fit_intercept=self.fit_intercept)
        check_count("max_outer", self.max_outer)
        check_tolerance("rtol", self.rtol)
        self._relative_range()

    def _relative_range(self) -> np.ndarray:
        given = self.default_range if self.penalty_range is None else self.penalty_range
        found = np.asarray(given, float)
        if found.shape != (2,) or not 0 < found[0] < found[1] < np.inf:
            raise ValueError(
                "`penalty_range` must be two numbers, 0 < lowest < highest, relative to the scale "
                f"of the data, not {given!r}."
            )
        return found

    def _splits(self, X: Any, y: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        cv = self.cv
        if cv is None:
            smallest = min(np.unique(y, return_counts=True)[1]) if self.classifies else len(y)
            cv = int(np.clip(smallest, 2, 5))
        folds: Any = check_cv(cv, y, classifier=self.classifies)
        return list(folds.split(X, y))

    def _range(self, tables: "Tables") -> np.ndarray:
        """Return the lowest and the highest penalty, in the first row of two kinds."""
        return self._relative_range() * tables.variance

    def _full(self, logarithm: Any) -> Any:
        """Return a number, or one for each kind of penalty, for each feature if asked for."""
        if not self.per_feature:
            return jnp.asarray(logarithm)
        columns = np.asarray(logarithm)[..., None]
        return jnp.asarray(np.broadcast_to(columns, (*columns.shape[:-1], self.n_features_in_)))

    def _best_start(self, folds: Fold, x0: Any, low: Any, high: Any) -> Any:
        """Return the logarithms of the best of some shared penalties, strongest first."""
        state, best = None, (np.inf, (low + high) / 2)
        for share in np.linspace(1.0, 0.0, STARTS + 2)[1:-1]:
            theta = low + share * (high - low)
            found = self._graded(folds, x0, theta, START_RTOL, state)
            state = found.state
            if float(found.value) < best[0]:
                best = float(found.value), theta
        return best[1]

    def _graded(self, folds: Fold, x0: Any, theta: Any, rtol: float, state: Any = None) -> Any:
        model = self.model
        return hypergradient(
            model.loss,
            model.problem,
            model.algorithm,
            x0,
            theta,
            rtol=rtol,
            state=state,
            max_steps=MAX_INNER_STEPS,
            batched=True,
            args=folds,
        )

    def _minimized(self, folds: Fold, x0: Any, start: Any, bounds: tuple) -> Minimized:
        model = self.model
        return minimize(
            model.loss,
            model.problem,
            model.algorithm,
            x0,
            start,
            method=LBFGS(),
            lower=bounds[0],
            upper=bounds[1],
            max_outer=self.max_outer,
            rtol=self.rtol,
            max_steps=MAX_INNER_STEPS,
            batched=True,
            args=folds,
        )

    def _store(self, found: Minimized, tables: "Tables", x: np.ndarray) -> None:
        coefficients, intercept = tables.unscaled(x)
        self.coef_, self.intercept_ = self._shaped(coefficients, intercept)
        self.alpha_ = np.exp(np.asarray(found.theta))
        self.cv_loss_, self.cv_loss_error_ = found.value, found.value_error
        self.status_, self.message_ = found.status.name, found.message
        self.n_iter_ = max(found.iterations, 1)
        self.history_ = found.log.arrays()
        if found.status.name.startswith("INNER"):
            warnings.warn(found.message, ConvergenceWarning, stacklevel=3)

    def _encoded(self, y: Any) -> np.ndarray:
        return y.astype(float)

    def _shaped(self, coefficients: np.ndarray, intercept: Any) -> tuple[np.ndarray, Any]:
        return coefficients, float(intercept)


class Regressor(RegressorMixin, PenaltySearch):
    """Base class of the regressions."""

    def predict(self, X):
        """Return the predictions for `X`, of shape (samples,).

        Parameters
        ----------
        X : array-like of shape (samples, features)
            The features.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return X @ self.coef_ + self.intercept_


class SparseRegressor(Regressor):
    """Base class of the models with an absolute penalty."""

    default_range: ClassVar[tuple[float, float]] = (1e-3, 1.0)

    def _range(self, tables: Tables) -> np.ndarray:
        return self._relative_range() * tables.strongest
