"""The command line: what it writes, and that wrong input ends in one line."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import xarray

import iterdiff as itd
import iterdiff.study
from iterdiff.cli import main
from iterdiff.diagnostics.diagnose import DEFAULT_STEPS
from iterdiff.study.catalog import BUILT_IN
from iterdiff.study.problems.datasets import read_csv

SCALAR = 'study = "scalar-quadratic"\nsteps = 20\nproblem.b = 0.0\n'


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of one small study with a title and a label that look like markup."""
    folder = tmp_path_factory.mktemp("study")
    settings = folder / "s.toml"
    settings.write_text(
        f"{SCALAR}title = '[/b] $5_{{ @DATA'\n"
        '[algorithms."[red]<img src=x>"]\ntype = "GradientDescent"\nstep_size = 0.1\n'
    )
    out = folder / "new" / "folder"
    assert main(["study", str(settings), "--out", str(out), "--paper", "--quiet"]) == 0
    return out


def test_study_writes_everything(written):
    names = ("convergence", "explanation")
    figures = [f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "pdf")]
    expected = sorted(["scalar-quadratic.nc", "report.txt", *figures])
    assert sorted(path.name for path in written.iterdir()) == expected
    data = xarray.load_dataset(written / "scalar-quadratic.nc", engine="h5netcdf")
    assert dict(data.sizes) == {"algorithm": 1, "mode": 2, "iteration": 21}
    report = (written / "report.txt").read_text(encoding="utf-8")
    assert "[/b] $5_{ @DATA" in report and "[red]<img src=x>" in report


