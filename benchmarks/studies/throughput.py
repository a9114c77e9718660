"""What a cell costs: in one process, in several, on a cluster; and a grid of 10,000 cells."""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import iterdiff.study
from benchmarks.harness.results import Column, Section, Table
from benchmarks.studies.program import cells_of, started, write_study
from iterdiff.study import store


def run(cells: int) -> Section:
    """Measure; `cells` is the size of the large grid."""
    return Section("Throughput", NOTE, [_large(cells), _places(max(100, cells // 10))])


NOTE = (
    "A cell traces 20 steps of Picard's iteration with one unknown, in two modes. The first cell, "
    "which compiles, is not counted."
)


def _large(cells: int) -> Table:
    """Run a large grid in one process; watch its memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, cells)
        program = started(folder, "--out", "out", "--quiet")
        seconds, memory = _watched(program, folder / "out", cells)
        size = sum(path.stat().st_size for path in (folder / "out").rglob("*"))
        start = time.perf_counter()
        data = iterdiff.study.open(folder / "out")
        opened = time.perf_counter() - start
        assert (data.cell_status == "done").all()
        start = time.perf_counter()
        assert started(folder, "--out", "out", "--quiet").wait() == 0
        resumed = time.perf_counter() - start
        rows = [
            ["time for a cell", seconds, None],
            ["memory after a tenth of the cells", None, memory[0]],
            ["memory at the end", None, memory[1]],
            ["files", None, size / 1e6],
            ["`iterdiff.study.open`", opened, None],
            ["a second run, which finds all cells", resumed, None],
        ]
    columns = [Column("what"), Column("time", "s"), Column("size", "MB")]
    return Table(f"{cells:,} cells in one process", columns, rows)


def _watched(program: subprocess.Popen, out: Path, cells: int) -> tuple[float, list[float]]:
    """Return the time for a cell after the first ones, and memory in MB at a tenth and the end."""
    first, start, memory, last = 0, 0.0, [], 0.0
    while program.poll() is None:
        time.sleep(0.2)
        count = len(list((out / store.CELLS).glob("*.nc"))) if out.exists() else 0
        last = _memory(program.pid) or last
        if not first and count:
            first, start = count, time.perf_counter()
        if not memory and count >= cells // 10:
            memory.append(last)
        if count < cells:
            end = time.perf_counter(), count
    assert program.returncode == 0
    moment, count = end
    return (moment - start) / max(1, count - first), [*memory, last]


def _memory(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1e3 if found else 0.0


def _places(cells: int) -> Table:
    """Run the same grid in this process, in several processes, and on a cluster."""
    rows = []
    ways: list[tuple[str, list[str], int]] = [("one process", [], 0)]
    ways += [(f"`--jobs {jobs}`", ["--jobs", str(jobs)], 0) for jobs in (1, 2)]
    ways += [(f"Dask, {workers} workers", [], workers) for workers in (1, 2)]
    for name, words, workers in ways:
        cluster = _Cluster(workers) if workers else None
        try:
            words = [*words, *(["--scheduler", cluster.address] if cluster else [])]
            rows.append([name, *_rate(cells, words)])
        finally:
            if cluster:
                cluster.stop()
        print(rows[-1], flush=True)
    columns = [Column("where"), Column("whole run", "s"), Column("cells a second", "count")]
    note = f"{cells:,} cells. The rate leaves out the time until the first cell is there."
    return Table("Where cells run", columns, rows, note)


def _rate(cells: int, words: list[str]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, cells)
        begin = time.perf_counter()
        program = started(folder, "--out", "out", "--quiet", *words)
        each, _ = _watched(program, folder / "out", cells)
        assert len(cells_of(folder / "out")[0]) == cells
        return time.perf_counter() - begin, 1 / each


class _Cluster:
    """A Dask scheduler and workers on the loopback address."""

    def __init__(self, workers: int):
        place = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.programs = [self._start("dask_scheduler", *place)]
        self.address = self._line(self.programs[0], "Scheduler at").split()[-1]
        words = ["--nthreads", "1", "--no-nanny", "--no-dashboard", self.address]
        for _ in range(workers):
            self.programs.append(self._start("dask_worker", *words))
            self._line(self.programs[-1], "Registered to")

    @staticmethod
    def _start(name: str, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.{name}", *words]
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )

    @staticmethod
    def _line(program: subprocess.Popen, word: str) -> str:
        assert program.stderr is not None
        return next(line for line in program.stderr if word in line)

    def stop(self) -> None:
        for program in reversed(self.programs):
            program.kill()
            program.communicate()
