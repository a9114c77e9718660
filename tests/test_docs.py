"""The pages keep their promises: code runs, printed output and numbers are reproduced."""

import doctest
import importlib
import re
import runpy
import sys
from inspect import isfunction
from operator import attrgetter
from types import ModuleType

import jax
import matplotlib.pyplot as plt
import pytest

import iterdiff as itd
from tests.test_contributing import ROOT, blocks, run

DOCS = ROOT / "docs"
PAGES = ["README.md"] + sorted(
    str(path.relative_to(ROOT))
    for path in DOCS.rglob("*.md")
    if not path.is_relative_to(DOCS / "generated")
)
CODE = re.compile(
    r"^```(?:python|\{cell\})\n((?::alt:[^\n]*\n)?\n?)(.*?)^```$", re.MULTILINE | re.DOTALL
)


def program(page: str) -> str:
    """Return the blocks and cells of a page as one program, as its reader types it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(match.group(2) for match in CODE.finditer(text))


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def default_promotion():
    """Promote ranks and dtypes as JAX does for its users; the house itself is stricter."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


# The build executes the others as well: tutorials and the reference take longest.
RUN_HERE = [
    page for page in PAGES if not page.startswith("docs/tutorials/") and page != "docs/api.md"
]


@pytest.mark.parametrize("page", [page for page in RUN_HERE if program(page)])
def test_code_of_the_pages_runs(page, tmp_path, default_promotion):
    run(program(page), tmp_path)
    plt.close("all")


def test_the_build_runs_what_is_not_run_here():
    for page in {*PAGES} - {*RUN_HERE}:  # the build runs cells, and no other blocks
        assert "\n```python" not in (ROOT / page).read_text(encoding="utf-8"), page


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^[\w/-]+$", "".join(re.findall(r"```{toctree}(.*?)```", index, re.DOTALL)), re.M
    )
    pages = [page.removeprefix("docs/").removesuffix(".md") for page in PAGES[1:]]
    assert sorted(listed) == sorted({*pages, "generated/examples/index"} - {"index"})


def test_examples_are_numbered_and_short():
    assert [path.name[:3] for path in EXAMPLES] == [f"{n:02}_" for n in range(1, len(EXAMPLES) + 1)]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES}
    assert {name: count for name, count in lines.items() if count > 150} == {}


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
def test_examples_run(path, monkeypatch, default_promotion):
    if "import diffrax" in path.read_text(encoding="utf-8"):
        pytest.importorskip("diffrax", reason="this example needs the extra `docs`")
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setattr(sys, "argv", [str(path), "1000"])  # of a million orbits
    runpy.run_path(str(path))
    assert plt.get_fignums(), "every example draws a picture"
    plt.close("all")


PASSED_ON = re.compile(r" as (\w+)$", re.MULTILINE)
"""A name that a module of the package passes on."""


def passed_on(module: str) -> set[str]:
    """Return the names that a module takes from deeper ones, for its users."""
    return set(PASSED_ON.findall((ROOT / "src" / "iterdiff" / module).read_text(encoding="utf-8")))


def public_names() -> set[str]:
    """Return the public names that are no modules."""
    return {
        name
        for name in itd.__all__
        if not name.startswith("_") and not isinstance(getattr(itd, name), ModuleType)
    }


def test_the_reference_lists_every_public_name():
    public = public_names()
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    of_extend = passed_on("extend.py")
    assert public - of_extend <= set(listed)
    assert of_extend - set(listed) <= {"Scalar", "Tolerance", "tree"}  # aliases, and a module
    assert set(listed) <= public | of_extend
    for module, elsewhere in (("prox", {"weakly_active"}), ("bilevel", set())):
        pattern = rf"^\.\. auto(?:class|function):: iterdiff\.{module}\.(\w+)$"
        names = re.findall(pattern, text, re.MULTILINE)
        assert len(names) == len(set(names))
        file = f"{module}.py" if module == "prox" else f"{module}/__init__.py"
        assert {*names} | elsewhere == passed_on(file)


def test_the_reference_shows_every_public_name_in_use():
    docstrings = "".join(getattr(itd, name).__doc__ or "" for name in public_names())
    examples = "".join(re.findall(r"^ *(?:>>>|\.\.\.) .*\n", docstrings, re.MULTILINE))
    shown = re.findall(r"\bitd\.(\w+)", program("docs/api.md") + examples)
    missing = sorted(public_names() - set(shown))
    assert missing == [], "use it in a cell of docs/api.md, or in an example of a docstring"


@pytest.mark.parametrize("module", ["extend.py", "bilevel/__init__.py", "bilevel/sklearn.py"])
def test_the_reference_shows_every_name_of_a_module_in_use(module):
    names = passed_on(module)
    if module == "bilevel/sklearn.py":
        pytest.importorskip("sklearn", reason="this module needs the extra `sklearn`")
        names = {name for name in vars(itd.bilevel.sklearn) if name.endswith("HO")}
    assert len(names) >= 4
    # The lines that import a name do not use it.
    cells = re.sub(r"^from .* import .*$", "", program("docs/api.md"), flags=re.MULTILINE)
    missing = names - set(re.findall(r"\w+", cells))
    assert missing == set(), "use it in a cell of docs/api.md"


@pytest.mark.parametrize("module", [itd.adapters, itd.prox, itd.theory], ids=lambda m: m.__name__)
def test_the_pages_show_every_function_in_use(module):
    every = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    shown = {
        name
        for block in re.findall(r"```.*?```", every, re.DOTALL)
        for name in re.findall(r"\w+", block)
    }
    functions = {
        name: value for name, value in vars(module).items() if isfunction(value) and name[0] != "_"
    }
    without = [n for n, f in functions.items() if n not in shown and ">>>" not in f.__doc__]
    assert functions and without == []


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 12
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


def test_relative_links_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            made_by_the_build = target.removeprefix("../").startswith("generated/")
            assert made_by_the_build or ((ROOT / page).parent / target).exists(), (page, target)


@pytest.mark.parametrize(("cell", "fails"), [("1 / 0", True), ("print(6 * 7)", False)])
def test_the_build_fails_where_a_cell_fails(cell, fails, tmp_path):
    reason = "the pages need the extra `docs`"
    sphinx = pytest.importorskip("sphinx.cmd.build", reason=reason)
    pytest.importorskip("myst_parser", reason=reason)
    settings = "extensions = ['myst_parser', 'measured']\n"
    path = f"import sys\nsys.path.insert(0, {str(DOCS / '_ext')!r})\n"
    (tmp_path / "conf.py").write_text(path + settings, encoding="utf-8")
    (tmp_path / "index.md").write_text(f"# Page\n\n```{{cell}}\n{cell}\n```\n", encoding="utf-8")
    status = sphinx.main(["-Q", "-b", "html", str(tmp_path), str(tmp_path / "out")])
    assert (status != 0) is fails
    assert fails or ">42" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


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
        " is, in\n",
        nodes.math("", "d"),
    ]
    page += nodes.paragraph(
        "", "", *[p if isinstance(p, nodes.Node) else nodes.Text(p) for p in parts]
    )
    mathml.keep_together(None, page, "page")
    assert page.astext() == "where (a), and not for b: but c is, in\nd"
    kept = [inline.astext() for inline in page.findall(nodes.inline)]
    assert kept == ["(a),", "b:"]
