"""The layers of the package: who may import whom, and how large a part may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import iterdiff

PACKAGE = Path(iterdiff.__file__).parent

# Top row first: a module imports only from rows above its own, a folder's modules from each
# other as well (without a cycle). The package's `__init__` is the table of contents, over all.
ROWS = (
    ("tree", "counting", "walking"),
    ("failure", "dense", "krylov", "linear_map", "slopes"),
    ("problems", "solution", "theory", "findings"),
    ("linear", "checks", "prox"),
    ("algorithms", "stopping"),
    ("hoisting",),
    ("loop",),
    ("keeping", "linearised"),
    ("compiling",),
    ("sweep",),
    ("modes",),
    ("correction",),
    ("error_derivative",),
    ("error", "agreement"),
    ("derivative_report", "derivative_stop"),
    ("checked",),
    ("host",),
    ("adapters",),
    ("solving",),
    ("reference", "probing", "diagnosis", "checkup", "iterate_error"),
    ("tracing",),
    ("diagnosing",),
    ("bilevel",),
    ("study",),
    ("cli",),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
IMPORTS_NOTHING_OF_OURS = {"theory"}
# These look names up as a user does.
IMPORTS_THE_WHOLE = {"study", "cli"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_ARGUMENTS = 7

NOT_LOADED_BY_IMPORT = (
    "xarray",
    "matplotlib",
    "scipy.optimize",
    "pandas",
    "rich",
    "sklearn",
    "optax",
    "optimistix",
    "jaxopt",
)

FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]
each_file = pytest.mark.parametrize("path", FILES, ids=IDS)


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package, such as ``iterdiff.modes.base``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Return whether a dotted name is a module of the package."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def is_type_checking(node: ast.AST) -> bool:
    """Return whether a node is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, module: str, package: bool) -> Iterator[str]:
    """Yield the dotted names that a file imports, at its top or inside functions."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            for other in child.orelse:
                yield from imports(other, module, package)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parts = module.split(".")
                parts = parts[: len(parts) - child.level + package]
                base = ".".join([*parts, base] if base else parts)
            for alias in child.names:
                full = f"{base}.{alias.name}"
                known = is_module(full) or alias.name == "__version__"
                yield full if known or base.split(".")[0] != "iterdiff" else base
        else:
            yield from imports(child, module, package)


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a file of the package imports."""
    return set(imports(parse(path), module_name(path), path.name == "__init__.py"))


def row_name(module: str) -> str:
    """Return the part of the package that a module is in, such as ``modes``."""
    return module.split(".")[1] if "." in module else ""


def upward_imports(module: str, imported: set[str]) -> list[str]:
    """Return what a module imports of the package without being allowed to."""
    here = row_name(module)
    wrong = []
    for name in sorted(imported):
        if name.split(".")[0] != "iterdiff":
            continue
        there = row_name(name)
        if name == "iterdiff.__version__" or (name == "iterdiff" and here in IMPORTS_THE_WHOLE):
            continue
        beside = there == here
        above = there in ROW and ROW[there] < ROW[here] and here not in IMPORTS_NOTHING_OF_OURS
        if not (beside or above):
            wrong.append(name)
    return wrong


def test_every_module_has_a_row():
    names = {row_name(module_name(path)) for path in FILES} - {"", "__main__"}
    assert names <= ROW.keys(), f"say in ROWS where these belong: {names - ROW.keys()}"


@each_file
def test_imports_come_from_rows_above(path):
    module = module_name(path)
    if module in {"iterdiff", "iterdiff.__main__"}:
        return
    assert not upward_imports(module, imports_of(path))


def test_the_check_of_imports_can_fail():
    assert upward_imports("iterdiff.loop", {"iterdiff.solving"}) == ["iterdiff.solving"]
    assert upward_imports("iterdiff.theory", {"iterdiff.tree"}) == ["iterdiff.tree"]
    assert upward_imports("iterdiff.modes.implicit", {"iterdiff"}) == ["iterdiff"]
    assert not upward_imports("iterdiff.modes.implicit", {"iterdiff.modes.base", "jax"})
    hidden = ast.parse("def f():\n    from .. import solving\n")
    assert set(imports(hidden, "iterdiff.modes.base", False)) == {"iterdiff.solving"}
    typed = ast.parse("if TYPE_CHECKING:\n    from iterdiff import solving\n")
    assert not set(imports(typed, "iterdiff.modes.base", False))


def test_no_cycles_within_a_folder():
    graph = {module_name(path): imports_of(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for name in graph[module] & graph.keys():
            visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@each_file
def test_private_parts_of_other_libraries_stay_untouched(path):
    imported = imports_of(path)
    assert not {name for name in imported if name.startswith("jax._src")}
    attributes = {ast.unparse(n) for n in ast.walk(parse(path)) if isinstance(n, ast.Attribute)}
    assert not {name for name in attributes if name.startswith("jax._src")}
    if module_name(path) != "iterdiff.loop":
        touched = {
            name for name in imported | attributes if name.startswith(("equinox.int", "eqx.int"))
        }
        assert not touched, "equinox.internal is for loop.py alone"


@each_file
def test_sizes(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES, "split the file"
    functions = [
        node
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    for node in functions:
        name = getattr(node, "name", "lambda")
        assert body_lines(node) <= MAX_FUNCTION_LINES, f"{name} is too long"
        assert arguments(node) <= MAX_ARGUMENTS, f"{name} takes too many arguments"


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    """Return how many lines a function's code has, without its docstring."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    if isinstance(node, ast.Lambda) or ast.get_docstring(node) is None:
        return total
    docstring = node.body[0]
    return total - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    """Return how many arguments a caller has to understand.

    Neither `self` and `cls` count, nor, where a problem is given, those that go with it everywhere.
    """
    signature = node.args
    names = [arg.arg for arg in (*signature.posonlyargs, *signature.args, *signature.kwonlyargs)]
    without = {"self", "cls"}
    if "problem" in names:
        without |= {"problem", "algorithm", "x0", "theta"}
    return len([name for name in names if name not in without])


def test_import_is_light():
    script = (
        "import sys, iterdiff\n"
        "assert 'jax' not in sys.modules\n"
        "for name in iterdiff.__all__:\n"
        "    getattr(iterdiff, name)\n"
        f"heavy = [name for name in {NOT_LOADED_BY_IMPORT!r} if name in sys.modules]\n"
        "sys.exit(f'importing all of iterdiff loads {heavy}' if heavy else 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_no_module_takes_the_place_of_a_public_name():
    # Importing it would: a submodule becomes an attribute of its package.
    modules = {row_name(module_name(path)) for path in FILES}
    public = {name: getattr(iterdiff, name) for name in iterdiff.__all__}
    taken = [name for name, value in public.items() if not isinstance(value, ModuleType)]
    assert not modules.intersection(taken)
    assert set(dir(iterdiff)) >= public.keys()
    with pytest.raises(AttributeError, match="no attribute 'gradient_descent'"):
        _ = iterdiff.gradient_descent
