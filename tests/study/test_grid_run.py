"""Runs of grids: they go on where they ended, and every failure has a name and a cause."""

import json
import os
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray

import iterdiff.study
from iterdiff.cli import main
from iterdiff.study import execute, store
from iterdiff.study.cell import CellOutcome
from iterdiff.study.collect import consolidate
from iterdiff.study.execute import Pool, processes
from iterdiff.study.grid import load_grid
from iterdiff.study.grid_run import Watcher, run_grid

OWN = 'problem = "tests.study.own_runs:run"\n'
NAME = "<img src=x> ünï & spaces"
GRID = f"{OWN}steps = 4\n[grid]\nproblem.theta = [1.0, 2.0]\nproblem.fault = ['none', 'raises']\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with an odd name, of a grid of which two cells fail; and what was said."""
    folder = tmp_path_factory.mktemp("grid") / ".." / NAME
    file = folder.parent / "g.toml"
    file.write_text(GRID)
    said = []
    watcher = Watcher(failed=lambda *words: said.append(words))
    result = run_grid(load_grid(str(file)), folder, watcher=watcher)
    assert (result.total, result.computed, len(result.failed)) == (4, 2, 2)
    return file, folder, said


def test_failed_cells_are_named_with_their_cause_and_the_others_are_there(finished):
    _, folder, said = finished
    label, cause = said[0]
    assert label == "problem.theta = 1.0, problem.fault = raises"
    assert "RuntimeError: broken <b>on purpose</b>" in cause and "own_runs.py, line" in cause
    data = iterdiff.study.open(folder)
    status = data.cell_status.to_pandas()
    assert status["none"].tolist() == ["done"] * 2 and status["raises"].tolist() == ["failed"] * 2
    good = data.sel({"problem.fault": "none"}).isel(algorithm=0)
    t = np.arange(5)
    for theta in (1.0, 2.0):
        case = good.sel({"problem.theta": theta})
        np.testing.assert_allclose(case.iterate_error, 2 * theta * 0.5**t, rtol=1e-12)
        error = case.jacobian_error.sel(mode="unrolled")
        np.testing.assert_allclose(error, 2 * 0.5**t, rtol=1e-12)
    lost = data.sel({"problem.fault": "raises"})
    assert np.isnan(lost.jacobian_error).all() and (lost.steps == -1).all()


def test_provenance(finished):
    _, folder, _ = finished
    attributes = iterdiff.study.open(folder).attrs
    assert attributes["dtype"] == "float64" and attributes["device"] == jax.devices()[0].device_kind
    assert attributes["jax_version"] == jax.__version__
    assert json.loads(attributes["settings"])["problem"]["function"] == "tests.study.own_runs:run"
    assert list(json.loads(attributes["files"])) == ["tests.study.own_runs:run"]
    assert {"git_commit", "seeds", "numpy_version", "created"} <= attributes.keys()
    cell = next((folder / store.CELLS).glob("*.nc"))
    one = iterdiff.study.open(cell)  # any reader of NetCDF opens a cell
    assert one.sizes["iteration"] == 5 and one.attrs["cell"] == cell.stem


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_one_file_holds_what_the_folder_holds(suffix, finished, tmp_path):
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    _, folder, _ = finished
    for _ in range(2):  # the second one replaces the first
        consolidate(folder, tmp_path / f"all{suffix}")
    back, data = iterdiff.study.open(tmp_path / f"all{suffix}"), iterdiff.study.open(folder)
    xarray.testing.assert_equal(back.astype(object).fillna(0), data.astype(object).fillna(0))
    assert back.attrs == data.attrs
    assert [path.name for path in tmp_path.iterdir()] == [f"all{suffix}"]
    with pytest.raises(ValueError, match="`to`"):
        consolidate(folder, tmp_path / "all.csv")


class Refused(BrokenExecutor):
    """A pool that broke refuses work as well."""


class Canned(Executor):
    """Returns files of an earlier run, so that nothing is compiled; counts what it computes."""

    def __init__(self, folder, fail=()):
        self.content = next((folder / store.CELLS).glob("*.nc")).read_bytes()
        self.fail, self.asked = list(fail), []

    def submit(self, _, tasks):
        """Return the canned file for each task, or the next error."""
        future = Future()
        self.asked += [task.name for task in tasks]
        error = self.fail.pop(0) if self.fail else None
        if isinstance(error, KeyboardInterrupt | Refused):
            raise error
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result([CellOutcome(self.content, seconds=100.0) for _ in tasks])
        return future

    @property
    def pool(self):
        """The pool of this executor alone."""
        return Pool(lambda: self, window=1, replaceable=True)


