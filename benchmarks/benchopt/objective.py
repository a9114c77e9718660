"""A bilevel problem for benchopt: the penalties of a ridge regression, by validation loss."""

import numpy as np
from benchopt import BaseObjective


class Objective(BaseObjective):
    """The validation loss of the ridge regression with one log-penalty per feature."""

    name = "Ridge hyper-parameters"
    min_benchopt_version = "1.6"

    def set_data(self, train, validation):
        """Receive the data: pairs (features, targets)."""
        self.train, self.validation = train, validation

    def evaluate_result(self, theta):
        """Return the validation loss at the exact solution for these log-penalties."""
        features, targets = self.train
        rows = len(targets)
        hessian = features.T @ features / rows + np.diag(np.exp(theta))
        weights = np.linalg.solve(hessian, features.T @ targets / rows)
        gap = self.validation[0] @ weights - self.validation[1]
        return {"value": float(gap @ gap / len(gap) / 2)}

    def get_one_result(self):
        """Return log-penalties of zero."""
        return {"theta": np.zeros(self.train[0].shape[1])}

    def get_objective(self):
        """Hand the data to a solver."""
        return {"train": self.train, "validation": self.validation}
