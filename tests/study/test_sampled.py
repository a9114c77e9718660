"""The study of stochastic gradient descent: theory without a free constant, and intervals."""

import numpy as np
import pytest

from iterdiff.study.catalog import load_study
from iterdiff.study.run import run
from iterdiff.study.views.plots import figures


def test_theory_predicts_bias_and_variance():
    data = run(load_study("sgd", steps=2000, every=100))
    error, rate = data.jacobian_error.sel(mode="unrolled"), data.rate
    np.testing.assert_allclose(error, rate, rtol=0.12)
    constant, decreasing = (error.sel(decay=v).values for v in (0.0, 1.0))
    assert constant[-1] > 0.6 * constant[-5]  # it has come to the level of its noise
    assert decreasing[-1] < 0.9 * decreasing[-5]
    settled = data.sel(decay=0.0).isel(iteration=slice(15, None))
    assert (settled.mean_error < 2 * settled.radius).all()  # the interval covers the truth
    (panel,) = [axes for axes in figures(data)["convergence"].axes if "= 0" in axes.get_title()]
    assert "one chain by theory" in panel.get_legend_handles_labels()[1]


def test_another_algorithm_is_refused():
    nesterov = {"fast": {"type": "Nesterov"}}
    with pytest.raises(ValueError, match="`algorithms`"):
        run(load_study("sgd", steps=10, every=5, algorithms=nesterov))
