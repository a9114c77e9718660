"""From settings to figures: addresses, words, data of curves, what cannot run, the script."""

import json

import jax
import numpy as np
import pytest

import iterdiff as itd
from iterdiff.explore.choices import MODES, SUBJECTS, choice, from_address
from iterdiff.explore.compute import drawn, shown
from iterdiff.explore.downloads import netcdf, picture, table
from iterdiff.explore.words import script, words
from iterdiff.study.catalog import load_study

ETA, THETA, X0, STEPS = 0.5, 0.05, 0.5, 200


@pytest.fixture(scope="module")
def scalar():
    """The default choice, the scalar quadratic with b = 0, and its figures."""
    chosen = choice("scalar-quadratic", {})
    found = shown(chosen)
    return found, dict(drawn(chosen, found))


def curve_of(figure, name):
    """Return a curve of a figure by its name."""
    return next(c for c in figure["data"] if c["name"] == name)


def test_the_errors_have_their_closed_form_and_the_peak_is_marked(scalar):
    _, charts = scalar
    t, rho = np.arange(1, STEPS + 1), 1 - ETA * THETA
    exact = ETA * t * X0 * rho ** (t - 1)
    for name in ("unrolled", "closed form (unrolled)"):
        curve = curve_of(charts["convergence"], name)
        assert curve["x"][0] == 0 and curve["y"][0] is None  # exactly 0: no place on a log axis
        np.testing.assert_allclose(curve["y"][1:], exact, rtol=1e-12)
    peak = curve_of(charts["convergence"], "peak of the burn-in (shaded)")
    assert peak["x"] == [t[np.argmax(exact)]]
    np.testing.assert_allclose(peak["y"], [exact.max()], rtol=1e-12)
    [shade] = charts["convergence"]["layout"]["shapes"]
    assert shade["x0"] == 0 and shade["x1"] == t[exact > exact[0] * (1 + 1e-9)][-1]
    names = [text["text"] for text in charts["explanation"]["layout"]["annotations"]]
    assert names == ["linear", "× exponential", "= error"]
    product = curve_of(charts["explanation"], "product")
    np.testing.assert_allclose(product["y"][1:], exact, rtol=1e-12)


def test_the_plane_and_the_polynomials_have_their_closed_form(scalar):
    _, charts = scalar
    t, rho = np.arange(STEPS + 1), 1 - ETA * THETA
    path = curve_of(charts["plane"], "unrolled")
    np.testing.assert_allclose(path["x"], X0 * rho**t, rtol=1e-12)
    slopes = -ETA * t * X0 * rho ** (t - 1)
    np.testing.assert_allclose(path["y"], slopes, rtol=1e-12, atol=1e-15)
    star = charts["plane"]["data"][-1]
    assert (star["x"], star["y"]) == ([0.0], [0.0])
    curves = charts["polynomials"]["data"]
    for name, axis, exact in (
        ("t = 5", "y", lambda lam: (1 - ETA * lam) ** 5),
        ("t = 5", "y2", lambda lam: (1 - ETA * lam) ** 4 * (1 - ETA * lam + 5 * ETA * lam)),
    ):
        [found] = [c for c in curves if (c["name"], c["yaxis"]) == (name, axis)]
        eigenvalues = found["x0"] + found["dx"] * np.arange(len(found["y"]))
        np.testing.assert_allclose(found["y"], exact(eigenvalues), atol=1e-12)


def test_a_new_value_needs_no_new_program(scalar):
    first, second = (
        choice("scalar-quadratic", {"step_size": step, "b": b, "theta": theta})
        for step, b, theta in ((0.7, 0.5, 0.2), (0.9, 1.0, 0.1))
    )
    list(drawn(first, shown(first)))
    events = []

    def listen(name, *_, **__):
        events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = shown(second)
        list(drawn(second, found))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert events and not any("backend_compile" in name for name in events)
    assert float(found.data.reference_norm.item()) == pytest.approx(1.0 / 0.1**2)


@pytest.mark.parametrize("problem", SUBJECTS)
def test_every_problem_and_algorithm_makes_a_study(problem):
    for algorithm in SUBJECTS[problem].algorithms:
        chosen = choice(problem, {"algorithm": algorithm, "modes": MODES, "usual": False})
        study = load_study(problem, **words(chosen))
        [case] = study.cases
        assert type(case.algorithm) is getattr(itd, algorithm)
        assert tuple(study.modes) == MODES and study.modes["late start"].last == case.steps // 2
        assert from_address(chosen.address()) == (chosen, [])
        json.dumps(words(chosen))


def test_addresses_that_make_no_sense_are_named_and_ignored():
    given = {"problem": "scalar-quadratic", "theta": "9", "b": "x", "modes": "unroled", "bb": "1"}
    found, complaints = from_address(given)
    assert found == choice("scalar-quadratic", {})
    named = ["`theta`", "`b`", "`unrolled`", "`bb`"]
    assert all(any(name in text for text in complaints) for name in named)
    assert len(complaints) == 4
    assert from_address({"problem": "curs"})[1][0].endswith("`curse`?")


CANNOT_RUN = {
    "singular": ("scalar-quadratic", {"theta": 0.0}, "singular"),
    "no fixed point": ("fixed-point", {"rate": 1.0}, "singular"),
    "no mode": ("fixed-point", {"modes": ()}, "mode"),
    "no table": ("curse-ridge", {"data": "upload"}, "CSV"),
}


@pytest.mark.parametrize("name", CANNOT_RUN)
def test_what_cannot_run_is_explained(name):
    problem, values, expected = CANNOT_RUN[name]
    with pytest.raises(ValueError, match=expected):
        shown(choice(problem, values))


def test_bad_tables_are_explained(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,2\nred,4\n")
    with pytest.raises(ValueError, match="line 3"):
        shown(choice("curse-ridge", {"data": "upload"}), (str(path), "y"))


def test_a_step_beyond_stability_is_run_and_explained():
    chosen = choice("scalar-quadratic", {"step_size": 41.0})
    found = shown(chosen)
    assert "2/L = 40" in found.notes[0]
    assert curve_of(dict(drawn(chosen, found))["convergence"], "unrolled")["y"][-1] > 1e3


def test_float32_rounds_earlier():
    values = {"precision": "float32", "modes": ("implicit",), "steps": 300}
    found = shown(choice("fixed-point", {**values, "rate": 0.5}))
    assert found.data.attrs["dtype"] == "float32"
    end = found.data.jacobian_error.values[0, 0, -1]
    assert end <= 1e-5 and jax.config.jax_enable_x64


def test_downloads(scalar):
    data = scalar[0].data
    lines = table(data).decode().splitlines()
    assert len(lines) == 1 + 2 * (STEPS + 1) and "jacobian_error" in lines[0]
    assert picture(data, "svg").startswith(b"<?xml") and picture(data, "png")[1:4] == b"PNG"
    assert len(netcdf(data)) > 1000


def test_the_script_draws_the_same(scalar, tmp_path, monkeypatch, capsys):
    pytest.importorskip("plotly", reason="the extra `explore` is not installed")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(script(choice("scalar-quadratic", {})), scope)
    assert dict(scope["figures"](scope["study"], scope["data"])) == scalar[1]
    written = {path.stem for path in tmp_path.glob("*.html")}
    assert written == set(scalar[1]) and "written: plane.html" in capsys.readouterr().out
