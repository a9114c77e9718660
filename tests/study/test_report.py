"""The report: one page with everything, of a study and of a grid, and nothing from elsewhere."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import xarray

import iterdiff.study
from iterdiff.study.catalog import load_study
from iterdiff.study.grid import load_grid
from iterdiff.study.grid_run import run_grid
from iterdiff.study.run import cases, run
from iterdiff.study.views.advice import ErrorBar, UseMode, WhenToStop, advice
from iterdiff.study.views.cells import cells
from iterdiff.study.views.page import MAX_CASES, _summary
from iterdiff.study.views.provenance import as_toml, reproduction
from iterdiff.study.views.summary import reached

MAX_BYTES = 1_500_000


def settings_of(page):
    """Return the table of settings."""
    return re.search(r"<th>setting</th>.*?</table>", page, re.DOTALL)[0]


def content_of(page):
    """Return what the page draws."""
    return json.loads(re.search(r'id="data">(.*)</script>', page)[1])


@pytest.fixture(scope="module")
def scalar():
    """The dataset of the scalar quadratic for b = 0 and b = 1, with estimates."""
    return run(load_study("scalar-quadratic", steps=1000, estimate=True))


def test_the_page_of_a_study_holds_curves_verdicts_and_tolerances(scalar):
    page = iterdiff.study.report(scalar)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=|@import|url\((?!#)", page)
    found = content_of(page)["cases"]
    assert [case["label"] for case in found] == ["b = 0", "b = 1"]
    names = [curve["name"] for curve in found[0]["curves"]]
    assert names == ["closed form, unrolled", "unrolled", "implicit", "iterate", "objective"]
    # Errors are t * eta * x0 * rho**(t - 1): the peak is near 1 / (eta theta) = 200.
    assert found[0]["burn"][0] == 1000 and abs(found[0]["burn"][1] - 199.5) <= 1
    assert "peak" in found[0]["alt"] and "<caption>Absolute errors, b = 0</caption>" in page
    case = dict(cases(scalar))["b = 1"]
    first = reached(case, "implicit", 1e-1)
    assert f'<td class="n">{first}</td>' in page
    assert (case.jacobian_error.sel(mode="implicit")[first:] <= 0.1 * 400).all()
    assert "jax_version" in page and str(jax.__version__) in page


def test_advice_is_data(scalar):
    use, stop, *bars = advice(dict(cases(scalar))["b = 1"])
    end = scalar.jacobian_error.sel(b=1.0).isel(iteration=-1).to_series() / 400
    assert isinstance(use, UseMode) and use.mode == end.idxmin()
    np.testing.assert_allclose([error for _, error in use.errors], sorted(end), rtol=1e-12)
    assert isinstance(stop, WhenToStop) and "no derivative is within" in str(stop)
    assert all(isinstance(bar, ErrorBar) for bar in bars) and len(bars) == 2
    trusted = [bar for bar in bars if bar.trusted]
    assert trusted and all(0.5 <= bar.estimated / bar.true <= 2 for bar in trusted)
    late = dataclasses.replace(use, errors=(("unrolled", 7.5), ("implicit", 7.7)))
    assert "zero would be closer" in str(late) and "use unrolled" not in str(late)
    away = scalar.isel(b=[1]).assign(status=("b", ["diverged: not finite from 3 on"]))
    assert advice(dict(cases(away))["b = 1"]) == ()


HOSTILE = "</script><script>alert(1)</script> & <img src=x onerror=alert(1)>"
GRID = f"""problem = "tests.study.own_runs:run"
outputs = OUTPUTS
[algorithms.{json.dumps(HOSTILE)}]
type = "Picard"
[modes.{json.dumps(HOSTILE)}]
type = "Unrolled"
[modes.implicit]
type = "Implicit"
[grid]
steps = [3, 4]
problem.fault = ["none", "raises"]
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The results of a grid of cells of two lengths, half of which fail, with hostile labels."""
    folder = tmp_path_factory.mktemp("grid")
    text = GRID.replace("outputs = OUTPUTS\n", "")
    (folder / "g.toml").write_text(text)
    run_grid(load_grid(str(folder / "g.toml")), folder / "out")
    return folder


def test_the_page_of_a_grid_names_failures_and_escapes_labels(grid):
    data = iterdiff.study.open(grid / "out")
    assert isinstance(data, xarray.DataTree)
    page = iterdiff.study.report(data)
    assert "<img" not in page and page.count("<script") == page.count("</script>") == 2
    assert "4 cells: 2 done, 2 failed, 0 missing" in page
    assert "broken &lt;b&gt;on purpose&lt;/b&gt;" in page
    # The settings are of all cells: neither the first one's steps nor its fault.
    assert "<td>steps</td><td>varies over the grid</td>" in page
    assert "fault varies over the grid" in page and "fault = " not in settings_of(page)
    found = content_of(page)["cases"]
    assert [len(case["curves"][0]["points"]) for case in found] == [4, 5]
    assert found[0]["curves"][0]["name"] == HOSTILE
    # x_t = 2 (1 - 2**-t): the error of the derivative is that of the iterate, 2 * 2**-t.
    logs = [point[1] for point in found[1]["curves"][0]["points"]]
    np.testing.assert_allclose(logs, np.log10(2 * 0.5 ** np.arange(5)), atol=1e-3)


def test_entries_of_algorithms_that_vary_are_marked_and_empty_tables_left_out():
    given = {"algorithms": {"GD": {"type": "GradientDescent", "step_size": 0.1}}, "modes": {}}
    axis = {"name": "s", "keys": [["algorithms", "GD", "step_size"]], "values": [[0.1], [0.2]]}
    attributes = {"settings": json.dumps(given), "grid": json.dumps([axis])}
    said = _summary(xarray.Dataset(attrs=attributes), [])
    assert "GD = {type = &quot;GradientDescent&quot;, step_size varies over the grid}" in said
    assert "modes" not in said


def test_the_axis_of_time_ends_with_the_run(scalar):
    exact = scalar.copy(deep=True)
    exact.jacobian_error[{"iteration": slice(5, None)}] = 0.0
    drawn = content_of(iterdiff.study.report(exact))["cases"][0]
    assert max(point[0] for point in drawn["curves"][1]["points"]) < 5
    assert drawn["last"] == 1000


def test_the_settings_in_the_page_give_the_same_grid(grid, tmp_path):
    text = reproduction(iterdiff.study.open(grid / "out"))
    (tmp_path / "study.toml").write_text(text)
    again, first = load_grid(str(tmp_path / "study.toml")), load_grid(str(grid / "g.toml"))
    assert [again.words(i) for i in range(4)] == [first.words(i) for i in range(4)]


@pytest.mark.parametrize("value", ['a\x7f"\\\n', {"a b": [1, 2.5, True]}, [{"type": "x"}]])
def test_values_in_toml(value):
    import tomllib

    assert tomllib.loads(f"x = {as_toml(value)}")["x"] == value


def test_cells_without_the_variables_of_the_page_are_named(scalar):
    with pytest.raises(ValueError, match="`jacobian_error`"):
        list(cells(scalar.drop_vars("jacobian_error")))


def test_a_large_study_stays_below_the_limit():
    count, t = MAX_CASES + 2, np.arange(2001)
    curve = np.geomspace(1, 1e-9, t.size)
    data = xarray.Dataset(
        {
            "iterate_error": (("algorithm", "iteration"), np.tile(curve, (count, 1))),
            "jacobian_error": (
                ("algorithm", "mode", "iteration"),
                np.broadcast_to(curve, (count, 4, t.size)),
            ),
            "reference_norm": ("algorithm", np.ones(count)),
            "steps": ("algorithm", np.full(count, 2000)),
            "every": ("algorithm", np.ones(count, int)),
            "status": ("algorithm", ["finite throughout"] * count),
        },
        {"algorithm": [f"a{i}" for i in range(count)], "mode": list("abcd"), "iteration": t},
        {"title": "large", "settings": "{}"},
    )
    page = iterdiff.study.report(data)
    assert len(page.encode()) < MAX_BYTES and len(content_of(page)["cases"]) == MAX_CASES