def test_report_of_a_dataset(written, tmp_path, capsys):
    out = tmp_path / "new folder" / "r.html"
    assert main(["report", str(written / "scalar-quadratic.nc"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Written: {out}\n"
    page = out.read_text(encoding="utf-8")
    assert "<h1>[/b] $5_{ @DATA</h1>" in page and "<img" not in page
    assert main(["report", str(written), "--out", str(tmp_path)]) == 2
    assert "`--out`" in capsys.readouterr().err


def test_list_has_a_line_a_study(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(BUILT_IN)
    assert max(map(len, lines)) <= 100


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and itd.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["study", "--help"], ["list", "--help"]])
def test_help(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0 and "usage: iterdiff" in capsys.readouterr().out


def test_own_table_through_a_file_of_settings(tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("a,b,kind\n1,2,ill\n2,1,well\n4,4,ill\n0,3,well\n7,5,ill\n")
    settings = tmp_path / "mine.toml"
    settings.write_text(
        'study = "logistic"\nsteps = 4\n[algorithms.GD]\ntype = "GradientDescent"\n'
        '[modes.one-step]\ntype = "OneStep"\n'
    )
    words = ["study", str(settings), "--data", str(table), "--target", "kind", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "table.csv (5 rows, 2 features)" in " ".join(capsys.readouterr().out.split())
    data = xarray.load_dataset(tmp_path / "out" / "logistic.nc", engine="h5netcdf")
    assert data.attrs["unknowns"] == 2 and data.attrs["dtype"] == "float64"


TABLE = ["--target", "y", "--data"]
BAD = {
    "no command": ([], "COMMAND"),
    "unknown option": (["study", "ridge", "--step", "3x"], "--step"),
    "unknown study": (["study", "logistics"], "`logistic`"),
    "missing file": (["study", "none.toml"], "none.toml"),
    "missing table": (["study", "ridge", *TABLE, "no.csv"], "no.csv"),
    "missing column": (["study", "ridge", "--data", "t.csv", "--target", "z"], "'z'"),
    "text cell": (["study", "ridge", *TABLE, "text.csv"], "line 3, column `a`"),
    "no target": (["study", "ridge", "--data", "t.csv"], "`--target`"),
    "no data": (["study", "ridge", "--target", "y"], "`--data`"),
    "data for physics": (["study", "linear-system", *TABLE, "t.csv"], "`problem.data`"),
    "zero steps": (["study", "s.toml", "--steps", "0"], "--steps"),
    "zero every": (["study", "s.toml", "--every", "0"], "--every"),
    "zero probes": (["study", "s.toml", "--probes", "0"], "--probes"),
    "negative steps": (["study", "ridge", "--steps", "-1"], "--steps"),
    "word for steps": (["study", "ridge", "--steps", "many"], "--steps"),
    "last iterate lost": (["study", "s.toml", "--steps", "100", "--every", "30"], "`every`"),
    "dataset is missing": (["report", "none.nc"], "none.nc"),
    "dataset is none": (["explore", "t.csv"], "iterdiff study ridge --data t.csv"),
    "report of settings": (["report", "s.toml"], "iterdiff study s.toml"),
    "report of a folder": (["report", "."], "no grid"),
    "no such port": (["explore", "--port", "0"], "--port"),
    "no module": (["diagnose", "nothing_like_it:run"], "nothing_like_it"),
    "no module file": (["diagnose", "nothing.py:run"], "nothing.py"),
    "no name": (["diagnose", "runs.py:nothing"], "`nothing`"),
    "module with an error": (["diagnose", "runs.py:fails"], "ZeroDivisionError"),
    "module that ends": (["diagnose", "ends.py:run"], "SystemExit"),
    "module that cannot be read": (["diagnose", "broken.py:run"], "SyntaxError"),
    "objective with an error": (["diagnose", "runs.py:wrong"], "KeyError"),
    "rtol": (["diagnose", "runs.py:run", "--rtol", "0"], "`rtol`"),
}

RUNS = """
import jax.numpy as jnp
import iterdiff as itd

problem = itd.Minimization(lambda x, t: jnp.sum((x - t) ** 2))
run = problem, itd.Newton(), jnp.zeros(2), jnp.ones(2)
wrong = itd.Minimization(lambda x, t: {}["a"]), itd.Newton(), jnp.zeros(2), jnp.ones(2)

def fails():
    return 1 / 0
"""


@pytest.mark.parametrize("name", BAD)
def test_wrong_input_ends_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,y\n1,2\n3,4\n")
    (tmp_path / "text.csv").write_text("a,y\n1,2\nred,4\n")
    (tmp_path / "s.toml").write_text(SCALAR)
    (tmp_path / "runs.py").write_text(RUNS)
    (tmp_path / "ends.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    words, expected = BAD[name]
    out = ["--out", "out"] if words and words[0] not in ("diagnose", "explore") else []
    assert main([*words, *out]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""
    found = {path.name for path in tmp_path.iterdir()}
    assert sorted(found - {"__pycache__"}) == before


def test_diagnose_reads_a_file_and_has_the_defaults_of_python(tmp_path, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "runs.py").write_text(RUNS)
    called = {}
    monkeypatch.setattr(itd, "diagnose", lambda *run, **options: called.update(options) or "done")
    assert main(["diagnose", str(tmp_path / "folder" / "runs.py:run")]) == 0
    assert capsys.readouterr().out == "done\n" and called == {}
    with pytest.raises(SystemExit):
        main(["diagnose", "--help"])
    monkeypatch.undo()
    shown = " ".join(capsys.readouterr().out.split())
    assert f"default: {inspect.signature(itd.diagnose).parameters['rtol'].default:g}" in shown
    assert f"default: {DEFAULT_STEPS}" in shown


def test_study_takes_a_function_as_diagnose_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.py").write_text(f"{RUNS}\ndef make(n=2):\n    return run\n")
    words = ["study", "runs.py:make", "--steps", "2", "--quiet"]
    assert main([*words, "--set", "grid.problem.n=[2, 3]"]) == 0
    assert "2 of 2 cells are in out/make" in capsys.readouterr().out.replace("\\", "/")
    data = iterdiff.study.open(tmp_path / "out" / "make")
    assert data["algorithm"].values == ["Newton"] and data["problem.n"].values.tolist() == [2, 3]
    assert main(["study", "runs.py:mak"]) == 2
    assert "`make`" in capsys.readouterr().err


def test_a_folder_with_the_name_of_a_file_is_an_error_that_writes_nothing(tmp_path, capsys):
    (tmp_path / "s.toml").write_text(SCALAR)
    out = tmp_path / "out"
    (out / "report.txt").mkdir(parents=True)
    words = ["study", str(tmp_path / "s.toml"), "--out", str(out), "--quiet"]
    assert main(words) == 2
    assert "report.txt is a folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["report.txt"]


@pytest.mark.parametrize("column", ["1e308,-1e308,0", "1e200,3e200,2e200", "1e-300,3e-300,2e-300"])
def test_huge_and_tiny_numbers_of_a_table(column, tmp_path):
    table = tmp_path / "t.csv"
    rows = [f"{value},{y}" for value, y in zip(column.split(","), (1, 2, 4), strict=True)]
    table.write_text("\n".join(["a,y", *rows]) + "\n")
    features = read_csv(table, "y").standardised()
    np.testing.assert_allclose(features.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(features.std(), 1, rtol=1e-12)


def test_an_interrupt_while_libraries_load_ends_the_process(tmp_path):
    # The program interrupts itself at the first import of JAX.
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'jax':\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                for _ in range(10**6): pass\n"
        "            except BaseException: pass  # as an extension module may do\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from iterdiff.cli import main\n"
        f"sys.exit(main(['study', 'scalar-quadratic', '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 130
    assert run.stderr.count("\n") == 1 and "interrupted" in run.stderr
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_reported_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("iterdiff.study.run.run", lambda *a, **k: pytest.fail("computed"))
    file = tmp_path / "file"
    file.write_text("here")
    for out in (file, file / "below"):
        assert main(["study", "scalar-quadratic", "--out", str(out)]) == 2
        assert str(out) in capsys.readouterr().err
    assert file.read_text() == "here" and list(tmp_path.iterdir()) == [file]


def test_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iterdiff.study.views.plots.save_figures", fails)
    (tmp_path / "s.toml").write_text(SCALAR)
    words = ["study", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 2
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


@pytest.mark.parametrize("library", ["rich", "matplotlib", "h5py", "pydantic"])
def test_missing_extra_is_named(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["study", "scalar-quadratic", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert library in error and "pip install 'iterdiff[study]'" in error
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_demand():
    with pytest.raises(ValueError, match="nothing-like-it"):
        main(["--traceback", "study", "nothing-like-it"])


def test_a_fresh_process_finds_the_algorithms():
    # Public names are loaded on first use; a file names them as words.
    script = (
        "from iterdiff.study.options import algorithm_classes\n"
        "assert {'GradientDescent', 'Newton', 'FISTA'} <= algorithm_classes().keys()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
