"""The harness measures in turns, judges against targets, and stores and reports what it found."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import pytest

from benchmarks import __main__ as command
from benchmarks.harness import measure, picture, report
from benchmarks.harness.measure import Comparison, Effort
from benchmarks.harness.results import Column, Measurement, Results, Section, Table, Target, load
from benchmarks.harness.targets import TARGETS, against
from benchmarks.speed.growth import exponent

STORED = sorted((Path(command.__file__).parent / "results").glob("*.json"))
LIMIT = Target("some work", "at most 2 ×", 2.0, "×")


def results(*measurements):
    columns = [Column("variant"), Column("time", "s"), Column("found", "share")]
    rows = [
        ["ours", 1.5e-3, [1, 2]],
        ["theirs", "not run: it failed", None],
        ["far", math.inf, [0, 0]],
    ]
    growth = Table(
        "Growth",
        [Column("variant"), Column("time at each T", "s"), Column("time ∝ T^", "exponent")],
        [["iterdiff", [1e-3, 1e-2], 1.0], ["jax", [1e-3, None], math.nan]],
        axis="T",
        sizes=[1, 10],
    )
    tables = [Table("Some", columns, rows, "a note"), growth]
    environment = {"machine": {"cores": 2}, "versions": {"jax": "1"}, "date": None, "commit": "abc"}
    return Results("A title", environment, [Section("Work", "", tables, list(measurements))], 1.0)


# Targets


@pytest.mark.parametrize(
    ("value", "met"), [(1.9, True), (2.0, True), (2.1, False), (math.nan, False), (None, False)]
)
def test_a_target_is_an_upper_limit(value, met):
    assert Measurement(LIMIT, value).met is met


def test_a_target_of_zero_allows_no_failure():
    assert against("unflagged", 0).met
    assert not against("unflagged", 1).met


def test_the_report_shows_a_miss_as_a_miss():
    text = report.markdown(
        results(Measurement(LIMIT, 1.0), Measurement(LIMIT, 3.0, "jax", 1.5, "a reason"))
    )
    assert "1 of 2 targets are met." in text
    assert "| some work | at most 2 × | 1.00 × | yes | – |" in text
    assert "| some work | at most 2 × | 3.00 × (a reason) | **no** | 1.50 ×: jax |" in text


def test_all_targets_can_be_printed():
    assert len(report.targets([against(key, 1.0) for key in TARGETS]).splitlines()) == 4 + len(
        TARGETS
    )


# Stored results


def test_results_come_back_from_json(tmp_path):
    written = results(Measurement(LIMIT, math.nan, "jax", 1.5), Measurement(LIMIT, 3.0))
    written.save(tmp_path / "some.json")
    read = load(tmp_path / "some.json")
    assert [one.value for one in read.measurements] == [None, 3.0]
    assert read.measurements[1] == written.measurements[1]
    assert read.tables[0].columns == written.tables[0].columns
    assert read.tables[0].column("time") == [1.5e-3, "not run: it failed", "inf"]
    assert math.isinf(float(read.tables[0].rows[2][1]))
    assert (read.title, read.environment, read.minutes) == ("A title", written.environment, 1.0)
    assert report.markdown(read) == report.markdown(written)
    read.save(tmp_path / "again.json")
    assert load(tmp_path / "again.json") == read


def test_json_is_strict(tmp_path):
    results().save(tmp_path / "some.json")

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "some.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_another_format_is_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"schema": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match="`path`"):
        load(tmp_path / "old.json")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_stored_reports_are_those_of_their_json(path):
    assert report.markdown(load(path)) == path.with_suffix(".md").read_text(encoding="utf-8")


def test_stored_exponents_are_those_of_the_stored_times():
    growth = [table for path in STORED for table in load(path).tables if table.axis]
    assert {table.axis for table in growth} == {"T", "n", "p", "batch"}
    for table in growth:
        for _, seconds, stored, _ in table.rows:
            assert stored == pytest.approx(exponent(table.sizes, seconds), abs=0.02)


def test_the_command_draws_without_measuring(tmp_path):
    results(Measurement(LIMIT, 3.0)).save(tmp_path / "some.json")
    command.main(["--draw", "--out", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"some.json", "some.md", "some-targets.png", "some-growth.png"}
    assert "3.00 ×" in (tmp_path / "some.md").read_text(encoding="utf-8")


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["no_such_benchmark"])
    assert "`name`" in capsys.readouterr().err


# Printing


def test_values_are_printed_with_their_unit():
    printed = {
        ("s", 2.5e-5): "25.0 µs",
        ("s", 0.0274): "27.4 ms",
        ("s", 1.5): "1.50 s",
        ("MB", 0.068): "0.0680 MB",
        ("error", 1.5e-15): "1.5e-15",
        ("×", 4686.0): "4,686 ×",
        ("share", (3, 4)): "3 of 4 (75.0%)",
        ("exponent", -0.001): "0.00",
        ("s", None): "–",
        ("s", math.nan): "–",
        ("s", "not run: why"): "not run: why",
        ("s", (1.0, 2.0)): "1.00 s, 2.00 s",
    }
    assert {pair: report.shown(pair[1], pair[0]) for pair in printed} == printed


def test_values_beyond_the_range_of_the_picture_are_marked():
    assert picture.within(1e-9, "o") == (picture.LOWEST, "<")
    assert picture.within(1e9, "o") == (picture.HIGHEST, ">")
    assert picture.within(2.0, "o") == (2.0, "o")


def test_the_picture_shows_each_value_in_the_colour_of_its_judgement():
    drawn = picture.draw_targets([Measurement(LIMIT, 1.0), Measurement(LIMIT, 3.0, "jax", 1.5)])
    colours = {text.get_text(): text.get_color() for text in drawn.axes[0].texts}
    assert colours["1.00 ×"] == picture.MET
    assert colours["3.00 ×"] == picture.MISSED
    assert colours["1.50 ×"] == picture.OTHERS


# Measuring


def fails(theta):
    raise ValueError("no such thing")


def test_variants_take_turns_and_failures_are_named():
    variants = {
        "unit": lambda theta: 2 * theta,
        "eager": lambda theta: theta + theta,
        "fails": fails,
        "wrong": lambda theta: 3 * theta,
        "other": jnp.sum,
    }
    theta = jnp.array([3.0, 4.0])
    doubling = Comparison(
        "doubling", variants, (theta,), 2 * theta, timed_only=("other",), eager=("eager",)
    )
    rows = measure.measure(doubling, Effort(3))
    assert [len(row.times) for row in rows] == [3, 3, 0, 3, 3]
    assert rows[0].ratio == 1
    assert [row.error for row in rows] == [0, 0, None, pytest.approx(0.5), None]
    assert rows[1].megabytes is None
    assert "no such thing" in rows[2].failed
    assert measure.best(rows, largest_error=0.1).name in ("unit", "eager")
    times = measure.table(doubling, rows).column("time")
    assert times[2].startswith("not run: ValueError")


def test_our_failures_are_not_hidden():
    failing = Comparison("failing", {"unit": jnp.sum, "iterdiff": fails}, (jnp.ones(1),))
    with pytest.raises(ValueError, match="no such thing"):
        measure.measure(failing, Effort(1))


def test_no_turn_compiles():
    traced = []

    def variant(theta):
        traced.append(None)
        return theta

    counted = Comparison("counted", {"unit": variant, "other": jnp.sum}, (jnp.ones(1),))
    rows = measure.measure(counted, Effort(2))
    assert len(rows[0].times) == 2
    assert len(traced) == 2  # when it is compiled ahead of time, and in its first run


def test_slow_variants_take_fewer_turns_evenly():
    assert measure.rounds_taken(3, 11) == {3, 7, 10}
    assert measure.rounds_taken(20, 4) == {0, 1, 2, 3}


def test_exponents():
    sizes = [1.0, 10.0, 100.0]
    assert exponent(sizes, [2.0 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert math.isnan(exponent(sizes, [1.0, math.nan, None]))
