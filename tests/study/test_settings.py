"""What a study is made from: names, files, tables, a folder to write to; and what is refused."""

import dataclasses

import numpy as np
import pytest

from iterdiff.study.catalog import RECIPES, load_study
from iterdiff.study.config import Overrides
from iterdiff.study.datasets import bundled, read_csv
from iterdiff.study.store import fresh_folder

GD = {"GD": {"type": "GradientDescent", "step_size": "1/L"}}


def test_every_study_is_listed_and_can_be_made():
    for name, recipe in RECIPES.items():
        study = load_study(name)
        assert recipe.name == study.name == name and study.cases and study.modes
        for case in study.cases:
            assert case.steps % case.every == 0


def test_file_changes_a_study(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'study = "curse"\ntitle = "mine"\nsteps = 7\nevery = 3\nprobes = 2\n'
        "[problem]\nsize = 3\ncondition = 10\n"
        '[algorithms.fast]\ntype = "HeavyBall"\nmomentum = 0.3\n'
        '[algorithms.slow]\ntype = "GradientDescent"\nstep_size = "0.5/L"\n'
        '[modes.late]\ntype = "Unrolled"\nlast = 2\n'
    )
    study = load_study(str(path), Overrides(steps=9))
    assert (study.title, study.probes) == ("mine", 2)
    assert [(c.label, c.steps, c.every) for c in study.cases] == [("fast", 9, 3), ("slow", 9, 3)]
    assert study.cases[0].algorithm.momentum == 0.3
    assert study.cases[1].algorithm.step_size == 0.5
    assert study.modes["late"].last == 2 and study.cases[0].x0.shape == (3,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 3", "`study` is missing"),
        ('study = "rigde"', "Did you mean `ridge`"),
        ('study = "ridge"\nstepz = 3', "`stepz`.*Did you mean `steps`"),
        ('study = "ridge"\nsteps = "many"', "`steps`.*whole number"),
        ('study = "ridge"\nsteps = 0', "`steps`.*from 1 on"),
        ('study = "ridge"\n[problem]\npenalti = 3', "`penalti`.*Did you mean `penalty`"),
        ('study = "ridge"\n[problem]\npenalty = -3', "`problem.penalty`"),
        ('study = "ridge"\n[problem]\ndata = "iris"', "no table 'iris'"),
        ('study = "ridge"\n[algorithms.a]\nstep_size = 1', "`algorithms.a`.*`type`"),
        ('study = "ridge"\n[algorithms.a]\ntype = "Gradient"', "Did you mean `GradientDescent`"),
        (
            'study = "ridge"\n[algorithms.a]\ntype = "GradientDescent"\nstep = 1',
            "`step` in .*not known",
        ),
        (
            'study = "ridge"\n[algorithms.a]\ntype = "GradientDescent"\nstep_size = -1',
            "`step_size`",
        ),
        ('study = "ridge"\n[algorithms.a]\ntype = "GradientDescent"\nstep_size = "1/l"', "c/L"),
        ('study = "ridge"\n[modes.a]\ntype = "Reverse"', "no mode"),
        ('study = "ridge"\n[modes.a]\ntype = "Unrolled"\nlast = 0', "`modes.a`.*`last`"),
        ('study = "ridge"\n[modes.a]\ntype = "Implicit"\nlast = 1', "`last`.*not known"),
        ('study = "curse"\n[problem]\nspectrum = "odd"', "`problem.spectrum`"),
        ('study = "root-finding"\n[problem]\nsource = 9', "`problem.source`"),
        ("study = ", "no TOML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_study(str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,4\n", "no column 'y'"),
        ("a;y\n1;2\n3;4\n", "separate them by commas"),
        ("a,y\n1,2\nred,4\n", r"line 3, column `a`.*'red' is no number"),
        ("a,y\n1,2\n,4\n", r"line 3, column `a`.*empty"),
        ("a,y\n1,2\n3,\n", r"line 3, column `y`.*empty"),
        ("a,y\n1,2\n3,4,5\n", "line 3 has 3 cells"),
        ("a,y\n1,2\nnan,4\n", "not finite"),
        ("a,y\n1,2\n3,inf\n", "not finite"),
        ("a,y\n1,2\n", "1 row of numbers"),
        ("a,y\n", "0 rows of numbers"),
        ("", "is empty"),
        ("y\n1\n2\n", "needs features"),
        ("a,a,y\n1,2,3\n3,4,5\n", "two columns named 'a'"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_csv(path, "y")


def test_tables_that_fit_no_regression_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n1,1,yes\n2,1,no\n3,1,maybe\n")
    table = read_csv(path, "y")
    with pytest.raises(ValueError, match="3 different values"):
        table.signs()
    with pytest.raises(ValueError, match="holds text"):
        table.numbers()
    with pytest.raises(ValueError, match="`b` never changes"):
        table.standardised()
    with pytest.raises(ValueError, match="never changes"):
        dataclasses.replace(table, target=np.ones(3)).numbers()
    with pytest.raises(ValueError, match="cannot be read"):
        read_csv(tmp_path / "none.csv", "y")


def test_bundled_tables_are_standardised():
    table = bundled("breast-cancer")
    scaled = table.standardised()
    assert scaled.shape == (569, 30) and len(table.columns) == 30
    np.testing.assert_allclose(scaled.mean(0), np.zeros(30), atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), np.ones(30), rtol=1e-12)
    assert set(table.signs()) == {-1.0, 1.0} and (table.signs() > 0).sum() == 357


def test_one_thing_varies_in_a_study():
    two = {**GD, "other": {"type": "GradientDescent", "step_size": 0.2}}
    with pytest.raises(ValueError, match="varies one thing"):
        load_study("scalar-quadratic", Overrides(algorithms=two))
    single = load_study("scalar-quadratic", Overrides(algorithms=two, problem={"b": 1.0}))
    assert [case.label for case in single.cases] == ["GD", "other"]


def test_failed_run_leaves_nothing(tmp_path):
    out = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError), fresh_folder(out) as folder:
        (folder / "half.png").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_successful_run_replaces_its_own_files_only(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "old.png").write_text("old")
    with fresh_folder(tmp_path) as folder:
        (folder / "old.png").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "old.png"]
    assert (tmp_path / "old.png").read_text() == "new"
