"""What survives: kills at random moments, a full disk, cells that fail, lost processes."""

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import iterdiff.study
from benchmarks.harness.results import Column, Section, Table
from benchmarks.studies.program import cells_of, finished, kill, started, write_study
from iterdiff.study import store

CELLS = 300
"""Cells of the grid whose runs are killed: more than one run computes before it is killed."""

OBEDIENT = """import ctypes
    libc, head, held = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    libc.capget(head, held)
    held[0] &= ~6
    libc.capset(head, held)"""
"""Gives up the superuser's right to write and read whatever the modes of files say (Linux)."""

MEMORY_BYTES = 4 * 10**9
"""Limit of the private memory of a process that fills it; JAX itself takes less than half."""

LIMITED = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({MEMORY_BYTES},) * 2)"

JUMPING = """import datetime, itertools, time, types
    from iterdiff.study import store
    true, jumps = time.time, itertools.cycle([0.0, -3e8, 3e8])
    time.time = lambda: true() + next(jumps)
    now = lambda zone: datetime.datetime.fromtimestamp(time.time(), zone)
    times = types.SimpleNamespace(now=now)
    store.datetime = types.SimpleNamespace(UTC=datetime.UTC, datetime=times)"""
"""Makes the clock jump by ten years, back and forth."""

LATEST_KILL_SECONDS = 1.0
"""Latest moment of a kill, after the run's first cell."""


def run() -> Section:
    """Make every fault once; report what was there afterwards."""
    rows = []
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append([name, *fault(Path(folder))])
            print(rows[-1], flush=True)
    return Section("Faults", NOTE, [Table("What survives", COLUMNS, rows)])


COLUMNS = [
    Column("fault"),
    Column("exit status"),
    Column("cells that were finished and are there", "share"),
    Column("damaged files", "count"),
    Column("cells after one more run", "share"),
    Column("what the command said"),
]

NOTE = (
    "Each fault is made in a process of its own, by the command `iterdiff study`. A cell counts as "
    "finished once its file has its name."
)


