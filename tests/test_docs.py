"""The documents are true: their code runs, and the reference lists every public name."""

import re
import runpy
from types import ModuleType

import matplotlib.pyplot as plt
import pytest

import iterdiff as itd
from tests.test_contributing import ROOT, blocks, run

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
# The blocks of a page are one program, as its reader types it.
PROGRAMS = [
    pytest.param("\n".join(code for _, code in blocks(page)), id=page)
    for page in PAGES
    if blocks(page)
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("code", PROGRAMS)
def test_code_of_the_pages_runs(code, tmp_path):
    run(code, tmp_path)


def test_the_readme_shows_ten_lines():
    code = blocks("README.md")[0][1].strip().splitlines()
    lines = [line for line in code if line and not line.startswith(("import", "jax.config"))]
    assert len(lines) <= 10
    for name in ("itd.solve(", "jax.grad(", "itd.trace("):
        assert name in "\n".join(code)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    runpy.run_path(str(path))
    assert plt.get_fignums(), "an example draws a picture"
    plt.close("all")


def test_the_reference_lists_every_public_name():
    public = {
        name
        for name, value in vars(itd).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert public == set(listed)


def test_relative_links_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            made_by_the_build = target.startswith("generated/")
            assert made_by_the_build or ((ROOT / page).parent / target).exists(), (page, target)
