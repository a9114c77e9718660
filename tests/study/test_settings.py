"""Settings: names, files, and messages about wrong ones."""

import dataclasses
import re
from pathlib import Path

import pytest

import iterdiff as itd
from iterdiff.study.catalog import BUILT_IN, load_study
from iterdiff.study.options import algorithm_classes, mode_makers
from iterdiff.study.settings import line_of
from iterdiff.study.suggestions import nearest

DOCS = Path(__file__).parents[2] / "docs" / "studies.md"
GD = {"GD": {"type": "GradientDescent", "step_size": "1/L"}}


@pytest.fixture
def refused(tmp_path):
    """A function that returns the message about a file of settings."""

    def message(text):
        path = tmp_path / "bad.toml"
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            load_study(str(path))
        assert str(path) in str(error.value)
        return str(error.value).replace(str(path), "FILE")

    return message


def test_every_built_in_study_can_be_made():
    for name, built_in in BUILT_IN.items():
        study = load_study(name)
        assert built_in.settings.study == study.name == name and study.cases and study.modes
        for case in study.cases:
            assert case.steps % case.every == 0


def test_file_changes_a_study(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'study = "curse"\ntitle = "mine"\nsteps = 7\nevery = 3\nprobes = 2\n'
        "[problem]\nsize = 3\ncondition = 10\n"
        '[algorithms.fast]\ntype = "HeavyBall"\nmomentum = 0.3\n'
        '[algorithms.slow]\ntype = "GradientDescent"\nstep_size = "0.5 / L"\n'
        '[modes.late]\ntype = "Unrolled"\nlast = 2\n'
    )
    study = load_study(str(path), steps=9)
    assert (study.title, study.probes) == ("mine", 2)
    assert [(c.label, c.steps, c.every) for c in study.cases] == [("fast", 9, 3), ("slow", 9, 3)]
    assert study.cases[0].algorithm.momentum == 0.3
    assert study.cases[1].algorithm.step_size == 0.5
    assert study.modes["late"].last == 2 and study.cases[0].x0.shape == (3,)


def test_every_option_of_a_mode_can_be_named(tmp_path):
    path = tmp_path / "modes.toml"
    path.write_text(
        'study = "scalar-quadratic"\nproblem.b = 1.0\n'
        '[modes.checked]\ntype = "Checked"\nrtol = 0.1\non_failure = "nan"\n'
        'mode = { type = "Implicit", refine = 1 }\n'
        '[modes.blocks]\ntype = "Unrolled"\ncheckpoint = "log"\n'
        '[modes.auto]\ntype = "Unrolled"\nlast = "auto"\nrtol = 1e-4\n'
        '[modes.pair]\ntype = "Unrolled"\naccelerate = 3\n'
    )
    modes = load_study(str(path)).modes
    assert modes == {
        "checked": itd.Checked(itd.Implicit(refine=1), rtol=0.1, on_failure="nan"),
        "blocks": itd.Unrolled(checkpoint="log"),
        "auto": itd.Unrolled(last="auto", rtol=1e-4),
        "pair": itd.Unrolled(accelerate=3),
    }


