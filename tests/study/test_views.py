"""Views of a dataset: numbers of a curve, report, figures, and the page."""

import html
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray
from rich.console import Console

from iterdiff.study.run import cases
from iterdiff.study.views.advice import advice
from iterdiff.study.views.curves import MARKERS, curve, line
from iterdiff.study.views.page import report
from iterdiff.study.views.plots import figures, save_figures
from iterdiff.study.views.report import print_report, save_report
from iterdiff.study.views.summary import converged
from iterdiff.study.views.verdicts import (
    BoundCheck,
    Diverged,
    ImplicitAgainstUnrolled,
    LateStart,
    verdicts,
)

HOSTILE = ("[/b] x", "[red]GD", "cost $5_{ and $", "<!--<script>", "</script>", "@DATA ${x}", ":x:")


@pytest.fixture
def made_up():
    """A dataset of two algorithms with numbers that are hard to draw, made by hand."""
    t = np.arange(41)
    falling = 0.5 ** t.astype(float)
    hump = (1 + t) * 0.8**t
    broken = np.where(t < 30, 2.0**t, np.inf)
    ended = np.where(t <= 20, 0.1**t, np.nan)
    jacobian = np.array([[hump, falling], [broken, ended]])
    late = np.array([[hump[:21], falling[:21]], [np.full(21, np.inf), 0 * falling[:21]]])
    late[:, 0, 11:] = np.nan
    return xarray.Dataset(
        {
            "iterate_error": (("algorithm", "iteration"), np.array([falling, 0 * falling])),
            "jacobian_error": (("algorithm", "mode", "iteration"), jacobian),
            "jacobian_error_estimate": (("algorithm", "mode", "iteration"), np.nan * jacobian),
            "estimate_trusted": (("algorithm", "mode", "iteration"), jacobian < -np.inf),
            "reference_norm": ("algorithm", np.array([1.0, 0.0])),
            "late_start_error": (("algorithm", "total", "start"), late),
            "late_start_predicted": ("algorithm", np.array([3.0, np.nan])),
            "steps": ("algorithm", np.array([40, 40])),
            "every": ("algorithm", np.array([1, 1])),
            "status": ("algorithm", ["finite throughout", "diverged: not finite from 30 on"]),
        },
        coords={
            "algorithm": ["good", "bad"],
            "mode": ["unrolled", "implicit"],
            "iteration": t,
            "total": [10, 20],
            "start": t[:21],
        },
        attrs={"title": "made up", "axis": "algorithm", "study": "none"},
    )


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([1, 3, 2, 0.5, 1e-9], {"peak": 3, "peak_iteration": 2, "burn_in_end": 4, "small_from": 8}),
        ([1, 0.5, 0.2, 0.1, 0.1], {"peak": 1, "burn_in_end": 0, "small_from": None}),
        ([0, 1, 2, 3, 4], {"start": 1, "start_iteration": 2, "burn_in_end": None}),
        ([1, 2, np.nan, 1, 1], {"peak": np.inf, "peak_iteration": 4, "burn_in_end": 4}),
        ([0, 0, 0, 0, 0], {"start": 0, "peak": 0, "burn_in_end": 0, "small_from": 0}),
    ],
)
def test_numbers_of_a_curve(errors, expected):
    found = converged(np.arange(0, 10, 2), np.array(errors, float), 1.0)
    assert {name: getattr(found, name) for name in expected} == expected


def test_verdicts_are_data(made_up):
    good, bad = verdicts(made_up)
    assert good.verdicts[0].found.burn_in_end == 11 and good.verdicts[0].steps == 40
    # From iteration 1 on the unrolled error is above the implicit one.
    assert good.verdicts[2].first == 1
    # Powers of 1/2 fall until the last start; the prediction is 3.
    late = LateStart(20, 20, 0.5**20, 1.0, predicted=3, predicted_error=0.125, rounding=1e-12)
    assert good.verdicts[3] == late
    assert bad.verdicts[0] == Diverged("diverged: not finite from 30 on")
    assert isinstance(bad.verdicts[-1], LateStart) and bad.verdicts[-1].predicted is None


def test_a_finite_run_that_diverges_is_named_everywhere(made_up):
    growth = 2.0 ** np.arange(41.0)
    made_up["iterate_error"] = made_up.iterate_error.copy()
    made_up["iterate_error"][0] = growth
    diverged = verdicts(made_up)[0].verdicts[0]
    assert isinstance(diverged, Diverged) and "1.1e+12 times" in str(diverged)
    file = io.StringIO()
    print_report(made_up, Console(file=file, width=100))
    assert "good (diverges)" in file.getvalue()
    titles = [panel.get_title() for panel in figures(made_up)["convergence"].axes]
    assert {"good (diverges)", "bad (diverges)"} <= set(titles)
    # the comparison keeps the scale of the runs that do not diverge
    made_up["status"] = ("algorithm", ["finite throughout"] * 2)
    right = figures(made_up)["comparison"].axes[1]
    assert right.get_ylim()[1] <= 2.1 * 2.0**29


def test_rounding_is_no_finding(made_up):
    noise = 1e-16 * (1 + np.arange(41) % 2)
    made_up["jacobian_error"] = made_up.jacobian_error.copy()
    made_up["jacobian_error"][0] = [noise, noise[::-1]]
    made_up["late_start_error"] = made_up.late_start_error.copy()
    made_up["late_start_error"][0] = 1e-16
    found = verdicts(made_up)[0].verdicts
    assert not found[0].found.has_burn_in
    assert found[2] == ImplicitAgainstUnrolled(None, both_exact=True)
    assert "exact to rounding" in str(found[2]) and "exact to rounding" in str(found[3])


