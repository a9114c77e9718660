"""Cells that run as one program have the numbers of cells that run on their own."""

import numpy as np
import pytest

from iterdiff.study import cell
from iterdiff.study.catalog import make
from iterdiff.study.cell import CellTask, compute
from iterdiff.study.run import run_together
from iterdiff.study.settings import Source

OWN = "tests.study.own_runs:run"


def words(theta, steps=4):
    """The settings of a small study of one's own."""
    return {"problem": {"function": OWN, "theta": theta}, "steps": steps}


def test_a_batch_has_the_closed_form_of_every_run(monkeypatch):
    monkeypatch.setattr(cell, "BATCH", 10)
    monkeypatch.setattr(cell, "run_alone", lambda _: pytest.fail("ran alone"))
    thetas = np.linspace(-1, 3, 9)  # one batch, filled up to its size
    tasks = [CellTask(f"c{i}", {"study": "run", **words(v)}) for i, v in enumerate(thetas)]
    outcomes = compute(tasks)
    assert all(outcome.content and not outcome.cause for outcome in outcomes)
    t = np.arange(5)
    studies = [make(Source(words(theta))) for theta in thetas]
    for theta, data in zip(thetas, run_together([*studies, studies[-1]]), strict=False):
        run = data.isel(algorithm=0)
        np.testing.assert_allclose(run.iterate_error, abs(2 * theta) * 0.5**t, atol=1e-14)
        error = run.jacobian_error.sel(mode="unrolled")
        np.testing.assert_allclose(error, 2 * 0.5**t, rtol=1e-12)
        assert run.status.item() == "finite throughout" and run.reference_norm == 2.0


def test_what_does_not_fit_together_runs_alone():
    short, long = make(Source(words(1.0))), make(Source(words(1.0, steps=5)))
    assert run_together([short, long]) == [None, None]
    with_closed_form = make(Source({"study": "scalar-quadratic", "steps": 4}))
    assert run_together([with_closed_form] * 2) == [None, None]


def test_batches_wait_for_a_jax_that_does_not_hang(monkeypatch):
    monkeypatch.setattr(cell, "FIRST_SAFE_JAX", (99, 0))
    monkeypatch.setenv("NPROC", "2")
    assert cell._together({i: make(Source(words(1.0))) for i in range(9)}) == {}
