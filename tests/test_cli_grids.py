"""The command line on grids of studies: exit statuses, what is printed, how to go on."""

import json

import pytest

import iterdiff.study
from iterdiff.cli import main
from iterdiff.study import execute, store
from iterdiff.study.cell import CellOutcome, compute

TEXT = (
    'problem = "tests.study.own_runs:run"\nsteps = 4\n[grid]\nproblem.theta = [1.0, 2.0]\n'
    "problem.fault = ['none', 'raises']\n"
)


@pytest.fixture
def words(tmp_path):
    """The words that run a small grid into a folder."""
    (tmp_path / "g.toml").write_text(TEXT)
    return [
        "study",
        str(tmp_path / "g.toml"),
        "--out",
        str(tmp_path / "out" / "ünï & b"),
        "--quiet",
    ]


def test_a_grid_from_run_to_file(words, tmp_path, capsys):
    out = words[3]
    assert main([*words, "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["total"], found["computed"], len(found["failed"])) == (4, 2, 2)
    assert "failed: problem.theta = 1.0, problem.fault = raises: " in captured.err
    assert main(["show", out, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["cells"], shown["done"], shown["missing"]) == (4, 2, [])
    assert all("broken <b>on purpose</b>" in cause for cause in shown["failed"].values())
    damaged = next((tmp_path / "out" / "ünï & b" / store.CELLS).glob("*.nc"))
    damaged.write_bytes(b"CDF")
    assert main(["show", out]) == 0
    assert "1 of 4 cells" in (text := capsys.readouterr().out) and "damaged: problem.th" in text
    assert main(words) == 1
    assert "is damaged; it is computed again" in capsys.readouterr().err
    assert main(["consolidate", out, "--to", str(tmp_path / "all.nc")]) == 0
    data = iterdiff.study.open(tmp_path / "all.nc")
    assert (data.cell_status == "done").sum() == 2


def test_a_dry_run_computes_nothing(words, tmp_path, capsys):
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["axes"]["problem.theta"] == [1.0, 2.0] and found["cells"] == 4
    assert found["total_seconds"] > found["cell_seconds"] > 0
    assert found["program_bytes"] > 0 and found["file_bytes"] > 4 * 1000
    assert main([*words, "--dry-run"]) == 0
    assert "problem.theta (2): 1.0, 2.0" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_how_to_go_on(words, monkeypatch, capsys):
    content = []

    def interrupted(tasks):
        if content:
            raise KeyboardInterrupt
        content.extend(compute(tasks))
        return [CellOutcome(outcome.content, seconds=100.0) for outcome in content]

    monkeypatch.setattr(execute, "compute", interrupted)
    assert main([*words, "--fresh"]) == 130
    said = capsys.readouterr().err
    assert "kept" in said and "iterdiff study" in said and "--fresh" not in said
    assert main(["show", words[3], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 1


def test_a_full_disk_is_no_wrong_input(words, monkeypatch, capsys):
    def full(path, content):
        if path.suffix == ".nc":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    assert main(words) == 1
    assert "No space left" in capsys.readouterr().err


def test_a_folder_in_use_is_an_error_of_one_line(words, tmp_path, capsys):
    with store.held(tmp_path / "out" / "ünï & b"):
        assert main(words) == 2
    assert "in use by process" in capsys.readouterr().err


WRONG = {
    "jobs without a grid": (["study", "scalar-quadratic", "--jobs", "2"], "`--jobs`"),
    "fresh without a grid": (["study", "scalar-quadratic", "--fresh"], "`--fresh`"),
    "jobs": (["study", "scalar-quadratic", "--jobs", "0"], "--jobs"),
    "outputs": (["study", "ridge", "--set", "outputs=['residual_norm']"], "`outputs`"),
    "set": (["study", "scalar-quadratic", "--set", "problem.B=1.0"], "`b`"),
    "two places": (["study", "ridge", "--jobs", "1", "--scheduler", "tcp://a:1"], "not allowed"),
    "no folder": (["show", "nothing"], "`FOLDER`"),
    "no grid": (["consolidate", ".", "--to", "a.nc"], "`FOLDER`"),
    "suffix": (["consolidate", ".", "--to", "a.csv"], "`to`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, expected = WRONG[name]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert list(tmp_path.iterdir()) == []


def test_tables_as_json(tmp_path, capsys):
    assert main(["list", "--json"]) == 0
    assert "ridge" in json.loads(capsys.readouterr().out)
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["anyOf"]
    words = ["study", "scalar-quadratic", "--steps", "5", "--set", "problem.b=1.0", "--json"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    [case] = json.loads(capsys.readouterr().out)
    assert case["modes"].keys() == {"unrolled", "implicit"} and case["iterate"]["start"] == 19.5


def test_completion(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    assert "--scheduler" in capsys.readouterr().out
