"""Every benchmark runs at toy sizes, and what it times of ours is right; no time is asserted."""

import importlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from benchmarks.sections import Curve, Section

from benchmarks import first_gradient, growth, harness, picture, stored, targets
from benchmarks.__main__ import NAMES, report
from benchmarks.harness import Table, Variant


@pytest.mark.parametrize("name", [name for name in NAMES if name != "first_gradient"])
def test_answers_are_right(name):
    with jax.numpy_rank_promotion("allow"):  # as users have it
        section = importlib.import_module(f"benchmarks.{name}").run(harness.TOY)
    rows = [row for rows in section.rows.values() for row in rows]
    errors = [row.relative_error for row in rows if row.ours and row.relative_error is not None]
    assert errors
    assert max(errors) < 1e-9


def test_first_gradients_are_right():
    toy = first_gradient.Toy(jax)
    samples, targets = toy.data
    theta = first_gradient.PENALTY
    hessian = samples.T @ samples / 20 + math.exp(theta) * jnp.eye(5)
    x = jnp.linalg.solve(hessian, samples.T @ targets / 20)
    true = float(-math.exp(theta) * x @ jnp.linalg.solve(hessian, 2 * (x - 1)))
    implicit = first_gradient.first("iterdiff Implicit()")["gradient"]
    unrolled = first_gradient.first("iterdiff Unrolled()")["gradient"]
    assert implicit == pytest.approx(true, rel=1e-6)
    assert unrolled == pytest.approx(true, rel=1e-3)  # that of 100 steps


def test_variants_take_turns_and_failures_are_named():
    def fails(theta):
        raise ValueError("no such thing")

    variants = (
        Variant("unit", lambda theta: 2 * theta),
        Variant("eager", lambda theta: theta + theta, compiled=False),
        Variant("fails", fails),
        Variant("wrong", lambda theta: 3 * theta),
    )
    theta = jnp.array([3.0, 4.0])
    table = Table("doubling", variants, theta, 2 * theta)
    rows = harness.measure(table, 3)
    assert [row.turns for row in rows] == [3, 3, 0, 3]
    assert rows[0].ratio == 1
    assert rows[0].relative_error == rows[1].relative_error == 0
    assert rows[3].relative_error == pytest.approx(0.5)
    assert "no such thing" in rows[2].failed
    assert harness.best(rows, largest_error=0.1).name in ("unit", "eager")
    assert "not run: ValueError" in harness.markdown(
        Table("doubling", variants, theta, theta), rows
    )


def test_our_failures_are_not_hidden():
    def fails(theta):
        raise ValueError("no such thing")

    variants = (Variant("unit", lambda theta: theta), Variant("iterdiff", fails))
    with pytest.raises(ValueError, match="no such thing"):
        harness.measure(Table("failing", variants, jnp.ones(1), jnp.ones(1)), 1)


def test_slow_variants_take_fewer_turns_evenly():
    due = [number for number in range(11) if harness._due(number, 3, 11)]
    assert due == [3, 7, 10]


def test_exponents():
    sizes = [1.0, 10.0, 100.0]
    assert growth.exponent(sizes, [2.0 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert math.isnan(growth.exponent(sizes, [1.0, math.nan, math.nan]))


def test_report_and_picture(tmp_path):
    figures = [
        targets.Figure("import", 1.05, "jax, equinox, lineax", 1.0),
        targets.Figure("run log memory", 0.3, "others", 0.08, "a note"),
    ]
    curves = [Curve("T", name, [1.0, 10.0], [1e-3, 1e-2], 1.0) for name in ("iterdiff", "jax")]
    section = Section("Some", ["a text\n"], figures=figures, curves=curves)
    text = report([section], harness.TOY, 1.0)
    assert "1 of 2 targets are met" in text
    assert "0.300 MB (a note) | **no** | 0.0800 MB: others" in text
    drawn = picture.draw(figures, curves, tmp_path)
    assert [file.name for file in drawn] == ["speed-targets.png", "speed-growth.png"]
    assert all(file.stat().st_size > 10_000 for file in drawn)


def test_stored_results_are_drawn_again(tmp_path):
    kept = Path(__file__).parents[1] / "benchmarks" / "results" / "speed.md"
    text = kept.read_text(encoding="utf-8")
    figures, curves = stored.figures(text), stored.curves(text)
    # Each row of the table comes back as it was written, unless its target has changed since.
    assert figures
    assert set(targets.table(figures).splitlines()[4:]) <= set(text.splitlines())
    assert {curve.axis for curve in curves} == set(growth.AXES)
    for curve in curves:
        assert curve.exponent == pytest.approx(
            growth.exponent(curve.sizes, curve.costs), abs=0.02, nan_ok=True
        )
    (tmp_path / "speed.md").write_text(text, encoding="utf-8")
    assert all(file.stat().st_size > 50_000 for file in stored.draw(tmp_path))


def test_what_is_beyond_the_picture_is_marked():
    assert picture._within(1e-9, "o") == (picture.LOWEST, "<")
    assert picture._within(1e9, "o") == (picture.HIGHEST, ">")
    assert picture._within(2.0, "o") == (2.0, "o")