SEEDS = f"{OWN}steps = 4\n[grid]\nproblem.theta = [1, 2, 3, 4, 5]\n"


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "seeds.toml").write_text(SEEDS)
    return load_grid(str(tmp_path / "seeds.toml"))


def test_a_second_run_computes_what_is_missing_damaged_or_failed(finished, grid, tmp_path):
    out, notes = tmp_path / "out", []
    first = Canned(finished[1], [None, RuntimeError("once")])
    result = run_grid(grid, out, pool=first.pool)
    assert (result.computed, list(result.failed)) == (4, ["problem.theta = 2"])
    assert "once" in result.failed["problem.theta = 2"]
    _, names = store.read_manifest(out)
    store.cell_file(out, names[0]).unlink()
    damaged = store.cell_file(out, names[4])
    damaged.write_bytes(damaged.read_bytes()[:-3])
    second = Canned(finished[1])
    result = run_grid(grid, out, pool=second.pool, watcher=Watcher(note=notes.append))
    assert second.asked == [names[0], names[1], names[4]]
    assert (result.found, result.computed, result.failed) == (2, 3, {})
    assert result.corrupted == ("problem.theta = 5",) and "problem.theta = 5" in notes[0]
    third = Canned(finished[1])
    assert run_grid(grid, out, pool=third.pool).found == 5 and third.asked == []
    assert run_grid(grid, out, pool=third.pool, fresh=True).found == 0
    assert third.asked == names


def test_a_name_depends_on_settings_code_and_version(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = Path(__file__).with_name("own_runs.py").read_text()
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "g.toml").write_text('problem = "mine.py:run"\nsteps = 4\n[grid]\nevery = [1, 2]\n')

    def names():
        store_names = Canned(finished[1])
        run_grid(load_grid("g.toml"), tmp_path / "out", pool=store_names.pool, fresh=True)
        return store_names.asked

    before = names()
    assert names() == before and len(set(before)) == 2
    (tmp_path / "mine.py").write_text(code + "\n# another comment\n")
    after_edit = names()
    monkeypatch.setattr(iterdiff, "__version__", "9.9.9")
    assert len({*before, *after_edit, *names()}) == 6


