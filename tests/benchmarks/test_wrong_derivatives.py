"""A few cases of the benchmark of wrong derivatives: what is wrong does not pass in silence."""

import functools

import jax
import numpy as np
import pytest
from benchmarks.wrong_base import RTOL

from benchmarks import wrong_base, wrong_cases_hard
from iterdiff.error import AWAY, SADDLE, TOO_FAR

NAMES = ("newton-cycles", "wrong-residual", "descent-passes", "margin")


@functools.cache
def groups():
    return {group.name: group for group in wrong_cases_hard.groups() if group.name in NAMES}


@functools.cache
def judged(name):
    """Return the outcomes of a group, its true errors and true sizes: cases, then modes."""
    group = groups()[name]
    with jax.numpy_rank_promotion("allow"):  # as users have it
        true, away = wrong_base.truth(group)
        outcome = wrong_base.run(group)
    assert np.all(away < 1e-10)
    pairs = zip(outcome.derivative, true, strict=True)
    errors = [[wrong_base.error_of(d, t) for d in ds] for ds, t in pairs]
    return outcome, np.array(errors), np.linalg.norm(true.reshape(len(true), -1), axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_flagged(name):
    outcome, errors, _ = judged(name)
    wrong = errors > 10 * RTOL
    assert wrong.any()
    assert outcome.flagged[wrong].all()


@pytest.mark.parametrize("name", ("newton-cycles", "wrong-residual", "margin"))
def test_what_is_right_is_not_flagged(name):
    outcome, errors, _ = judged(name)
    right = errors < RTOL / 10
    assert right.any()
    assert not outcome.flagged[right].any()


@pytest.mark.parametrize("name", ("newton-cycles", "descent-passes", "margin"))
def test_what_is_trusted_is_within_a_factor_of_two(name):
    outcome, errors, sizes = judged(name)
    measured = outcome.trusted & (errors > 1e-12)
    ratio = (outcome.absolute / sizes[:, None])[measured] / errors[measured]
    assert ((ratio >= 0.5) & (ratio <= 2)).all()


def test_newton_going_in_circles_is_too_far_even_where_the_estimate_is_zero():
    outcome, errors, _ = judged("newton-cycles")
    silent = (outcome.absolute == 0) & (errors > 1)
    assert silent.any()
    assert (outcome.reason[silent] == TOO_FAR).all()


def test_descent_past_a_saddle_is_told_from_descent_into_a_minimum():
    outcome, errors, _ = judged("descent-passes")
    near = np.linalg.norm(outcome.x[:, 0], axis=-1) < 1
    assert near.any()
    # The farthest of them is too far from anything for its neighbourhood to tell.
    assert np.isin(outcome.reason[near, 0], (TOO_FAR, SADDLE)).all()
    assert (outcome.reason[near, 0] == SADDLE).any()
    assert not outcome.trusted[near].any()
    assert (errors[near] > RTOL).all()


def test_a_solver_of_another_problem_than_the_residual_states_is_flagged():
    # the estimate itself is small: by the residual's lights the derivative is right
    outcome, errors, sizes = judged("wrong-residual")
    small = (outcome.absolute / sizes[:, None] < RTOL) & (errors > 10 * RTOL)
    assert small.any()
    assert (outcome.reason[small] == AWAY).all()
