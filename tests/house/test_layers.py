"""The rooms of the package: who may import whom, and how large a part may grow."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import iterdiff

PACKAGE = Path(iterdiff.__file__).parent

# Bottom floor first. A room imports from the floors below it, and its files from each other.
# `theory` imports nothing of ours; the two rooms of one floor do not see each other.
FLOORS = (
    ("theory",),
    ("jaxtools",),
    ("linalg",),
    ("problems",),
    ("algorithms",),
    ("loop",),
    ("accuracy",),
    ("modes",),
    ("solving",),
    ("adapters", "diagnostics"),
    ("extend",),
    ("bilevel",),
    ("study",),
    ("explore",),
    ("cli",),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Rooms that look public names up as a user does, by `import iterdiff`.
IMPORTS_PUBLIC_NAMES = {"study", "explore", "cli"}
# Modules that only give a room's file a public address.
ALIASES = {"prox"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_ARGUMENTS = 7
# A signature that is a promise to users, all of it keywords with defaults, may be longer.
MAX_ARGUMENTS_OF = {
    "iterdiff.accuracy.estimate.derivative_error": 8,
    "iterdiff.bilevel.drivers.minimize": 15,
    "iterdiff.bilevel.stochastic.minimize_stochastic": 14,
}

# Parts of JAX and Equinox that a release may change: `jaxtools` alone touches them.
UNSTABLE = ("equinox.internal", "eqx.internal", "jax.extend", "jax.core", "jax.interpreters")

NOT_LOADED_BY_IMPORT = (
    "xarray",
    "matplotlib",
    "scipy.optimize",
    "pandas",
    "pydantic",
    "rich",
    "streamlit",
    "plotly",
    "distributed",
    "sklearn",
    "optax",
    "optimistix",
    "jaxopt",
)

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package, such as ``iterdiff.modes.base``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room_of(module: str) -> str:
    """Return the room that a module is in, such as ``modes``; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imports(node: ast.AST, module: str) -> Iterator[str]:
    """Yield the dotted names that a file imports, at its top or inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"{module}: write imports of ours with their full name"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                ours = str(child.module).split(".")[0] == "iterdiff"
                yield full if not ours or full in MODULES else str(child.module)
        else:
            yield from imports(child, module)


IMPORTS = {module: set(imports(TREES[path], module)) for module, path in MODULES.items()}


def upward_imports(module: str, imported: set[str]) -> list[str]:
    """Return what a module imports of the package from its own floor or above."""
    here = room_of(module)
    wrong = []
    for name in sorted(imported):
        if name.split(".")[0] != "iterdiff" or here in ALIASES:
            continue
        there = room_of(name)
        if not there:
            allowed = here in IMPORTS_PUBLIC_NAMES
        else:
            allowed = there == here or (here != "theory" and FLOOR.get(there, 99) < FLOOR[here])
        if not allowed:
            wrong.append(name)
    return wrong


ROOMS = {room_of(module) for module in MODULES} - {"", "__main__"} - ALIASES


def test_rooms_import_from_the_floors_below():
    assert ROOMS <= FLOOR.keys(), f"FLOORS must say where these belong: {ROOMS - FLOOR.keys()}"
    wrong = {m: upward_imports(m, names) for m, names in IMPORTS.items() if room_of(m) in FLOOR}
    assert not {module: names for module, names in wrong.items() if names}


def test_the_check_of_imports_can_fail():
    assert upward_imports("iterdiff.loop.run", {"iterdiff.solving.solve"})
    assert upward_imports("iterdiff.theory.rates", {"iterdiff.jaxtools.tree"})
    assert upward_imports("iterdiff.modes.implicit", {"iterdiff"})
    assert upward_imports("iterdiff.adapters.common", {"iterdiff.diagnostics.trace"})
    assert not upward_imports("iterdiff.modes.implicit", {"iterdiff.modes.base", "jax"})
    hidden = ast.parse("def f():\n    from iterdiff.solving import solve\n")
    assert set(imports(hidden, "iterdiff.modes.base")) == {"iterdiff.solving.solve"}
    typed = ast.parse("if TYPE_CHECKING:\n    from iterdiff.solving import solve\n")
    assert not set(imports(typed, "iterdiff.modes.base"))


def test_contributing_draws_the_rooms_and_arrows_as_they_are():
    text = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = {}
    for room, below in re.findall(r"^\| (\w+) \| ([\w, –]+) \|$", text, re.MULTILINE):
        drawn[room] = set() if below == "–" else set(below.split(", "))
    drawn.pop("room")
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, names in IMPORTS.items():
        if room_of(module) in found:
            ours = {room_of(name) for name in names if name.split(".")[0] == "iterdiff"}
            found[room_of(module)] |= ours - {room_of(module), ""}
    assert drawn == found
    floors = re.search(r"^```\n(cli.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert floors, "the drawing of the floors is missing"
    heights = [FLOOR[line.split()[0]] for line in floors.group(1).splitlines()]
    assert heights == sorted(heights, reverse=True)


def test_no_cycles_within_a_room():
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for name in IMPORTS[module] & IMPORTS.keys():
            visit(name, (*trail, module))
        done.add(module)

    for module in IMPORTS:
        visit(module, ())


def test_unstable_parts_of_jax_are_touched_by_jaxtools_alone():
    for module, path in MODULES.items():
        nodes = ast.walk(TREES[path])
        used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        used |= IMPORTS[module]
        assert not {name for name in used if name.startswith("jax._src")}, module
        if room_of(module) != "jaxtools":
            assert not {name for name in used if name.startswith(UNSTABLE)}, module


def test_sizes():
    functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    for module, path in MODULES.items():
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= MAX_FILE_LINES, f"{module} is too long"
        for node in ast.walk(TREES[path]):
            if isinstance(node, functions):
                name = f"{module}.{getattr(node, 'name', 'lambda')}"
                assert body_lines(node) <= MAX_FUNCTION_LINES, f"{name} is too long"
                most = MAX_ARGUMENTS_OF.get(name, MAX_ARGUMENTS)
                assert arguments(node) <= most, f"{name} takes too many arguments"


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    """Return how many lines a function's code has, without its docstring."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    if isinstance(node, ast.Lambda) or ast.get_docstring(node) is None:
        return total
    docstring = node.body[0]
    return total - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    """Return how many arguments a caller has to understand.

    Neither `self` and `cls` count, nor, next to a problem, the arguments that always go with it.
    """
    signature = node.args
    names = [arg.arg for arg in (*signature.posonlyargs, *signature.args, *signature.kwonlyargs)]
    without = {"self", "cls"}
    if "problem" in names:
        without |= {"problem", "algorithm", "x0", "theta", "args"}
    return len([name for name in names if name not in without])


def test_every_room_says_what_it_is_for():
    for room in {room_of(module) for module in MODULES} - {""}:
        path = MODULES[f"iterdiff.{room}"]
        sentence = (ast.get_docstring(TREES[path]) or "").splitlines()
        assert sentence and sentence[0].endswith("."), f"{room} needs a sentence in its docstring"


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
    rooms = {room_of(module) for module in MODULES}
    public = {name: getattr(iterdiff, name) for name in iterdiff.__all__}
    taken = [name for name, value in public.items() if not isinstance(value, ModuleType)]
    assert not rooms.intersection(taken)
    assert set(dir(iterdiff)) >= public.keys()
    with pytest.raises(AttributeError, match="gradient_descent"):
        _ = iterdiff.gradient_descent
