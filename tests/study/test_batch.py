"""Cells that run as one program have the numbers of cells that run on their own."""

import io

import numpy as np
import xarray

from iterdiff.study import cell
from iterdiff.study.catalog import make
from iterdiff.study.cell import CellTask, compute
from iterdiff.study.run import run, run_together
from iterdiff.study.settings import Source

OWN = "tests.study.own_runs:run"


def words(theta, steps=4):
    """The settings of a small study of one's own."""
    return {"problem": {"function": OWN, "theta": theta}, "steps": steps}


def test_a_batch_has_the_closed_form_of_every_run_and_one_without_a_solution_fails(monkeypatch):
    alone = []
    monkeypatch.setattr(cell, "BATCH", 10)
    monkeypatch.setattr(cell, "run_alone", lambda study: alone.append(study) or run(study))
    slopes = [0.1, 0.2, 0.3, 0.4, 1.0, 0.5, 0.6, 0.7, 0.8]  # one batch, filled up to its size
    problem = {"function": "tests.study.own_runs:sloped"}
    outcomes = compute(
        [
            CellTask(f"c{s}", {"study": "sloped", "steps": 4, "problem": {**problem, "slope": s}})
            for s in slopes
        ]
    )
    t = np.arange(5)
    for slope, outcome in zip(slopes, outcomes, strict=True):
        if slope == 1.0:
            assert outcome.content is None and "`reference`" in outcome.cause
            continue
        assert not outcome.cause
        found = xarray.load_dataset(io.BytesIO(outcome.content), engine="scipy").isel(algorithm=0)
        np.testing.assert_allclose(found.iterate_error, slope**t / (1 - slope), rtol=1e-10)
        error = found.jacobian_error.sel(mode="unrolled")
        np.testing.assert_allclose(error, slope**t / (1 - slope), rtol=1e-10)
        assert found.status.item() == "finite throughout"
    assert len(alone) == 1


def test_what_does_not_fit_together_runs_alone():
    short, long = make(Source(words(1.0))), make(Source(words(1.0, steps=5)))
    assert run_together([short, long]) == [None, None]
    with_closed_form = make(Source({"study": "scalar-quadratic", "steps": 4}))
    assert run_together([with_closed_form] * 2) == [None, None]


def test_batches_wait_for_a_jax_that_does_not_hang(monkeypatch):
    monkeypatch.setattr(cell, "FIRST_SAFE_JAX", (99, 0))
    monkeypatch.setenv("NPROC", "2")
    assert cell._together({i: make(Source(words(1.0))) for i in range(9)}) == {}
