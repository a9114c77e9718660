"""Runs of the command ``iterdiff study`` on a small problem, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from iterdiff.study import store

MODULE = """
import os, signal
import jax.numpy as jnp
import numpy as np
import iterdiff as itd

PROBLEM = itd.FixedPoint(lambda x, theta: 0.5 * x + theta)
AWAY = itd.FixedPoint(lambda x, theta: 3.0 * x + theta)

def run(theta=1.0, fault="none"):
    if fault == "raises":
        raise RuntimeError("on purpose")
    if fault == "needs 8 TB":
        np.ones(10**12)
    if fault == "fills the memory":
        kept = [np.ones(2**24) for _ in range(10**4)]
    if fault == "fills JAX's memory":
        kept = [jnp.ones(2**24).block_until_ready() for _ in range(10**4)]
    if fault == "ends its process":
        os.kill(os.getpid(), signal.SIGKILL)
    problem = AWAY if fault == "diverges" else PROBLEM
    return problem, itd.Picard(), jnp.asarray(0.0), jnp.asarray(float(theta))
"""

STEPS = 20


def write_study(folder: Path, cells: int, faults: tuple[str, ...] = ("none",)) -> Path:
    """Write the module and a grid of ``cells * len(faults)`` cells; return the file of the grid."""
    (folder / "mine.py").write_text(MODULE)
    file = folder / "grid.toml"
    thetas, kinds = json.dumps(list(range(1, cells + 1))), json.dumps(list(faults))
    file.write_text(
        f'problem = "mine:run"\nsteps = {STEPS}\n[grid]\nproblem.theta = {thetas}\n'
        f"problem.fault = {kinds}\n"
    )
    return file


def started(folder: Path, *words: str, before: str = "") -> subprocess.Popen:
    """Start the command in a folder; `before` is code that its process runs first."""
    # A process pool imports the main module again, which therefore is a file.
    script = folder / "command.py"
    # A shell that runs this in the background makes its children ignore interrupts.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    lines = [before or "pass", heed, "import sys", "from iterdiff.cli import main"]
    lines = ["if __name__ == '__main__':", *lines, "sys.exit(main(sys.argv[1:]))"]
    script.write_text("\n    ".join(lines) + "\n")
    # Later runs find the programs that earlier ones compiled: a kill is to meet a writer soon.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment = {**os.environ, **cache, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(script), "study", "grid.toml", *words],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(folder: Path, *words: str, before: str = "") -> tuple[int, str]:
    """Run the command; return its exit status and what it said last."""
    program = started(folder, *words, before=before)
    out, err = program.communicate()
    said = (err or out).strip().splitlines()
    return program.returncode, said[-1] if said else ""


def kill(program: subprocess.Popen) -> None:
    """End a program and all that it started, without a chance to clean up."""
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()


def cells_of(folder: Path) -> tuple[set[str], list[str]]:
    """Return the names of whole and of damaged files."""
    names = [path.stem for path in (folder / store.CELLS).glob("[0-9a-f]*.nc")]
    return store.present(folder, names)
