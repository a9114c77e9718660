"""Run a grid into a folder, and go on where an earlier run ended."""

import dataclasses
import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import iterdiff as itd
from iterdiff.study import store
from iterdiff.study.cell import CellOutcome, CellTask
from iterdiff.study.execute import Pool, execute, this_process
from iterdiff.study.grid import Grid
from iterdiff.study.named import source_file

MAX_CELLS = 1_000_000
"""Upper limit of the number of cells of a run: each is a file."""

FORMAT = 1
"""The version of the folder's layout."""


def _ignore(*_: Any) -> None:
    """Do nothing."""


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Whom to tell what happens during a run.

    Attributes
    ----------
    progress : callable
        Called as ``progress(done, total)`` after each cell; `done` includes failed ones.
    failed : callable
        Called as ``failed(label, cause)``.
    note : callable
        Called as ``note(text)``.
    """

    progress: Callable[[int, int], None] = _ignore
    failed: Callable[[str, str], None] = _ignore
    note: Callable[[str], None] = _ignore


@dataclasses.dataclass(frozen=True)
class GridResult:
    """How a run of a grid ended.

    Attributes
    ----------
    total : int
        The number of cells of the grid.
    found : int
        How many were there before.
    computed : int
        How many this run added.
    failed : mapping of str to str
        The causes of failures, by the label of the cell.
    corrupted : tuple of str
        The labels of damaged files, which were computed anew.
    """

    total: int
    found: int
    computed: int
    failed: Mapping[str, str]
    corrupted: tuple[str, ...]


def run_grid(
    grid: Grid,
    folder: "Path | str",
    *,
    pool: Pool | None = None,
    fresh: bool = False,
    watcher: Watcher | None = None,
) -> GridResult:
    """Compute the cells of a grid that a folder does not contain yet.

    Parameters
    ----------
    grid : Grid
        What to compute.
    folder : path
        Where the cells are. It is made if necessary; other files in it stay.
    pool : Pool, optional
        Where to compute; by default in this process.
    fresh : bool
        Whether to remove the cells that are there first.
    watcher : Watcher, optional
        Whom to tell what happens.

    Raises
    ------
    ValueError
        If the grid is too large, or the folder cannot be written to or is in use.
    OSError
        If a finished cell cannot be written, for example on a full disk. The others stay.
    """
    folder = Path(folder)
    if grid.size > MAX_CELLS:
        raise ValueError(
            f"`grid` has {grid.size:,} cells, and each is a file: at most {MAX_CELLS:,} can be run."
            " Shorten its lists."
        )
    pool, watcher = pool or this_process(), watcher or Watcher()
    with store.held(folder):
        if fresh:
            store.clear(folder)
        plan = _Plan(grid)
        store.write_manifest(folder, plan.manifest(), plan.names)
        whole, damaged = store.present(folder, plan.places)
        labels = {name: grid.label(plan.places[name]) for name in damaged}
        for name in damaged:
            store.append_event(folder, "corrupted", cell=name, label=labels[name])
            watcher.note(f"The file of the cell {labels[name]} is damaged; it is computed again.")
        recorder = _Recorder(folder, plan, watcher, len(whole))
        total = len(plan.places)
        store.append_event(folder, "start", total=total, found=len(whole))
        watcher.progress(len(whole), total)
        try:
            execute(plan.tasks(whole), pool, recorder.finish)
        except KeyboardInterrupt:
            store.append_event(folder, "interrupted", computed=recorder.computed)
            raise
        store.append_event(folder, "end", computed=recorder.computed, failed=len(recorder.failed))
    return GridResult(total, len(whole), recorder.computed, recorder.failed, tuple(labels.values()))


class _Recorder:
    """Writes the outcome of each cell."""

    def __init__(self, folder: Path, plan: "_Plan", watcher: Watcher, found: int):
        self.folder, self.plan, self.watcher, self.found = folder, plan, watcher, found
        self.computed, self.failed = 0, {}

    def finish(self, task: CellTask, outcome: CellOutcome) -> None:
        """Write a cell, or the cause of its failure."""
        index = self.plan.places[task.name]
        seconds = round(outcome.seconds, 6)
        details = {"cell": task.name, "index": index, "seconds": seconds}
        if outcome.content is None:
            label = self.plan.grid.label(index)
            self.failed[label] = outcome.cause
            store.append_event(self.folder, "failed", **details, label=label, cause=outcome.cause)
            self.watcher.failed(label, outcome.cause)
        else:
            store.write_whole(store.cell_file(self.folder, task.name), outcome.content)
            self.computed += 1
            store.append_event(self.folder, "done", **details)
        done = self.found + self.computed + len(self.failed)
        self.watcher.progress(done, len(self.plan.places))


class _Plan:
    """The names of all cells, and the tasks that compute them.

    A name is a hash of the cell's settings, the content of the files that they name, and the
    version of the package.
    """

    def __init__(self, grid: Grid):
        import jax

        self.grid = grid
        self.digests: dict[str, str] = {}
        self.places: dict[str, int] = {}
        self.names = [self._name(grid.words(index)) for index in range(grid.size)]
        for index, name in enumerate(self.names):
            self.places.setdefault(name, index)  # equal settings are one cell
        self.x64 = bool(getattr(jax.config, "jax_enable_x64"))  # noqa: B009
        self.commit = git_commit()

    def _name(self, words: Mapping[str, Any]) -> str:
        problem = words["problem"]
        read = [str(problem[key]) for key in ("function", "data") if key in problem]
        identity = {
            "version": itd.__version__,
            "settings": words,
            "files": {place: self._digest(place) for place in read},
        }
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _digest(self, place: str) -> str:
        """Return a digest of the file that a setting names; empty if it names none."""
        if place not in self.digests:
            path = source_file(place) if ":" in place else Path(place)
            content = path.read_bytes() if path is not None and path.is_file() else None
            self.digests[place] = "" if content is None else hashlib.sha256(content).hexdigest()
        return self.digests[place]

    def manifest(self) -> dict[str, Any]:
        """Return what the grid is, for those who read the folder later."""
        axes = [
            {
                "name": axis.name,
                "keys": [list(keys) for keys in axis.keys],
                "values": [list(values) for values in axis.values],
            }
            for axis in self.grid.axes
        ]
        return {
            "format": FORMAT,
            "iterdiff_version": itd.__version__,
            "settings": self.grid.words(0),
            "axes": axes,
            "size": self.grid.size,
            "x64": self.x64,
            "git_commit": self.commit,
            "machine": platform.node(),
            "created": store.now(),
        }

    def tasks(self, whole: set[str]) -> Iterator[CellTask]:
        """Yield the tasks of the cells that are not among `whole`."""
        paths = [str(Path.cwd())]
        file = self.grid.source.file
        if file is not None:
            paths.append(str(file.resolve().parent))
        for name, index in self.places.items():
            if name in whole:
                continue
            words = dict(self.grid.words(index))
            files = {place: digest for place, digest in self.digests.items() if digest}
            provenance = {"git_commit": self.commit, "files": json.dumps(files)}
            yield CellTask(name, _absolute(words), tuple(paths), self.x64, provenance)


def _absolute(words: dict[str, Any]) -> dict[str, Any]:
    """Return settings whose files a process in another folder finds as well."""
    problem = dict(words["problem"])
    data, function = problem.get("data"), problem.get("function")
    if isinstance(data, str) and Path(data).is_file():
        problem["data"] = str(Path(data).resolve())
    if isinstance(function, str):
        module, _, name = function.rpartition(":")
        if module.endswith(".py"):
            problem["function"] = f"{Path(module).resolve()}:{name}"
    return {**words, "problem": problem}


def git_commit() -> str:
    """Return the commit of the working folder, with "+changes" if files differ; empty without."""
    try:
        options = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        return commit + ("+changes" if subprocess.run(status, **options).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return ""
