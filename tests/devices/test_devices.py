"""Solves on several devices and in several processes, in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.results import load
from tests.compiling import FLAGS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300


def start(devices: int, *arguments: str) -> subprocess.Popen:
    """Start ``python -m arguments`` with a number of forced devices."""
    flags = [*FLAGS, f"--xla_force_host_platform_device_count={devices}"]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "NPROC": str(devices)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_eight_devices():
    done = start(8, "tests.devices.eight")
    errors = done.communicate(timeout=PATIENCE_S)[1]
    assert done.returncode == 0, errors[-3000:]


def test_two_processes_over_the_loopback_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [start(2, "tests.devices.two", address, str(number)) for number in (0, 1)]
    errors = [one.communicate(timeout=PATIENCE_S)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], errors[0][-2000:] + errors[1][-2000:]


def test_stored_programs_gather_nothing_and_share_the_memory():
    results = load(ROOT / "benchmarks" / "results" / "devices.json")
    (table,) = results.tables
    for kind in ("all-gather", "all-to-all"):
        assert not any(table.column(kind))
    assert max(table.column("relative error")) < 1e-8
    assert results.measurements and all(one.met for one in results.measurements)
