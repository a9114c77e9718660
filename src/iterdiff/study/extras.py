"""Libraries that only studies need, loaded when they are needed."""

import importlib
from typing import Any


def load(name: str) -> Any:
    """Return the module `name`, which the extra ``study`` installs.

    Raises
    ------
    ImportError
        If it is not installed, naming the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = name.split(".")[0]
        if error.name is None or error.name.split(".")[0] != library:
            raise
        raise ImportError(
            f"a study needs {library}, which is not installed: pip install 'iterdiff[study]'."
        ) from error
