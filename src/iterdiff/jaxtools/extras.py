"""Optional libraries, imported where they are used."""

import importlib
from types import ModuleType


def import_extra(name: str, extra: str) -> ModuleType:
    """Import the module `name`, which an extra of this package installs.

    Parameters
    ----------
    name : str
        The dotted name of the module.
    extra : str
        The extra that installs it, such as ``study``.

    Raises
    ------
    ImportError
        If the library is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = name.split(".")[0]
        if error.name is None or error.name.split(".")[0] != library:
            raise  # the library is there, but one of its own dependencies is not
        raise ImportError(
            f"`{library}` is not installed; install it with pip install 'iterdiff[{extra}]'."
        ) from error
