"""The command line: what it writes, and that bad input ends in one line."""

import subprocess
import sys

import pytest
import xarray

from iterdiff.cli import main
from iterdiff.study.catalog import RECIPES


def test_list_has_a_line_a_study(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("words", [["--help"], ["study", "--help"], ["list", "--help"]])
def test_help(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0 and "usage: iterdiff" in capsys.readouterr().out


def test_study_writes_everything(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    words = ["study", "scalar-quadratic", "--steps", "30", "--out", str(out), "--paper"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "unrolled Jacobian: burn-in not over at iteration 30" in printed
    assert f"Written to {out}" in printed.replace("\n", "")
    figures = [
        f"{name}.{suffix}"
        for name in ("convergence", "explanation")
        for suffix in ("png", "svg", "pdf")
    ]
    expected = sorted(["scalar-quadratic.nc", "report.txt", *figures])
    assert sorted(path.name for path in out.iterdir()) == expected
    data = xarray.load_dataset(out / "scalar-quadratic.nc", engine="h5netcdf")
    assert dict(data.sizes) == {"b": 2, "mode": 2, "iteration": 31}


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


BAD = {
    "unknown study": (["study", "logistics"], "Did you mean `logistic`"),
    "missing file": (["study", "none.toml"], "cannot be read"),
    "missing table": (["study", "ridge", "--data", "no.csv", "--target", "y"], "cannot be read"),
    "missing column": (["study", "ridge", "--data", "t.csv", "--target", "z"], "no column 'z'"),
    "text cell": (["study", "ridge", "--data", "text.csv", "--target", "y"], "is no number"),
    "empty cell": (["study", "ridge", "--data", "empty.csv", "--target", "y"], "is empty"),
    "one row": (["study", "ridge", "--data", "row.csv", "--target", "y"], "1 row of numbers"),
    "no target": (["study", "ridge", "--data", "t.csv"], "`--target` is missing"),
    "no data": (["study", "ridge", "--target", "y"], "`--data` is missing"),
    "data for physics": (
        ["study", "linear-system", "--data", "t.csv", "--target", "y"],
        "takes no table",
    ),
    "bad steps": (["study", "ridge", "--steps", "0"], "`steps`"),
    "bad every": (["study", "root-finding", "--every", "-1"], "`every`"),
    "bad probes": (["study", "scalar-quadratic", "--steps", "2", "--probes", "0"], "`probes`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,y\n1,2\n3,4\n")
    (tmp_path / "text.csv").write_text("a,y\n1,2\nred,4\n")
    (tmp_path / "empty.csv").write_text("a,y\n1,2\n,4\n")
    (tmp_path / "row.csv").write_text("a,y\n1,2\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    words, expected = BAD[name]
    assert main([*words, "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("iterdiff.study.grid.trace", lambda *a, **k: pytest.fail("computed"))
    file = tmp_path / "file"
    file.write_text("here")
    for out in (file, file / "below"):
        assert main(["study", "scalar-quadratic", "--out", str(out)]) == 2
        assert "cannot be written to" in capsys.readouterr().err
    assert file.read_text() == "here" and list(tmp_path.iterdir()) == [file]


def test_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iterdiff.study.plots.save_figures", fails)
    words = ["study", "scalar-quadratic", "--steps", "30", "--out", str(tmp_path / "out")]
    assert main([*words, "--quiet"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["rich", "matplotlib", "h5py"])
def test_missing_extra_is_named(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["study", "scalar-quadratic", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert library in error and "pip install 'iterdiff[study]'" in error
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_demand():
    with pytest.raises(ValueError, match="no study"):
        main(["--traceback", "study", "nothing-like-it"])


def test_a_fresh_process_finds_the_algorithms():
    # Public names are loaded when they are asked for; a file names them as words.
    script = (
        "from iterdiff.study.choices import algorithm_classes\n"
        "assert {'GradientDescent', 'Newton', 'FISTA'} <= algorithm_classes().keys()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
