"""The command line: words, files of settings, tables, modules."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iterdiff.cli import main
from tests.campaign.call import Call

SCALAR = 'study = "scalar-quadratic"\nsteps = 20\n'
RIDGE = 'study = "ridge"\nsteps = 8\nproblem.data = "t.csv"\nproblem.target = "y"\n'
TABLE = "a,b,y\n1,2,3\n2,1,5\n4,4,1\n0,3,2\n"

WORDS = [
    "",
    "--help",
    "--version",
    "list",
    "nonsense",
    "study nonsense",
    "study s.toml --steps 0",
    "study s.toml --steps -3",
    "study s.toml --steps 1e3",
    "study s.toml --steps",
    "study s.toml --every 0",
    "study s.toml --every 7",
    "study s.toml --every 99",
    "study s.toml --probes 0",
    "study s.toml --probes 1",
    "study s.toml --out s.toml",
    "study s.toml --out folder",
    "study s.toml --data t.csv",
    "study s.toml --data t.csv --target y",
    "study ridge --data t.csv --target nothing --steps 5",
    "study ridge --data nothing.csv --target y --steps 5",
    "study ridge --data t.csv --target y --steps 6",
    "study ridge --target y",
    "study .",
    "study folder",
    "explore t.csv",
    "explore s.toml",
    "explore nothing.nc",
    "explore folder",
    "explore --port 0",
    "report",
    "report t.csv",
    "report nothing.nc",
    "report folder",
    "study m:run --steps 2 --out study_of_mine",
    "study m:nothing",
    "diagnose",
    "diagnose m",
    "diagnose m:",
    "diagnose :run",
    "diagnose m:run",
    "diagnose m:make",
    "diagnose m:nothing",
    "diagnose nothing:run",
    "diagnose m.py:run",
    "diagnose folder/n.py:run",
    "diagnose nothing.py:run",
    "diagnose m:wrong",
    "diagnose m:number",
    "diagnose m:raises",
    "diagnose bad:run",
    "diagnose broken:run",
    "diagnose m:run --rtol 0",
    "diagnose m:run --rtol x",
    "diagnose m:run --rtol nan",
    "diagnose m:run --budget 0",
    "diagnose m:run --budget 5",
    "diagnose m:norootatall",
]
SETTINGS = [
    "",
    "study",
    "study = 3",
    'study = "nonsense"',
    SCALAR + "steps = 3",
    SCALAR + "nonsense = 3",
    SCALAR + "probes = 0",
    SCALAR + "every = 3",
    SCALAR + "every = 1000",
    SCALAR + 'title = ""',
    SCALAR + 'title = "[/b] $5_{ <script> @DATA"',
    SCALAR + 'title = "\\u0000"',
    SCALAR + "problem.b = nan",
    SCALAR + "problem.b = inf",
    SCALAR + 'problem.b = "x"',
    SCALAR + "problem.b = []",
    SCALAR + "problem = 3",
    SCALAR + "problem.nonsense = 1",
    SCALAR + '[algorithms.a]\ntype = "GradientDescent"\nstep_size = 0.1',
    SCALAR + '[algorithms.a]\ntype = "GradientDescent"\nstep_size = "2/(L+l)"',
    SCALAR + '[algorithms.a]\ntype = "GradientDescent"\nstep_size = "2/(L+ℓ)"',
    SCALAR + '[algorithms.a]\ntype = "GradientDescent"\nstep_size = "3/L"',
    SCALAR + '[algorithms.a]\ntype = "GradientDescent"\nstep_size = -1',
    SCALAR + '[algorithms.a]\ntype = "GradientDescent"\nstep_size = "big"',
    SCALAR + '[algorithms.a]\ntype = "gradientdescent"',
    SCALAR + "[algorithms.a]",
    SCALAR + "algorithms = {}",
    SCALAR + "algorithms = 3",
    SCALAR + '[algorithms."a/b:*?"]\ntype = "GradientDescent"\nstep_size = 0.1',
    SCALAR + '[modes.a]\ntype = "Implicit"\nrefine = -1',
    SCALAR + '[modes.a]\ntype = "Unrolled"\nlast = 0',
    SCALAR + '[modes.a]\ntype = "Unrolled"\nlast = 1000',
    SCALAR + '[modes.a]\ntype = "Checked"\nmode = {type = "Implicit"}',
    SCALAR + '[modes.a]\ntype = "Nonsense"',
    SCALAR + "modes = {}",
    "study = 'scalar-quadratic'\nsteps = 99999999999999999999",
    "study = 'scalar-quadratic'\nsteps = 1.5",
    "\ufeff" + SCALAR,
    SCALAR.replace("\n", "\r\n"),
    RIDGE,
    RIDGE + "problem.penalty = -1",
]
TABLES = [
    TABLE,
    TABLE.replace(",", ";"),
    TABLE.replace("\n", "\r\n"),
    "\ufeff" + TABLE,
    "",
    "\n\n\n",
    "a,b,y",
    "a,b,y\n1,2,3",
    "a,b,y\n1,2,3\n1,2,3",
    "a,b,y\n1,2,3\n1,2",
    "a,b,y\n1,2,3\n1,2,3,4",
    "a,b,y\n1,,3\n2,1,5",
    "a,b,y\n1,x,3\n2,1,5",
    "a,b,y\n1,nan,3\n2,1,5",
    "a,b,y\n1,inf,3\n2,1,5",
    "a,b,y\n1e308,2,3\n-1e308,1,5\n0,4,4",
    "a,b,y\n1e200,2,3\n3e200,1,5\n2e200,4,4",
    "a,b,y\n1e-300,2,3\n3e-300,1,5\n2e-300,4,4",
    "a,b,y\n1,2,1e308\n2,1,-1e308\n4,4,0",
    "a,b,y\n1,2,1e-320\n2,1,3e-320\n4,4,0",
    "a,b,y\n1e999,2,3\n2,1,5\n4,4,4",
    "a,b,y\n1,2,red\n2,1,blue\n4,4,red",
    "a,a,y\n1,2,3\n2,1,5",
    "y\n1\n2",
    'a,b,y\n"1,5",2,3\n2,1,5',
    "a,b,y\n1_000,2,3\n2,1,5\n4,4,4",
    "a,b,y\n0x10,2,3\n2,1,5\n4,4,4",
    "a,b,y\n=1+1,2,3\n2,1,5\n4,4,4",
    "a,b,y\n١,2,3\n2,1,5\n4,4,4",
    "a,b,y\n1\x00,2,3\n2,1,5\n4,4,4",
]
MODULE = """
import jax.numpy as jnp
import iterdiff as itd
problem = itd.Minimization(lambda x, t: jnp.sum((x - t) ** 2))
run = (problem, itd.GradientDescent(0.3), jnp.zeros(2), jnp.ones(2))
wrong = (problem, itd.GradientDescent(0.3), jnp.zeros(2, int), jnp.ones(2))
number = 3
norootatall = (itd.RootFinding(lambda x, t: x**2 + t), itd.Newton(), jnp.ones(1), jnp.ones(1))
def make(): return run
def raises(): raise RuntimeError("on purpose")
"""


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    (folder / "s.toml").write_text(SCALAR)
    (folder / "t.csv").write_text(TABLE)
    (folder / "m.py").write_text(MODULE)
    (folder / "bad.py").write_text("import numpy\nnumpy.nothing_like_it\n")
    (folder / "broken.py").write_text("def (:\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "n.py").write_text(MODULE)
    return folder


def _ends_in_one_line(words: list[str], folder: Path) -> float:
    """Run a command; raise unless it succeeds, or ends with status 2 and one line.

    Raises
    ------
    AssertionError
        If it ends otherwise, leaves a file behind, or prints a traceback.
    """
    before = os.getcwd()
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    except SystemExit as end:
        status = end.code
    finally:
        os.chdir(before)
    said = err.getvalue()
    assert status in (0, 2), (status, said)
    assert status == 0 or (said.count("\n") == 1 and said.startswith("iterdiff: error:")), said
    assert "Traceback" not in said and not list(folder.rglob(".unfinished*")), said
    left = folder / "out"
    assert status == 0 or not left.exists(), "a failed command left files"
    return 0.0


def _call(name: str, words: list[str], **files: str) -> Call:
    def run() -> float:
        folder = _folder()
        for file, text in files.items():
            (folder / file.replace("_", ".")).write_bytes(text.encode())
        return _ends_in_one_line([*words], folder)

    return Call(name, run, right=lambda: 0.0)


def calls() -> Iterator[Call]:
    """Yield commands with unusual words, files of settings and tables."""
    for line in WORDS:
        yield _call(f"iterdiff {line}", [*line.split(), *_quiet(line)])
    for text in SETTINGS:
        yield _call(f"settings {text!r}", ["study", "s.toml", "--quiet"], s_toml=text)
    for text in TABLES:
        for study in ("ridge", "logistic"):
            words = ["study", study, "--data", "t.csv", "--target", "y", "--steps", "4", "--quiet"]
            yield _call(f"{study} of table {text!r}", words, t_csv=text)


def _quiet(line: str) -> list[str]:
    return ["--quiet"] if line.startswith("study ") else []
