"""Grids on executors of other libraries: a Dask cluster that loses a worker, and submitit."""

import os
import signal
import subprocess
import sys
import time

import pytest

import iterdiff.study
from iterdiff.cli import main
from iterdiff.study import execute, store
from iterdiff.study.execute import Pool
from iterdiff.study.grid import load_grid
from iterdiff.study.grid_run import Watcher, run_grid

SLOW = 'problem = "tests.study.own_runs:run"\nsteps = 2\n[grid]\nproblem.theta = [1, 2, 3, 4]\n'


def started(*words, ready):
    """Start a program; return it and the line of its log that contains a word."""
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    program = subprocess.Popen([sys.executable, "-m", *words], **options)
    for line in program.stderr:
        if ready in line:
            return program, line
    pytest.fail(f"{words} ended early")


@pytest.fixture
def cluster(monkeypatch):
    """The address of a scheduler on the loopback address, and two workers."""
    pytest.importorskip("distributed")
    address = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler, line = started("distributed.cli.dask_scheduler", *address, ready="Scheduler at")
    place = line.split()[-1]
    worker = ["--nthreads", "1", "--no-nanny", "--no-dashboard", place]
    workers = []
    try:
        for _ in range(2):
            words = ("distributed.cli.dask_worker", *worker)
            workers.append(started(*words, ready="Registered to")[0])
        yield place, workers
    finally:
        for program in (*workers, scheduler):
            program.kill()
            program.stderr.close()
            program.wait()


def test_a_cluster_loses_a_worker_and_no_cell(cluster, tmp_path):
    address, workers = cluster
    (tmp_path / "g.toml").write_text(SLOW)
    pool, killed = execute.cluster(address), []

    def after_the_first_cell(done, total):
        if done == 1 and not killed:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    watcher = Watcher(progress=after_the_first_cell)
    result = run_grid(
        load_grid(str(tmp_path / "g.toml")), tmp_path / "out", pool=pool, watcher=watcher
    )
    assert killed and (result.computed, result.failed) == (4, {})
    data = iterdiff.study.open(tmp_path / "out")
    assert data.iterate_error.isel(algorithm=0, iteration=0).values.tolist() == [2, 4, 6, 8]
    words = ["study", str(tmp_path / "g.toml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--scheduler", address]) == 0  # nothing is left to do


def test_a_cluster_that_does_not_answer():
    pytest.importorskip("distributed")
    start = time.monotonic()
    with pytest.raises(ValueError, match="`scheduler`"):
        execute.cluster("tcp://127.0.0.1:9", timeout="1s")
    assert time.monotonic() - start < 20


def test_submitit(tmp_path):
    submitit = pytest.importorskip("submitit")
    (tmp_path / "g.toml").write_text(SLOW)
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    grid = load_grid(str(tmp_path / "g.toml"), {}, ["grid.problem.theta=[1]"])
    result = run_grid(grid, tmp_path / "out", pool=Pool(lambda: executor, window=1))
    assert (result.computed, result.failed) == (1, {})
    assert store.present(tmp_path / "out", store.read_manifest(tmp_path / "out")[1])[1] == []
