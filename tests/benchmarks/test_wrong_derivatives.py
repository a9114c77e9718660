"""A few cases of the benchmark of wrong derivatives: none that is wrong passes without a flag."""

import functools
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.harness import report
from benchmarks.harness.results import load
from benchmarks.wrong_derivatives import group as cases_of
from benchmarks.wrong_derivatives import hard_cases, run
from benchmarks.wrong_derivatives.group import RTOL
from benchmarks.wrong_derivatives.run import Case
from benchmarks.wrong_derivatives.stops import Stop
from iterdiff.accuracy.reasons import AWAY, SADDLE, TOO_FAR

NAMES = ("newton-cycles", "wrong-residual", "descent-passes", "margin")


@functools.cache
def groups():
    return {group.name: group for group in hard_cases.groups() if group.name in NAMES}


@functools.cache
def judged(name):
    """Return the outcomes of a group, its true errors and true sizes: cases, then modes."""
    group = groups()[name]
    with jax.numpy_rank_promotion("allow"):  # as users have it
        true, away = cases_of.truth(group)
        outcome = cases_of.run(group)
    assert np.all(away < 1e-10)
    pairs = zip(outcome.derivative, true, strict=True)
    errors = [[cases_of.error_of(d, t) for d in ds] for ds, t in pairs]
    return outcome, np.array(errors), np.linalg.norm(true.reshape(len(true), -1), axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_flagged(name):
    outcome, errors, _ = judged(name)
    # An estimate trusts the residual: one that is off by little hides an error of a few rtol.
    wrong = errors > (10 * RTOL if name == "wrong-residual" else RTOL)
    assert wrong.any()
    assert outcome.flagged[wrong].all()


@pytest.mark.parametrize("name", ("newton-cycles", "wrong-residual", "margin"))
def test_what_is_right_is_not_flagged(name):
    outcome, errors, _ = judged(name)
    right = errors < RTOL / 10
    assert right.any()
    assert not outcome.flagged[right].any()


@pytest.mark.parametrize("name", ("newton-cycles", "margin"))
def test_what_is_trusted_is_within_a_factor_of_two(name):
    outcome, errors, sizes = judged(name)
    measured = outcome.trusted & (errors > 1e-12)
    assert measured.any()
    ratio = (outcome.absolute / sizes[:, None])[measured] / errors[measured]
    assert ((ratio >= 0.5) & (ratio <= 2)).all()


def test_newton_that_cycles_is_too_far_even_where_the_estimate_is_zero():
    outcome, errors, _ = judged("newton-cycles")
    zero = (outcome.absolute == 0) & (errors > 1)
    assert zero.any()
    assert (outcome.reason[zero] == TOO_FAR).all()


def test_descent_past_a_saddle_is_told_from_descent_into_a_minimum():
    outcome, errors, _ = judged("descent-passes")
    near = np.linalg.norm(outcome.x[:, 0], axis=-1) < 1
    assert near.any()
    # The farthest of them is too far from any solution for a judgement by its neighbourhood.
    assert np.isin(outcome.reason[near, 0], (TOO_FAR, SADDLE)).all()
    assert (outcome.reason[near, 0] == SADDLE).any()
    assert not outcome.trusted[near].any()
    assert (errors[near] > RTOL).all()


def test_a_solver_of_another_problem_than_the_residual_states_is_flagged():
    # The estimate itself is small: for the stated residual, the derivative is right.
    outcome, errors, sizes = judged("wrong-residual")
    small = (outcome.absolute / sizes[:, None] < RTOL) & (errors > 10 * RTOL)
    assert small.any()
    assert (outcome.reason[small] == AWAY).all()


# How judgements are counted


def case(true_error, **judgement):
    names = ("family", "group", "case", "mode", "kind", "float64")
    return Case("iterdiff", *names, true_error, **judgement)


def test_failures_of_cases_are_counted():
    fine = [
        case(1.0, flagged=True),
        case(1e-5),
        case(5e-3),  # neither right nor wrong
        case(5e-3, flagged=True),
        case(1e-3, ratio=1.9, trusted=True),
        case(1e-14, estimate=1e-15, ratio=0.1, trusted=True),  # rounding
        case(1e-3, ratio=5.0, trusted=False),
        case(math.inf, ratio=math.nan, trusted=True, flagged=True),
    ]
    bad = [
        case(1.0),
        case(math.inf),
        case(1e-5, flagged=True),
        case(1e-3, ratio=0.4, trusted=True),
        case(1e-3, ratio=2.1, trusted=True),
    ]
    assert [one.value for one in run.case_targets(fine)] == [0, 0, 0]
    assert all(one.met for one in run.case_targets(fine))
    assert [one.value for one in run.case_targets(fine + bad)] == [2, 1, 2]
    assert not any(one.met for one in run.case_targets(fine + bad))
    listed = run.failure_table(fine + bad).column("failure")
    assert listed == ["unflagged", "unflagged", "false alarms", "estimate off", "estimate off"]
    row = run.flag_table(fine + bad).rows[0]
    assert row[1:5] == [13, [2, 4], [1, 3], [1, 3]]


def test_failures_of_stops_are_counted():
    fine = [Stop("a", 20, 12, 0.9, True), Stop("b", 120, 100, 1.05, True)]
    bad = [
        Stop("c", 10, 10, 1.2, True),
        Stop("d", 150, 100, 0.5, True),
        Stop("e", 1, 1, 9.0, False),
    ]
    assert [one.value for one in run.stop_targets(fine)] == [0, 0, 0]
    assert [one.value for one in run.stop_targets(fine + bad)] == [1, 1, 1]
    assert not any(one.met for one in run.stop_targets(fine + bad))


def test_the_stored_summary_is_that_of_the_stored_cases():
    path = Path(run.__file__).parents[1] / "results" / "wrong_derivatives.json"
    tables = {table.title: table for table in load(path).tables}
    rows = tables["All cases"].rows
    cases = [
        Case(*(row[:7]), *(float(math.nan if v is None else v) for v in row[7:10]), *row[10:])
        for row in rows
    ]
    assert report.table(run.flag_table(cases)) == report.table(tables["What is flagged"])
    assert run.failure_table(cases).rows == tables["Failures"].rows
