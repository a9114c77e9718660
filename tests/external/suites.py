"""Run another library's own test files, unmodified, with one of its parts replaced by ours."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_suite(checkout: Path, plugin: str, files: list[str], *options: str) -> str:
    """Run test files of a checkout under a plugin of this folder, and return the report.

    Raises
    ------
    AssertionError
        If a test fails, or none runs.
    """
    source = HERE.parent.parent / "src"
    paths = [str(source), str(HERE), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin]
    command += ["-c", os.devnull, "--rootdir", str(checkout), *options, *files]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    run = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "was called 0 times" not in run.stdout, run.stdout[-2000:]
    return run.stdout
