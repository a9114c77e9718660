"""The lasso by sparho: its search with a schedule of tolerances, on scikit-learn's solver.

An epoch of coordinate descent counts as one gradient. Penalties are evaluated wherever the search
calls the solver, and every penalty that improves the held-out loss is a visit.
"""

import time

import numpy as np

from benchmarks.bilevel.engines import Visit
from benchmarks.bilevel.problems import Case


def search(case: Case, max_outer: int) -> list[Visit]:
    """Return the visits of ``sparho.hoag_search`` with its default parameters."""
    import sparho
    from sparho.adapters.sklearn import SklearnLasso

    data, lasso = case.args, SklearnLasso()
    epochs, begun = 0, time.perf_counter()
    visits = [Visit(np.asarray(case.theta0), 0, 0)]

    def solver(problem, penalty, /, *, x0=None, tol=None):
        nonlocal epochs
        result = lasso(problem, penalty, x0=x0, tol=tol)
        epochs += result.n_iter
        spent = epochs, 0, time.perf_counter() - begun
        visits.append(Visit(np.log(np.asarray(penalty, float)).reshape(()), *spent))
        return result

    rows = len(data.target), len(data.wanted)
    problem = sparho.Problem(
        sparho.SquaredLoss(),
        sparho.L1(),
        np.concatenate([data.train, data.test]),
        np.concatenate([data.target, data.wanted]),
    )
    held_out = sparho.HeldOutMSE(np.arange(rows[0]), rows[0] + np.arange(rows[1]))
    sparho.hoag_search(
        problem,
        float(np.exp(case.theta0)),
        solver=solver,
        criterion=held_out,
        n_iter=max_outer,
    )
    return visits[:-1]  # the last call fits the model to all data