def test_every_public_algorithm_and_mode_can_be_named():
    assert {"GradientDescent", "Newton", "FISTA", "GMRES"} <= algorithm_classes().keys()
    assert {"Unrolled", "OneStep", "Implicit", "Checked"} <= mode_makers().keys()
    assert "Algorithm" not in algorithm_classes() and "Mode" not in mode_makers()


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("steps = 3", "`study`", None),
        ('study = "rigde"', "`study` in FILE, line 1", "`ridge`"),
        ("study = 3", "`study` in FILE, line 1", None),
        ('study = "ridge"\nstepz = 3', "`stepz` in FILE, line 2", "`steps`"),
        ('study = "ridge"\nsteps = "many"', "`steps` in FILE, line 2", None),
        ('study = "ridge"\nsteps = true', "`steps` in FILE, line 2", None),
        ('study = "ridge"\nsteps = 0', "`steps` in FILE, line 2", None),
        ('study = "ridge"\nevery = 0', "`every` in FILE, line 2", None),
        ('study = "ridge"\nprobes = 0', "`probes` in FILE, line 2", None),
        ('study = "ridge"\ntitle = 3', "`title` in FILE, line 2", None),
        ('study = "ridge"\nproblem = 3', "`problem` in FILE, line 2", None),
        ('study = "ridge"\nmodes = {}', "`modes` in FILE, line 2", None),
        (
            'study = "ridge"\n[problem]\npenalti = 3',
            "`problem.penalti` in FILE, line 3",
            "`penalty`",
        ),
        ('study = "ridge"\n[problem]\n\npenalty = -3', "`problem.penalty` in FILE, line 4", None),
        ('study = "ridge"\n[problem]\npenalty = inf', "`problem.penalty` in FILE, line 3", None),
        ('study = "ridge"\n[problem]\ndata = "diabete"', "`data`", "`diabetes`"),
        (
            'study = "linear-system"\nproblem.data = "a.csv"',
            "`problem.data` in FILE, line 2",
            "ridge",
        ),
        (
            'study = "curse"\nproblem.spectrum = "end"',
            "`problem.spectrum` in FILE, line 2",
            "'ends'",
        ),
        ('study = "root-finding"\nproblem.source = 9', "`problem.source` in FILE, line 2", "3.5"),
        (
            'study = "scalar-quadratic"\nproblem.b = [1.0,\n"x"]',
            "`problem.b` in FILE, line 2",
            None,
        ),
        ('study = "ridge"\nalgorithms.a = 1', "`algorithms.a` in FILE, line 2", None),
        (
            'study = "ridge"\n[algorithms.a]\nstep_size = 1',
            "`algorithms.a.type` in FILE, line 2",
            None,
        ),
        (
            'study = "ridge"\n[algorithms.a]\ntype = "Gradient"',
            "`algorithms.a.type` in FILE, line 3",
            "`GradientDescent`",
        ),
        (
            'study = "ridge"\n[algorithms."a b"]\ntype = "GradientDescent"\nstep_siz = 1',
            '`algorithms."a b".step_siz` in FILE, line 4',
            "`step_size`",
        ),
        (
            'study = "ridge"\n[algorithms.a]\ntype = "GradientDescent"\nstep_size = -1',
            "`algorithms.a` in FILE, line 2",
            "`step_size`",
        ),
        (
            'study = "ridge"\n[algorithms.a]\ntype = "GradientDescent"\nstep_size = "1/l"',
            "`algorithms.a.step_size` in FILE, line 4",
            '"c/L"',
        ),
        (
            'study = "root-finding"\n[algorithms.a]\ntype = "Picard"\ndamping = "1/L"',
            "`algorithms.a.damping` in FILE, line 4",
            "spectrum",
        ),
        (
            'study = "root-finding"\n[algorithms.a]\ntype = "Newton"\nlinear_solver = "CG"',
            "`algorithms.a.linear_solver` in FILE, line 4",
            "Python",
        ),
        (
            'study = "ridge"\n[modes.a]\ntype = "Reverse"',
            "`modes.a.type` in FILE, line 3",
            "`Unrolled`",
        ),
        (
            'study = "ridge"\n[modes.a]\ntype = "Unrolled"\nlast = 0',
            "`modes.a` in FILE, line 2",
            "`last`",
        ),
        (
            'study = "ridge"\n[modes.a]\ntype = "Unrolled"\nlast = "atuo"',
            "`modes.a.last` in FILE, line 4",
            "'auto'",
        ),
        (
            'study = "ridge"\n[modes.a]\ntype = "Implicit"\nlast = 1',
            "`modes.a.last` in FILE, line 4",
            "`refine`",
        ),
        (
            'study = "ridge"\n[modes.a]\ntype = "Checked"\nrtol = 0.1',
            "`modes.a.mode` in FILE, line 2",
            None,
        ),
        (
            'study = "ridge"\n[modes.a]\ntype = "Checked"\nmode = { type = "Implicit", refin = 1 }',
            "`modes.a.mode.refin` in FILE, line 4",
            "`refine`",
        ),
        ("study = ", "`FILE`", None),
    ],
)
def test_message_names_key_line_and_nearest_word(refused, text, place, word):
    message = refused(text)
    assert place in message and (word is None or word in message)
    assert message.count(". ") <= 1  # at most two sentences


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml"):
        load_study(str(tmp_path / "none.toml"))


