"""The pages keep their promises: code runs, printed output and numbers are reproduced."""

import doctest
import importlib
import re
import runpy
from operator import attrgetter
from types import ModuleType

import matplotlib.pyplot as plt
import pytest

import iterdiff as itd
from tests.test_contributing import ROOT, blocks, run

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
# The blocks of a page form one program, as its reader types it.
PROGRAMS = [
    pytest.param("\n".join(code for _, code in blocks(page)), id=page)
    for page in PAGES
    if blocks(page)
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("code", PROGRAMS)
def test_code_of_the_pages_runs(code, tmp_path):
    run(code, tmp_path)


def test_the_gallery_orders_every_example():
    configuration = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f'"{path.name}"' not in configuration] == []


def test_the_readme_prints_what_it_shows():
    ((_, code),) = blocks("README.md", "pycon")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    example = doctest.DocTestParser().get_doctest(code, {}, "README.md", "README.md", 0)
    assert example.examples
    report = []
    runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def tables(page: str, heading: str) -> list[list[list[str]]]:
    """Return the cells of the tables of a section, without their headers."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = text[text.index(f"## {heading}\n") + 3 :].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert found, (page, heading)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()[2:]]
        for rows in found
    ]


def stored() -> str:
    """Return the reports of the benchmarks."""
    reports = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    return "".join(report.read_text(encoding="utf-8") for report in reports)


def test_the_readme_recommends_calls_that_exist():
    names = {
        name
        for _, use in tables("README.md", "Which call for which problem")[0]
        for name in re.findall(r"`([A-Za-z_.]+)`", use)
    }
    assert {"solve", "Implicit", "Unrolled", "trace", "diagnose"} <= names
    for name in names - {"jax.grad"}:
        attrgetter(name)(itd)


def test_the_readme_compares_by_stored_numbers():
    measured = re.compile(r"\d+ of \d+|\d\.\de[+-]\d\d|[\d.,]*\d (?:ms|s|MB)\b")
    rows = tables("README.md", "Beside jaxopt and optimistix")[0]
    numbers = [number for row in rows for cell in row for number in measured.findall(cell)]
    assert len(numbers) >= 20
    assert not [number for number in numbers if number not in stored()]


def test_the_picture_and_the_table_of_the_readme_agree_with_a_run():
    script = runpy.run_path(str(ROOT / "docs" / "images" / "curse_of_unrolling.py"))
    error = script["measure"](steps=320).jacobian_error
    unrolled, implicit = error.sel(mode="unrolled").values, error.sel(mode="implicit").values
    peak, end = script["burn_in"](unrolled)
    start = f"{unrolled[0]:.2f}"
    height = f"{unrolled[peak] / unrolled[0]:.2f} x the start, at {peak}"
    first, second, *_ = tables("README.md", "What `make study` shows")[0]
    assert first[:5] == ["1/L", "unrolled", start, height, str(end)]
    assert second[:3] == ["1/L", "implicit", f"{implicit[0]:.1f}"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    runpy.run_path(str(path))
    assert plt.get_fignums(), "every example draws a picture"
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
    text_of_extend = (ROOT / "src" / "iterdiff" / "extend.py").read_text(encoding="utf-8")
    of_extend = set(re.findall(r" as (\w+)$", text_of_extend, re.MULTILINE))
    assert public - of_extend <= set(listed)
    assert of_extend - set(listed) <= {"Scalar", "Tolerance", "tree"}  # aliases, and a module
    assert set(listed) <= public | of_extend


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 12
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


def test_relative_links_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            made_by_the_build = target.startswith("generated/")
            assert made_by_the_build or ((ROOT / page).parent / target).exists(), (page, target)


@pytest.fixture
def mathml(monkeypatch):
    pytest.importorskip("latex2mathml", reason="formulas need the extra `docs`")
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