def run_kills(kills: int) -> Section:
    """Kill runs at random moments; a finished cell must stay, and no file may be damaged."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        write_study(folder, CELLS)
        there, kept, expected, damaged, halves = set(), 0, 0, 0, 0
        for number in range(kills):
            if len(there) >= CELLS - 50:  # start over, so that every kill meets a writer
                store.clear(out)
                there = set()
            program = started(folder, "--out", "out", "--quiet")
            _wait_for_a_cell(out, len(there))
            time.sleep(draw.uniform(0, LATEST_KILL_SECONDS))
            kill(program)
            whole, broken = cells_of(out)
            kept, expected = kept + len(there & whole), expected + len(there)
            damaged += len(broken)
            halves += len(list((out / store.CELLS).glob(f"{store.UNFINISHED}*")))
            there = whole
            print(number + 1, kept, expected, damaged, halves, flush=True)
        status, said = finished(folder, "--out", "out", "--quiet")
        row = [
            kills,
            halves,
            [kept, expected],
            damaged,
            [len(cells_of(out)[0]), CELLS],
            str(status),
        ]
    columns = [
        Column("kills", "count"),
        Column("of them during a write", "count"),
        Column("cells that were finished and are there, all kills together", "share"),
        Column("damaged files", "count"),
        Column("cells after one more run", "share"),
        Column("its exit status"),
    ]
    return Section("Kills", NOTE, [Table("SIGKILL at random moments", columns, [row])])


def _wait_for_a_cell(out: Path, count: int) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        if len(list((out / store.CELLS).glob("[0-9a-f]*.nc"))) > count:
            return
        time.sleep(0.01)


def _outcome(folder: Path, cells: int, status: int, said: str, out: str = "out") -> list:
    """Return what is there after a fault, and after one more run without it."""
    before, damaged = cells_of(folder / out)
    finished(folder, "--out", out, "--quiet")
    after = cells_of(folder / out)[0]
    kept = [len(before & after), len(before)]
    return [str(status), kept, len(damaged), [len(after), cells], said]


def _full_disk(folder: Path) -> list:
    write_study(folder, 60)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    status, said = finished(folder, "--out", "out", "--quiet", before=limit)
    return _outcome(folder, 60, status, said)


def _not_writable(folder: Path) -> list:
    write_study(folder, 2)
    status, said = finished(folder, "--out", "/proc/none", "--quiet")
    return _outcome(folder, 2, status, said)


def _read_only(folder: Path) -> list:
    """Run where the mode of the folder of results forbids to write."""
    write_study(folder, 2)
    (folder / "out").mkdir()
    (folder / "out").chmod(0o555)
    status, said = finished(folder, "--out", "out", "--quiet", before=OBEDIENT)
    (folder / "out").chmod(0o755)
    return _outcome(folder, 2, status, said)


def _jumping_clock(folder: Path) -> list:
    """Run with a clock that jumps by ten years; then give the files times of past and future."""
    write_study(folder, 60)
    status, _ = finished(folder, "--out", "out", "--quiet", before=JUMPING)
    for number, path in enumerate((folder / "out" / store.CELLS).glob("*.nc")):
        os.utime(path, (number % 2 * 4e9, number % 2 * 4e9))
    before, damaged = cells_of(folder / "out")
    _, said = finished(folder, "--out", "out", "--quiet")
    kept = cells_of(folder / "out")[0]
    return [str(status), [len(before & kept), 60], len(damaged), [len(kept), 60], said]


def _failing(
    fault: str, good: int = 3, jobs: bool = False, limit: str = ""
) -> Callable[[Path], list]:
    """Return a fault of three cells beside three others; `good` cells are to be there."""

    def make(folder: Path) -> list:
        write_study(folder, 3, ("none", fault))
        words = ["--out", "out", "--quiet", *(["--jobs", "1"] if jobs else [])]
        status, _ = finished(folder, *words, before=limit)
        causes = set(store.failures(folder / "out").values())
        said = "; ".join(sorted(causes)) or _statuses(folder / "out")
        before, damaged = cells_of(folder / "out")
        return [str(status), [len(before), good], len(damaged), [len(before), 6], said]

    return make


def _statuses(out: Path) -> str:
    return "; ".join(sorted(set(iterdiff.study.open(out).status.values.ravel().tolist())))


def _lost_process(folder: Path) -> list:
    write_study(folder, 60)
    program = started(folder, "--out", "out", "--quiet", "--jobs", "2")
    _wait_for_a_cell(folder / "out", 0)
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(program.pid)], capture_output=True, text=True
    )
    os.kill(max(map(int, listed.stdout.split())), signal.SIGKILL)
    out, err = program.communicate()
    said = (err or out).strip().splitlines()[-1]
    return _outcome(folder, 60, program.returncode, said)


def _two_at_once(folder: Path) -> list:
    write_study(folder, 60)
    first = started(folder, "--out", "out", "--quiet")
    _wait_for_a_cell(folder / "out", 0)
    status, said = finished(folder, "--out", "out", "--quiet")
    first.communicate()
    holder = str(first.pid)
    said = said.replace(holder, "PID").split(" on ")[0] + " ..."
    return _outcome(folder, 60, status, f"{said} (first run: {first.returncode})")


def _interrupted(folder: Path) -> list:
    write_study(folder, 200)
    program = started(folder, "--out", "out", "--quiet")
    _wait_for_a_cell(folder / "out", 0)
    os.kill(program.pid, signal.SIGINT)
    _, err = program.communicate()
    return _outcome(folder, 200, program.returncode, err.strip().splitlines()[-1])


def _odd_names(folder: Path) -> list:
    write_study(folder, 3)
    out = "a b/../ünï <img src=x> & 'q'"
    status, said = finished(folder, "--out", out, "--quiet")
    iterdiff.study.open(folder / out)
    json.loads((folder / out / store.MANIFEST).read_text())
    return _outcome(folder, 3, status, said.split(" are in ")[0], out)


FAULTS = {
    "full disk (limit of 6000 bytes a file)": _full_disk,
    "folder that cannot be made": _not_writable,
    "read-only folder": _read_only,
    "clock that jumps by ten years": _jumping_clock,
    "cell that raises": _failing("raises"),
    "cell that diverges": _failing("diverges", good=6),
    "cell that needs 8 TB": _failing("needs 8 TB"),
    "cell that fills the memory (limit of 4 GB), NumPy": _failing(
        "fills the memory", limit=LIMITED
    ),
    "the same, JAX, `--jobs 1`": _failing("fills JAX's memory", jobs=True, limit=LIMITED),
    "cell whose process is killed, one process": _failing("ends its process", jobs=True),
    "worker process killed from outside, two processes": _lost_process,
    "second run on the same folder": _two_at_once,
    "Ctrl-C": _interrupted,
    "folder named `a b/../ünï <img src=x> & 'q'`": _odd_names,
}
