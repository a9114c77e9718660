"""`measured_burn_in` on curves whose burn-in is plain to see."""

import numpy as np
import pytest

from iterdiff import theory
from iterdiff.theory.measured import measured_burn_in

# errors -> start_index, peak_index, peak_ratio, length
CURVES = {
    "falls": ([4.0, 2.0, 1.0], (0, 0, 1.0, 0)),
    "rises and falls": ([1.0, 3.0, 2.0, 0.5], (0, 1, 3.0, 3)),
    "returns twice": ([1.0, 3.0, 0.5, 2.0, 0.1], (0, 1, 3.0, 4)),
    "still above at the end": ([1.0, 2.0, 4.0], (0, 2, 4.0, 3)),
    "starts exact": ([0.0, 2.0, 3.0, 1.0], (1, 2, 1.5, 3)),
    "exact throughout": ([0.0, 0.0], (0, 0, 1.0, 0)),
    "rises by rounding": ([1.0, 1.0 + 1e-12, 0.5], (0, 1, 1.0, 0)),
    "NaN": ([1.0, 2.0, np.nan], (0, 2, np.inf, 3)),
    "infinite from the start": ([np.inf, np.inf], (0, 0, np.inf, 0)),
    "one entry": ([2.0], (0, 0, 1.0, 0)),
}


@pytest.mark.parametrize("name", CURVES)
def test_measured_burn_in(name):
    errors, expected = CURVES[name]
    assert measured_burn_in(errors) == expected


def test_agrees_with_the_predicted_curve():
    t = np.arange(400)
    curve = 0.2 + t * 0.98 ** (t - 1.0)
    curve[-50:] = 0.1
    measured, predicted = measured_burn_in(curve), theory.burn_in(curve)
    assert measured.peak_index == predicted.peak_iteration
    assert measured.length == predicted.length
    assert measured.peak_ratio == pytest.approx(float(predicted.peak) / curve[0])


@pytest.mark.parametrize("errors", [[], np.array(1.0), np.ones((2, 2))])
def test_a_wrong_shape(errors):
    with pytest.raises(ValueError, match="`errors`"):
        measured_burn_in(errors)
