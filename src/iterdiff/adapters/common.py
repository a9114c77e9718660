"""What the adapters share."""

import importlib
from types import ModuleType

from jaxtyping import PyTree

from iterdiff.algorithms.base import State

BRACKETS = (
    "its iterates are points of brackets, which do not depend differentiably on `theta`; the "
    "derivative of the steps is zero, whatever that of the solution is."
)

SIMPLICES = (
    "it only compares values of the function; its iterates are combinations of the points that it "
    "started from, the same for all `theta` nearby. The derivative of the steps is zero, whatever "
    "that of the solution is."
)


class ForeignState(State):
    """The iterate, and what the foreign solver remembers."""

    x: PyTree
    memory: PyTree


def require(library: str) -> ModuleType:
    """Import an optional library.

    Raises
    ------
    ImportError
        If it is not installed, with what to do.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"this adapter needs {library}, which is not installed: "
            "pip install 'iterdiff[adapters]'"
        ) from error
