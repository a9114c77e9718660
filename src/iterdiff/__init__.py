"""Differentiate through any iterative algorithm, and know how wrong the derivative is.

In reading order: problems, algorithms, modes, stopping rules, solving. The public names and their
modules are listed in `__init__.pyi`, which type checkers and editors read as well; each is loaded
when it is first asked for, so that a program waits for what it uses alone (SPEC 1 of Scientific
Python, https://scientific-python.org/specs/spec-0001/).
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _table_of_contents() -> dict[str, str]:
    """Return the module that each public name comes from."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOME = _table_of_contents()
__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'iterdiff' has no attribute {name!r}")
    home = importlib.import_module(_HOME[name])
    is_module = home.__name__ == __name__
    found = importlib.import_module(f"{__name__}.{name}") if is_module else getattr(home, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
