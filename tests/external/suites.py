"""Run another library's own test files, unmodified, with one of its parts replaced by ours.

``python -m tests.external.suites jaxopt CHECKOUT`` runs all files of a suite, one process a file,
and stores what happened in ``results.json``; ``python -m tests.solver_table`` then writes it into
``docs/solvers.md``. Nothing else changes the stored numbers.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
CALLS = re.compile(r"was called (\d+) times")


class Suite(NamedTuple):
    """Which files of a library's ``tests`` are run, under which plugin of this folder."""

    plugin: str
    options: tuple[str, ...]
    libraries: tuple[str, ...]
    files: tuple[str, ...]


class Run(NamedTuple):
    """The result of one test file; an error during collection counts as a failure."""

    passed: int
    failed: int
    skipped: int
    calls: int
    report: str


SUITES = {
    "optimistix": Suite(
        plugin="optimistix_plugin",
        options=("-k", "jvp"),
        libraries=("optimistix", "diffrax"),
        files=("test_fixed_point.py", "test_root_find.py", "test_minimise.py"),
    ),
    "jaxopt": Suite(
        plugin="jaxopt_plugin",
        options=(),
        libraries=("jaxopt", "scikit-learn"),
        files=(
            "implicit_diff_test.py",
            "fixed_point_iteration_test.py",
            "gradient_descent_test.py",
            "proximal_gradient_test.py",
            "block_cd_test.py",
            "bisection_test.py",
            "eq_qp_test.py",
            "scipy_wrappers_test.py",
            "projected_gradient_test.py",
            "broyden_test.py",
            "anderson_test.py",
            "mirror_descent_test.py",
            "base_test.py",
            "cd_qp_test.py",
            "gauss_newton_test.py",
            "levenberg_marquardt_test.py",
            "nonlinear_cg_test.py",
            "lbfgs_test.py",
            "lbfgsb_test.py",
            "bfgs_test.py",
            "projection_test.py",
            "iterative_refinement_test.py",
            "optax_wrapper_test.py",
            "polyak_sgd_test.py",
            "anderson_wrapper_test.py",
            "osqp_test.py",
        ),
    ),
}


def run_file(checkout: Path, suite: str, file: str, *options: str) -> Run:
    """Run one test file of a checkout with our part in place.

    Raises
    ------
    RuntimeError
        If pytest did not finish, so that there is nothing to count.
    """
    plugin = SUITES[suite].plugin
    paths = [str(ROOT / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin]
        command += ["-c", os.devnull, "--rootdir", str(checkout), f"--junitxml={counts}"]
        command += [*SUITES[suite].options, *options, f"tests/{file}"]
        run = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        report = run.stdout[-5000:] + run.stderr[-2000:]
        calls = CALLS.search(run.stdout)
        if not counts.exists() or calls is None:
            raise RuntimeError(f"pytest did not finish {file}:\n{report}")
        (found,) = ElementTree.parse(counts).getroot().iter("testsuite")
    skipped = int(found.attrib["skipped"])
    failed = int(found.attrib["failures"]) + int(found.attrib["errors"])
    passed = int(found.attrib["tests"]) - failed - skipped
    return Run(passed, failed, skipped, int(calls.group(1)), report)


def check_file(checkout: Path, suite: str, file: str, *options: str) -> None:
    """Assert that a test file passes, and that it reaches our part."""
    run = run_file(checkout, suite, file, *options)
    assert run.failed == 0 and run.passed > 0 and run.calls > 0, run.report


def _commit(folder: Path) -> str | None:
    """Return the abbreviated commit of a checkout; None if it is not one."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None


def measure(suite: str, checkout: Path) -> dict[str, Any]:
    """Run all files of a suite, and return what ``results.json`` stores of it."""
    files = []
    for file in SUITES[suite].files:
        run = run_file(checkout, suite, file)
        files.append({"file": file, **run._asdict()})
        del files[-1]["report"]
        print(files[-1], flush=True)
    libraries = (*SUITES[suite].libraries, "jax", "equinox", "lineax")
    return {
        "commit": _commit(checkout),
        "selection": " ".join(SUITES[suite].options),
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in libraries},
        },
        "iterdiff_commit": _commit(ROOT),
        "files": files,
    }


def read() -> dict[str, Any]:
    """Return the stored results of all suites."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def write(results: dict[str, Any]) -> None:
    """Store results, one test file a line."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"\{\s+(\"file\": [^{}]*?)\s+\}", lambda m: f"{{{m[1]}}}", text)
    text = re.sub(r"(?<=,)\n\s+(?=\"(passed|failed|skipped|calls)\")", " ", text)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("checkout", type=Path)
    asked = parser.parse_args()
    write({**read(), asked.suite: measure(asked.suite, asked.checkout.resolve())})
