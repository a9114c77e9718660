"""The documents are true: their code runs, and the reference lists every public name."""

import importlib
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
        for name in itd.__all__
        if not name.startswith("_") and not isinstance(getattr(itd, name), ModuleType)
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


@pytest.fixture
def mathml(monkeypatch):
    pytest.importorskip("latex2mathml", reason="what writes formulas is in the extra [docs]")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return importlib.import_module("mathml")


def test_primes_are_exponents_and_bounds_are_below_their_operator(mathml):
    text = mathml.to_mathml(r"\arg\min_x \max_{k} |f_k'(x)| + \ln y", "block")
    assert re.search(
        r'<msubsup>.*<mpadded [^>]*><mo class="prime"[^>]*>\u2032</mo></mpadded>', text
    )
    assert re.search(r"<munder><mo [^>]*>arg min</mo><mi>x</mi></munder>", text)
    assert re.search(r"<munder><mo [^>]*>max</mo>", text)
    assert "munder" not in mathml.to_mathml(r"\max_k f_k", "inline")
    with pytest.raises(ValueError, match="no MathML"):
        mathml.to_mathml(r"\nosuchthing x", "inline")


def test_no_line_break_between_a_formula_and_a_comma(mathml):
    from docutils import nodes, utils

    page = utils.new_document("page")
    strong = nodes.strong("", "", nodes.Text("not for "), nodes.math("", "b"))
    parts = [
        "where (",
        nodes.math("", "a"),
        "), and ",
        strong,
        ": but ",
        nodes.math("", "c"),
        " is",
    ]
    page += nodes.paragraph(
        "", "", *[p if isinstance(p, nodes.Node) else nodes.Text(p) for p in parts]
    )
    mathml.keep_together(None, page, "page")
    assert page.astext() == "where (a), and not for b: but c is"
    kept = [inline.astext() for inline in page.findall(nodes.inline)]
    assert kept == ["(a),", "b:"]