def test_wrong_change_from_python_names_no_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('study = "scalar-quadratic"\nsteps = 20\n')
    for name in ("steps", "every", "probes"):
        with pytest.raises(ValueError, match=f"^`{name}`") as error:
            load_study(str(path), **{name: 0})
        assert "mine.toml" not in str(error.value)


def test_lines_of_settings():
    text = 'a = 1\n# b\nb = [\n  1,\n]\nc.d = """\nx\n"""\n[e."f g"]\nh = 2\n'
    places = {("a",): 1, ("b",): 3, ("c", "d"): 6, ("e", "f g"): 9, ("e", "f g", "h"): 10}
    assert {keys: line_of(text, keys) for keys in places} == places
    assert line_of(text, ("e", "f g", "missing")) == 9 and line_of(text, ("z",)) is None


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        # An algorithm's own counts win over the rest of the file, the caller's over both.
        ("steps = 8\n", {}, [("a", 8, 1), ("b", 20, 1)]),
        ("steps = 8\nevery = 4\n", {}, [("a", 8, 4), ("b", 20, 4)]),
        ("steps = 8\n", {"steps": 6}, [("a", 6, 1), ("b", 6, 1)]),
        ("", {"steps": 6, "every": 3}, [("a", 6, 3), ("b", 6, 3)]),
    ],
)
def test_precedence_of_counts(tmp_path, settings, changes, expected):
    path = tmp_path / "mine.toml"
    tables = '[algorithms.a]\ntype = "HeavyBall"\n[algorithms.b]\ntype = "HeavyBall"\nsteps = 20\n'
    path.write_text(f'study = "curse"\n{settings}{tables}')
    study = load_study(str(path), **changes)
    assert [(case.label, case.steps, case.every) for case in study.cases] == expected


def test_last_iterate_is_recorded():
    with pytest.raises(ValueError, match="`every`") as error:
        load_study("scalar-quadratic", steps=100, every=30)
    assert {"25", "90", "120"} <= set(re.findall(r"\d+", str(error.value)))
    case = load_study("scalar-quadratic").cases[0]
    with pytest.raises(ValueError, match="`every`"):
        dataclasses.replace(case, steps=3, every=2)
    # A default interval is lowered until it divides the number of steps.
    richardson, jacobi, _ = load_study("linear-system", steps=33).cases
    assert (richardson.steps, richardson.every) == (33, 3)
    assert (jacobi.steps, jacobi.every) == (33, 3)


def test_one_thing_varies_in_a_study():
    two = {**GD, "other": {"type": "GradientDescent", "step_size": 0.2}}
    with pytest.raises(ValueError, match="`algorithms`"):
        load_study("scalar-quadratic", algorithms=two)
    single = load_study("scalar-quadratic", algorithms=two, problem={"b": 1.0})
    assert [case.label for case in single.cases] == ["GD", "other"]


def test_nearest_word():
    assert nearest("fista", ("GradientDescent", "FISTA")) == "FISTA"
    assert nearest("xyz", ("GradientDescent", "FISTA")) is None


@pytest.mark.skipif(not DOCS.is_file(), reason="the documentation is not in this folder")
def test_documentation_names_true_options(tmp_path, monkeypatch):
    text = DOCS.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    Path("settings.toml").write_text(settings, encoding="utf-8")
    study = load_study("settings.toml")
    assert [(c.label, c.steps, c.every) for c in study.cases] == [
        ("heavy ball", 800, 4),
        ("GD, small steps", 2000, 4),
    ]
    Path("settings.toml").write_text(settings.replace("penalty", "penalti"), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_study("settings.toml")
    assert f"iterdiff: error: {error.value}" in text
    for name, built_in in BUILT_IN.items():
        (row,) = re.findall(rf"^\| [^|]*`{name}`[^|]* \|([^|]*)\|$", text, re.MULTILINE)[-1:]
        assert set(type(built_in.settings.problem).model_fields) <= set(re.findall(r"\w+", row))
