"""The command line: what it writes, and that wrong input ends in one line."""

import subprocess
import sys

import pytest
import xarray

import iterdiff as itd
from iterdiff.cli import main
from iterdiff.study.catalog import BUILT_IN

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


def test_page_of_a_dataset(written, tmp_path):
    words = ["explore", str(written / "scalar-quadratic.nc"), "--out", str(tmp_path)]
    assert main(words) == 0
    page = (tmp_path / "explore.html").read_text(encoding="utf-8")
    assert "<h1>[/b] $5_{ @DATA</h1>" in page and "<img" not in page


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
    "dataset is missing": (["explore", "none.nc"], "none.nc"),
    "dataset is none": (["explore", "t.csv"], "t.csv"),
    "no steps on the page": (["explore", "--steps", "0"], "--steps"),
    "no module": (["diagnose", "nothing_like_it:run"], "nothing_like_it"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_input_ends_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,y\n1,2\n3,4\n")
    (tmp_path / "text.csv").write_text("a,y\n1,2\nred,4\n")
    (tmp_path / "s.toml").write_text(SCALAR)
    before = sorted(path.name for path in tmp_path.iterdir())
    words, expected = BAD[name]
    out = ["--out", "out"] if words and words[0] != "diagnose" else []
    assert main([*words, *out]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


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
