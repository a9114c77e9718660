"""Every speed benchmark runs at a small size, and our answers in it are right."""

import importlib
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks.__main__ import MODULES, SPEED
from benchmarks.harness.measure import TOY
from benchmarks.harness.results import OURS
from benchmarks.speed import fresh_call, fresh_gradient


@pytest.mark.parametrize(
    "name", [name for name in SPEED if name not in ("first_gradient", "growth")]
)
def test_answers_are_right(name):
    with jax.numpy_rank_promotion("allow"):  # as users have it
        section = importlib.import_module(MODULES[name]).run(TOY)
    errors = [
        error
        for table in section.tables
        for variant, error in zip(*map(table.column, ("variant", "relative error")), strict=True)
        if variant.startswith(OURS) and error is not None
    ]
    assert errors
    assert max(errors) < 1e-9


def test_growth_is_measured_at_each_size():
    with jax.numpy_rank_promotion("allow"):
        (table,) = importlib.import_module(MODULES["growth"]).run(TOY).tables
    assert any(name.startswith(OURS) for name in table.column("variant"))
    for seconds in table.column(f"time at each {table.axis}"):
        assert len(seconds) == len(table.sizes) and min(seconds) > 0


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [("iterdiff Implicit()", 1e-6), ("iterdiff Unrolled()", 1e-3)],  # the latter of 100 steps
)
def test_first_gradients_are_right(name, accuracy):
    data, theta = fresh_gradient.toy().data, fresh_gradient.PENALTY
    hessian = data.features.T @ data.features / 20 + math.exp(theta) * jnp.eye(5)
    x = jnp.linalg.solve(hessian, data.features.T @ data.targets / 20)
    true = float(-math.exp(theta) * x @ jnp.linalg.solve(hessian, 2 * (x - 1)))
    assert fresh_gradient.first(name)["gradient"] == pytest.approx(true, rel=accuracy)


def test_first_calls_are_of_the_same_gradient():
    bare, checked = (fresh_call.call(name)() for name in (fresh_call.GRADIENT, fresh_call.CHECKED))
    assert float(checked) == pytest.approx(float(bare), rel=1e-9) and bare != 0
