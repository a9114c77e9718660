"""How the benchmark of outer optimisation counts; its runs are too long for a test."""

import math

import numpy as np

from benchmarks.bilevel.engines import Visit
from benchmarks.bilevel.run import TARGET, judged, reached

VISITS = [Visit(np.array([float(k)]), 10 * k, 3 * k) for k in range(4)]


def test_the_target_is_relative_to_the_start():
    values = np.array([2.0, 1.5, 1.0 + TARGET / 2, 1.0])
    assert reached(VISITS, values, 2.0, 1.0) == [20.0, 6.0, 0.0]
    assert reached(VISITS, values + 1.0, 2.0, 1.0) == [math.inf] * 3


def test_bars_are_compared_with_the_truth():
    theta = np.array([[2.0], [1.0], [0.5]])
    rows = {
        "theta": theta,
        "gradient": 2 * theta + 0.1,
        "gradient_error": np.array([0.1, 0.3, 0.1]),
        "value": theta[:, 0] ** 2 + np.array([0.0, 0.1, 0.3]),
        "value_error": np.full(3, 0.1),
        "trusted": np.array([True, True, True]),
        "accepted": np.array([True, True, True]),
    }
    bars = judged(lambda theta: (theta[0] ** 2, 2 * theta), rows)
    assert (bars.trusted, bars.gradient_right, bars.value_held) == (3, 2, 2)
    assert (bars.accepted, bars.uphill) == (2, 0)
    rising = rows | {"theta": theta[::-1], "gradient": 2 * theta[::-1] + 0.1}
    assert judged(lambda theta: (theta[0] ** 2, 2 * theta), rising).uphill == 2
