"""A user's own run: the object that ``MODULE:NAME`` or ``FILE.py:NAME`` names.

Nothing but the named module is imported, and of it only the named function is called.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

import iterdiff as itd
from iterdiff.study.suggestions import nearest, suggestion

KEYS = ("problem", "algorithm", "x0", "theta", "args", "reference", "spectrum", "title")
"""The keys of a run that is given as a mapping; the first five are those of `solve`."""

REQUIRED = ("problem", "x0", "theta")

FORMS = (
    "It must return (problem, algorithm, x0, theta), (problem, x0, theta), or a mapping with the "
    "keys `problem`, `x0` and `theta`"
)


class RunRaised(ValueError):
    """The user's function raised an error."""


class UnknownParameter(ValueError):
    """The user's function has no parameter of this name.

    Attributes
    ----------
    key : str
        The name.
    """

    def __init__(self, message: str, key: str):
        super().__init__(message)
        self.key = key


class Run(NamedTuple):
    """What `solve` takes, and what studies can use besides.

    Attributes
    ----------
    problem, algorithm, x0, theta, args
        As in `iterdiff.solve`; `algorithm` is None if the caller chooses it.
    reference : callable or pytree, optional
        The solution, as in `iterdiff.trace`.
    spectrum : (float, float), optional
        Bounds l and L of the spectrum of ``d residual / dx``, for step sizes such as "1/L".
    title : str, optional
        The problem in one line.
    """

    problem: itd.Problem
    x0: PyTree
    theta: PyTree
    algorithm: itd.Algorithm | None = None
    args: PyTree = None
    reference: Any = None
    spectrum: tuple[float, float] | None = None
    title: str | None = None


def load_run(place: str, parameters: Mapping[str, Any] | None = None) -> Run:
    """Return the run that ``MODULE:NAME`` or ``FILE.py:NAME`` holds.

    Parameters
    ----------
    place : str
        A module, found from the working folder, or a file; a colon; a name in it. The name is a
        run, or a function that returns one.
    parameters : mapping, optional
        Keyword arguments of the function.

    Raises
    ------
    ValueError
        If there is no such module or name, the module or the function raises, or a parameter does
        not fit. The message names the line of the user's code.
    TypeError
        If the name is not a run.
    """
    module, _, name = place.rpartition(":")
    if not module or not name:
        raise ValueError(
            f"`MODULE:NAME` must be like package.module:run or folder/file.py:run, not {place!r}."
        )
    loaded = _executed(lambda: _imported(module), module)
    if not hasattr(loaded, name):
        own = [key for key in vars(loaded) if not key.startswith("_")]
        meant = nearest(name, own)
        advice = f" Did you mean `{meant}`?" if meant else ""
        raise ValueError(f"`MODULE:NAME`: {module} defines no `{name}`.{advice}")
    found = getattr(loaded, name)
    if callable(found):
        _check_parameters(found, place, parameters or {})
        call = functools.partial(found, **(parameters or {}))
        returned = _executed(call, f"{name}()", RunRaised)
    elif parameters:
        raise ValueError(
            f"`{place}` is no function, so it takes no `{next(iter(parameters))}`. Leave it out, "
            "or make the run in a function."
        )
    else:
        returned = found
    return _as_run(returned, place)


def _as_run(returned: Any, place: str) -> Run:
    """Return what a user's function returned as a run."""
    if isinstance(returned, tuple) and len(returned) in (3, 4):
        names = ("problem", "x0", "theta")
        names = names if len(returned) == 3 else ("problem", "algorithm", *names[1:])
        returned = dict(zip(names, returned, strict=True))
    if not isinstance(returned, Mapping):
        raise TypeError(f"`{place}` gives {_kind(returned)}. {FORMS}.")
    for key in returned:
        if key not in KEYS:
            raise ValueError(f"`{place}`: the key {key!r} is not known. {suggestion(key, KEYS)}")
    for key in REQUIRED:
        if key not in returned:
            raise ValueError(f"`{place}`: the key `{key}` is missing. {FORMS}.")
    run = Run(**returned)
    if not isinstance(run.problem, itd.Problem):
        raise TypeError(f"`{place}`: `problem` is {_kind(run.problem)}, not a Problem. {FORMS}.")
    if run.algorithm is not None and not isinstance(run.algorithm, itd.Algorithm):
        raise TypeError(
            f"`{place}`: `algorithm` is {_kind(run.algorithm)}, not an Algorithm. {FORMS}."
        )
    return run


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"a value of type {type(value).__name__}"


def _check_parameters(function: Callable, place: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError if a function does not take these keyword arguments."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return  # a function without a signature checks its arguments itself
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    named = {
        k: p for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for key in given:
        if key not in named:
            advice = suggestion(key, named) if named else "It takes none."
            raise UnknownParameter(f"`{place}` has no parameter `{key}`. {advice}", key)
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in given:
            raise ValueError(
                f"`{place}` needs the parameter `{key}`. Give it a default, or a value in "
                "`problem`."
            )


def source_file(place: str) -> Path | None:
    """Return the file of the module that a place names, without importing it; None if unknown."""
    module = place.rpartition(":")[0]
    path = Path(module)
    if path.suffix == ".py":
        return path if path.is_file() else None
    _search(Path.cwd())
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin and Path(origin).is_file() else None


def _search(folder: Path) -> None:
    """Let modules be found in a folder, as Python does for a script."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _imported(module: str) -> Any:
    """Return a module by its dotted name, found from the working folder, or by its path."""
    path = Path(module)
    if path.suffix != ".py":
        _search(Path.cwd())
        return importlib.import_module(module)
    if not path.is_file():
        raise ValueError(f"`FILE.py:NAME`: there is no file {path}.")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    _search(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        sys.modules.pop(path.stem, None)
        raise
    return loaded


def _executed(function: Callable[[], Any], what: str, kind: type[ValueError] = ValueError) -> Any:
    """Run a user's code; report its errors with the line that raised them.

    Raises
    ------
    ValueError
        If the code raises anything.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith("`FILE.py:NAME`"):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name in (what, what.split(".")[0]):
            meant = nearest(what, [file.stem for file in Path.cwd().glob("*.py")])
            advice = (
                f"Did you mean `{meant}`?" if meant else "A file is given as folder/file.py:run."
            )
            raise ValueError(f"`MODULE:NAME`: there is no module {what}. {advice}") from error
        raise kind(
            f"`MODULE:NAME`: {what} raised {said} ({Path(last.filename).name}, line {last.lineno})."
        ) from error
