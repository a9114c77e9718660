"""Import a library that only an extra of this package installs."""

import importlib
from types import ModuleType


def import_extra(name: str, extra: str) -> ModuleType:
    """Import the module `name`, which ``pip install 'iterdiff[extra]'`` installs.

    Parameters
    ----------
    name : str
        A module, for example ``"xarray"`` or ``"rich.table"``.
    extra : str
        The extra of iterdiff that installs its library.

    Returns
    -------
    ModuleType
        The module.

    Raises
    ------
    ImportError
        If the library is not installed. The message names the library and the extra. An import
        that fails inside an installed library raises that library's own error.
    """
    library = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ImportError(
            f"this needs {library}, which is not installed: pip install 'iterdiff[{extra}]'.",
            name=library,
        ) from error
