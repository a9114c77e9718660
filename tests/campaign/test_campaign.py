"""The campaign's own judgement, and its stored results."""

import json
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import iterdiff as itd
from tests.campaign.__main__ import FAMILIES, table
from tests.campaign.call import (
    BAD,
    FOREIGN,
    NOT_A_NUMBER,
    REFUSED,
    RIGHT,
    SILENT_NAN,
    THEIRS,
    UNCLEAR,
    WRONG,
    Call,
    OwnError,
    judged,
)

RESULTS = Path(__file__).parent / "results"


def raising(error):
    def run():
        raise error

    return run


def warned():
    warnings.warn("may be wrong", itd.DerivativeWarning, stacklevel=1)
    return jnp.array(2.0)


CALLS = {
    "right": (Call("", lambda: jnp.ones(2), lambda: np.ones(2)), RIGHT),
    "wrong": (Call("", lambda: jnp.ones(2), lambda: 2 * np.ones(2)), WRONG),
    "wrong by little": (Call("", lambda: 1 + 1e-4, lambda: 1.0), WRONG),
    "of another shape": (Call("", lambda: jnp.ones(2), lambda: np.ones((2, 1))), WRONG),
    "infinite": (Call("", lambda: jnp.inf, lambda: 1.0), WRONG),
    "tiny": (Call("", lambda: 1e-300, lambda: 2e-300), WRONG),
    "tiny and right": (Call("", lambda: 1e-300, lambda: 1e-300), RIGHT),
    "wrong with a warning": (Call("", warned, lambda: 1.0), NOT_A_NUMBER),
    "NaN": (Call("", lambda: jnp.nan, lambda: 1.0), SILENT_NAN),
    "NaN as asked": (Call("", lambda: jnp.nan, lambda: 1.0, may_be_nan=True), NOT_A_NUMBER),
    "refused": (Call("", lambda: itd.Steps(0)), REFUSED),
    "failed": (Call("", raising(itd.SolveError("failed"))), REFUSED),
    "of JAX alone": (Call("", lambda: jnp.ones(2) + jnp.ones(3)), THEIRS),
    "of JAX inside": (Call("", lambda: itd.prox.box(jnp.ones(2), 0.0, jnp.ones(3))), FOREIGN),
    "of the caller": (Call("", raising(OwnError("mine"))), THEIRS),
    "of Python inside": (Call("", lambda: itd.theory.measured_burn_in("a")), UNCLEAR),
}


@pytest.mark.parametrize("name", CALLS)
def test_outcomes_are_told_apart(name):
    call, judgement = CALLS[name]
    assert judged(call).judgement == judgement


def test_the_stored_campaign_has_no_fault():
    stored = json.loads((RESULTS / "campaign.json").read_text(encoding="utf-8"))
    results = stored["results"]
    assert set(results) == set(FAMILIES)
    outcomes = [outcome for family in results.values() for outcome in family]
    assert len(outcomes) >= 2000
    assert not [outcome for outcome in outcomes if outcome["judgement"] in BAD]
    assert (RESULTS / "campaign.md").read_text(encoding="utf-8") == table(results)