def test_an_error_that_falls_is_not_right_to_rounding(made_up):
    t = np.arange(41)
    noise = 1 + t % 2
    curves = {  # of both modes; whose error still falls
        "exact": (1e-16 * noise, 1e-15 * noise, ()),
        "at the limit of an ill-conditioned problem": (1e-11 * noise, 1e-10 + 0.1**t, ()),
        "slow": (1e-16 * noise, 1e-9 * 0.99**t, ("implicit",)),
        "both": (1e-10 * 0.9**t, 9e-10 * 0.9**t * noise, ("unrolled", "implicit")),
    }
    for name, (unrolled, implicit, falling) in curves.items():
        made_up["jacobian_error"] = made_up.jacobian_error.copy()
        made_up["jacobian_error"][0] = np.array([unrolled, implicit])
        use = advice(dict(cases(made_up))["good"])[0]
        assert (use.falling, use.rounding) == (falling, not falling), name
        assert ("to rounding" in str(use), " fall" in str(use)) == (not falling, bool(falling))


def test_an_alternating_curve_is_a_band(made_up):
    t = np.arange(100)
    up, down = 2.0 ** -(t / 10.0), 2.0 ** -(t / 10.0) / 3
    axes = plt.figure().subplots()
    curve(axes, t, np.where((t % 2 == 0) & (t >= 40), up, down), color="red")
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices
    assert heights[:, 0].min() >= 35 and heights[:, 0].max() <= 99
    middle = heights[heights[:, 0] == 70, 1]
    np.testing.assert_allclose([middle.min(), middle.max()], [down[70], up[70]], rtol=0.05)
    assert np.isnan(axes.lines[0].get_ydata()[50:90]).all()
    assert np.isfinite(axes.lines[0].get_ydata()[:35]).all()
    plt.close("all")


@pytest.mark.parametrize("paper", [False, True])
def test_the_legend_fits_with_one_algorithm(made_up, paper):
    one = made_up.isel(algorithm=[0]).copy()
    one["estimate_trusted"] = one.jacobian_error >= 0
    one["jacobian_error_estimate"] = one.jacobian_error
    one["bound"] = one.jacobian_error
    figure = figures(one, paper=paper)["convergence"]
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_markers_keep_their_distance(made_up):
    zigzag = 1e-15 * (1 + np.arange(41.0) % 2)
    axes = plt.figure().subplots()
    values = xarray.DataArray(zigzag, coords={"iteration": np.arange(41)})
    line(axes, values, marker="o", color="red")
    assert len(axes.lines[0].get_markevery()) == MARKERS
    assert min(np.diff(axes.lines[0].get_markevery())) >= 8
    plt.close("all")


def test_broken_bound_is_reported(made_up):
    twice = xarray.DataArray([0.5, 2.0], dims="mode") * made_up.jacobian_error
    made_up["bound"] = twice.where(np.isfinite(made_up.jacobian_error), 1.0)
    checks = [v for v in verdicts(made_up)[0].verdicts if isinstance(v, BoundCheck)]
    assert [(check.mode, check.holds) for check in checks] == [
        ("unrolled", False),
        ("implicit", True),
    ]
    np.testing.assert_allclose([checks[0].largest, checks[1].largest], [2.0, 0.5])
    assert "NOT" in str(checks[0]) and "NOT" not in str(checks[1])


def test_views_of_awkward_numbers(made_up, tmp_path):
    names = save_figures(made_up, tmp_path, paper=True)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert {name.rsplit(".", 1)[1] for name in names} == {"png", "svg", "pdf"}
    picture = plt.imread(tmp_path / "convergence.png")
    assert picture.std() > 0.05  # something is drawn
    save_report(made_up, tmp_path / "report.txt")
    lines = (tmp_path / "report.txt").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 100
    for verdict in (v for case in verdicts(made_up) for v in case.verdicts):
        assert f"  {verdict}"[:60] in "\n".join(lines)


def test_curves_are_cut_where_a_log_scale_ends(made_up):
    axes = figures(made_up)["convergence"].axes
    for drawn in (drawn for panel in axes for drawn in panel.lines):
        heights = np.asarray(drawn.get_ydata(), float)
        assert not (heights <= 0).any() and not np.isinf(heights).any()


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_a_user_are_shown_literally(made_up, text, tmp_path):
    made_up = made_up.isel(algorithm=[0]).assign_coords(algorithm=[text], mode=[text, "b"])
    made_up.attrs["title"] = text
    file = io.StringIO()
    print_report(made_up, Console(file=file, width=100))
    assert file.getvalue().count(text) >= 4  # title, axis, mode, verdicts
    figure = figures(made_up)["convergence"]
    figure.savefig(tmp_path / "a.svg")  # raises for a formula that cannot be read
    shown = report(made_up)
    (content,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', shown)
    assert not set("<>&") & set(content)
    assert json.loads(content)["cases"][0]["label"] == text
    assert shown.count("</script>") == 2 and shown.count("<script") == 2
    assert shown.count("<h1>") == 1 and html.escape(text) in shown