def test_a_clock_that_jumps_changes_nothing(finished, grid, tmp_path, monkeypatch):
    times = iter(["2030-01-01", "1970-01-01", "2099-12-31"] * 9)
    monkeypatch.setattr(store, "now", lambda: next(times))
    canned = Canned(finished[1], [None, None, RuntimeError("once"), None, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, tmp_path, pool=canned.pool)
    for number, path in enumerate((tmp_path / store.CELLS).glob("*.nc")):
        os.utime(path, (number * 2e9, number * 2e9))
    result = run_grid(grid, tmp_path, pool=Canned(finished[1]).pool)
    assert (result.found, result.computed, store.failures(tmp_path)) == (3, 2, {})


def test_an_interrupt_keeps_finished_cells(finished, grid, tmp_path):
    canned = Canned(finished[1], [None, None, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, tmp_path / "out", pool=canned.pool)
    assert [e["event"] for e in store.events(tmp_path / "out")][-1] == "interrupted"
    assert run_grid(grid, tmp_path / "out", pool=Canned(finished[1]).pool).found == 2


def test_the_cell_that_ends_its_process_fails_and_the_others_are_done(finished, grid, tmp_path):
    broken = BrokenExecutor("gone")
    canned = Canned(finished[1], [None, broken, broken])
    result = run_grid(grid, tmp_path / "out", pool=canned.pool)
    assert result.failed == {"problem.theta = 2": execute.LOST} and result.computed == 4


def test_a_broken_executor_that_refuses_work(finished, grid, tmp_path):
    canned = Canned(finished[1], [None, Refused("gone")])
    result = run_grid(grid, tmp_path / "out", pool=canned.pool)
    assert (result.computed, result.failed) == (5, {})


def test_an_executor_that_cannot_be_replaced_ends_the_run(finished, grid, tmp_path):
    canned = Canned(finished[1], [None, BrokenExecutor("gone")])
    with pytest.raises(BrokenExecutor, match="Run again"):
        run_grid(grid, tmp_path / "out", pool=Pool(lambda: canned, window=1))
    assert run_grid(grid, tmp_path / "out", pool=Canned(finished[1]).pool).found == 1


def test_a_full_disk_keeps_finished_cells(finished, grid, tmp_path, monkeypatch):
    whole, left = store.write_whole, [4]  # the two files of the manifest, and two cells

    def write(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        whole(path, content)

    monkeypatch.setattr(store, "write_whole", write)
    with pytest.raises(OSError, match="space"):
        run_grid(grid, tmp_path / "out", pool=Canned(finished[1]).pool)
    monkeypatch.undo()
    assert run_grid(grid, tmp_path / "out", pool=Canned(finished[1]).pool).found == 2


def test_too_many_cells_are_refused_before_anything_is_written(tmp_path):
    values = list(range(1, 1100))
    lists = [f"grid.problem.{key}={values}" for key in ("theta", "fault")]
    grid = load_grid("tests/study/own_grid.toml", {}, lists)
    with pytest.raises(ValueError, match="1,207,801 cells"):
        run_grid(grid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_processes_of_which_one_ends(tmp_path):
    (tmp_path / "g.toml").write_text(
        f"{OWN}steps = 2\n[grid]\nproblem.fault = "
        "['none', 'ends the process', 'raises', 'fills the memory']\n"
    )
    out = tmp_path / "out"
    assert main(["study", str(tmp_path / "g.toml"), "--out", str(out), "--jobs", "1"]) == 1
    data = iterdiff.study.open(out)
    assert data.cell_status.values.tolist() == ["done", "failed", "failed", "failed"]
    causes = store.failures(out).values()
    assert any(execute.LOST in cause for cause in causes) and len(causes) == 3
    assert any("MemoryError" in cause for cause in causes)
    with pytest.raises(ValueError, match="`jobs`"):
        processes(0)


def test_cells_of_different_lengths_are_a_tree(finished, tmp_path):
    (tmp_path / "g.toml").write_text(
        f'{OWN}outputs = ["iterate_error"]\n[grid]\nsteps = [3, 4]\nproblem.theta = [1.0, 2.0]\n'
    )
    run_grid(load_grid(str(tmp_path / "g.toml")), tmp_path / "out")
    tree = iterdiff.study.open(tmp_path / "out")
    assert isinstance(tree, xarray.DataTree)
    nodes = [node for name, node in tree.children.items() if name != "grid"]
    assert {int(n.steps[0, 0]): n.sizes["iteration"] for n in nodes} == {3: 4, 4: 5}
    kept = {"iterate_error", "steps", "every", "status", "reference_norm"}
    assert all(node.data_vars.keys() == kept for node in nodes)
    group = tree["grid"].group.sel({"grid.steps": 4, "problem.theta": 2.0}).item()
    node = tree[group].to_dataset()
    at = node.isel(cell=int(np.argmax(node["problem.theta"].values == 2.0)), algorithm=0)
    np.testing.assert_allclose(at.iterate_error, 4 * 0.5 ** np.arange(5), rtol=1e-12)
    consolidate(tmp_path / "out", tmp_path / "all.nc")
    assert iterdiff.study.open(tmp_path / "all.nc").children.keys() == tree.children.keys()


def test_a_stopping_rule_is_recorded_and_a_run_that_never_converges_has_a_status(tmp_path):
    (tmp_path / "g.toml").write_text(
        f"{OWN}steps = 12\n[modes.unrolled]\ntype = 'Unrolled'\n[stop]\ntype = 'ResidualBelow'\n"
        "atol = 1e-3\n[grid]\nstop.max_steps = [5, 100]\n"
    )
    run_grid(load_grid(str(tmp_path / "g.toml")), tmp_path / "out")
    data = iterdiff.study.open(tmp_path / "out").isel(algorithm=0, mode=0)
    # The residual is |x_t / 2 - 1| = 2**-t, below 1e-3 from t = 10 on.
    assert data.stop_steps.values.tolist() == [5, 10]
    assert data.stop_status.values.tolist() == ["MAX_STEPS_REACHED", "CONVERGED"]
    np.testing.assert_allclose(data.stop_jacobian_error, [2 * 0.5**5, 2 * 0.5**10], rtol=1e-12)


def test_a_variable_that_some_cells_lack_is_missing_there(tmp_path):
    lists = ['grid."problem.b"=[0.0, 1.0]', 'modes={implicit={type="Implicit"}}']
    run_grid(load_grid("scalar-quadratic", {"steps": 3}, lists), tmp_path)
    data = iterdiff.study.open(tmp_path).isel(algorithm=0)
    assert data.sizes == {"problem.b": 2, "mode": 1, "iteration": 4}
    # Theory splits the error into two factors for b = 0 only.
    assert np.isfinite(data.closed_form).all()
    assert np.isfinite(data.linear_factor).all("iteration").values.tolist() == [True, False]
