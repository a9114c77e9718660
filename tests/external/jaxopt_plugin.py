"""A pytest plugin that puts our `custom_root` in place of jaxopt's.

jaxopt's solvers look it up at every call, so all of its tests then run through our code:
``PYTHONPATH=tests/external python -m pytest -p jaxopt_plugin PATH/tests/implicit_diff_test.py``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxopt.implicit_diff
from jaxopt._src import implicit_diff as private

import iterdiff as itd

calls = {"custom_root": 0}


def counted(*args: Any, **kwargs: Any) -> Callable:
    """Call ours, and count the call."""
    calls["custom_root"] += 1
    return itd.adapters.custom_root(*args, **kwargs)


@contextmanager
def ours_in_place() -> Iterator[dict[str, int]]:
    """Replace jaxopt's decorator, and count the calls of ours."""
    before = jaxopt.implicit_diff.custom_root, private.custom_root
    calls["custom_root"] = 0
    jaxopt.implicit_diff.custom_root = private.custom_root = counted
    try:
        yield calls
    finally:
        jaxopt.implicit_diff.custom_root, private.custom_root = before


def pytest_configure(config: Any) -> None:
    """Put ours in place for the whole session."""
    config.iterdiff_in_place = ours_in_place()
    config.iterdiff_in_place.__enter__()


def pytest_unconfigure(config: Any) -> None:
    """Put theirs back."""
    config.iterdiff_in_place.__exit__(None, None, None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how often ours was called."""
    terminalreporter.write_line(f"iterdiff's custom_root was called {calls['custom_root']} times")
