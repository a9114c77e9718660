"""The folder of a grid: a file for each cell, an account of events, and one writer at a time.

A cell's file is written under a temporary name, synced and renamed, so that it is whole or absent
whatever happens to the process. A checksum inside tells a file that was damaged later.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from iterdiff.jaxtools.extras import import_extra

CELLS, EVENTS, MANIFEST, NAMES = "cells", "events.jsonl", "study.json", "cells.txt"
LOCK, HOLDER = ".lock", ".holder.json"
UNFINISHED = ".unfinished-"
"""How the name of a file begins that is being written."""

TAG = "iterdiff-sha256:"
UNSEALED = TAG + "0" * 64
"""The attribute `checksum` before it is known."""

SEAL = re.compile(TAG.encode() + b"[0-9a-f]{64}")


class FolderHeld(ValueError):
    """Another process writes to the folder."""


class CorruptedCell(ValueError):
    """A file is not what was written."""


def seal(content: bytes) -> bytes:
    """Return the content of a file with its checksum in place.

    The checksum is the SHA-256 of the file in which the checksum's digits are zeros.

    Raises
    ------
    ValueError
        If the content has no place for a checksum.
    """
    digest = hashlib.sha256(content).hexdigest()
    if content.find(UNSEALED.encode()) < 0:
        raise ValueError("`content` has no place for a checksum; add the attribute `checksum`.")
    return content.replace(UNSEALED.encode(), f"{TAG}{digest}".encode(), 1)


def verified(path: Path) -> bytes:
    """Return the content of a cell's file.

    Raises
    ------
    CorruptedCell
        If the file is damaged.
    OSError
        If it cannot be read.
    """
    content = path.read_bytes()
    found = SEAL.search(content)
    if found is not None:
        digest = found[0].decode().removeprefix(TAG)
        unsealed = content[: found.start()] + UNSEALED.encode() + content[found.end() :]
        if hashlib.sha256(unsealed).hexdigest() == digest:
            return content
    raise CorruptedCell(f"{path} is damaged: its checksum does not fit its content.")


def cell_file(folder: Path, name: str) -> Path:
    """Return the file of a cell."""
    return folder / CELLS / f"{name}.nc"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent, also after a crash of the machine.

    Raises
    ------
    OSError
        If it cannot be written. An earlier file stays.
    """
    handle, temporary = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a renaming last. Some systems cannot open folders; there it is left to them."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for writing; it is made if necessary.

    The lock is the operating system's and ends with the process, however that ends. On a network
    file system it holds between machines only if the file system supports locks.

    Raises
    ------
    FolderHeld
        If another process holds it; the message says which.
    ValueError
        If the folder cannot be written to.
    """
    filelock = import_extra("filelock", "study")
    try:
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise FolderHeld(
            f"`out`: {folder} is in use by {_holder(folder)}. Wait for it, or choose another "
            "folder with --out."
        ) from error
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise ValueError(
            f"`out`: {folder} cannot be written to ({reason}). Choose another folder with --out."
        ) from error
    try:
        for leftover in (*folder.glob(f"{UNFINISHED}*"), *(folder / CELLS).glob(f"{UNFINISHED}*")):
            leftover.unlink(missing_ok=True)
        holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": now()}
        (folder / HOLDER).write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['machine']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def now() -> str:
    """Return the time, for people to read; nothing is computed from it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def append_event(folder: Path, event: str, **details: Any) -> None:
    """Append a line to the account of events.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    line = json.dumps({"time": now(), "event": event, **details}, ensure_ascii=False)
    with open(folder / EVENTS, "ab") as file:
        # A process that was killed may have left half a line.
        start = b"" if file.tell() == 0 or _ends_line(folder / EVENTS) else b"\n"
        file.write(start + line.encode() + b"\n")


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a folder, oldest first. Half a line, left by a crash, is skipped."""
    path = folder / EVENTS
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and "event" in found:
                    yield found


def failures(folder: Path) -> dict[str, str]:
    """Return the causes of failed cells by name; a later success removes a failure."""
    found: dict[str, str] = {}
    for event in events(folder):
        if event["event"] == "failed" and "cell" in event:
            found[event["cell"]] = str(event.get("cause", ""))
        elif event["event"] == "done":
            found.pop(event.get("cell", ""), None)
        elif event["event"] == "fresh":
            found.clear()
    return found


def present(folder: Path, names: Iterable[str]) -> tuple[set[str], list[str]]:
    """Return the names of whole cells, and of damaged ones.

    Every file is read once. Only one of them is in memory at a time.
    """
    whole, damaged = set(), []
    with contextlib.suppress(FileNotFoundError):
        there = {entry.name for entry in os.scandir(folder / CELLS)}
        for name in names:
            if f"{name}.nc" not in there:
                continue
            try:
                verified(cell_file(folder, name))
                whole.add(name)
            except (CorruptedCell, OSError):
                damaged.append(name)
    return whole, damaged


def clear(folder: Path) -> None:
    """Remove the files of all cells; nothing else in the folder is touched."""
    for path in (folder / CELLS).glob("*.nc"):
        path.unlink(missing_ok=True)
    append_event(folder, "fresh")


def write_manifest(folder: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Write what the grid is, and the names of its cells in order."""
    write_whole(folder / NAMES, "".join(f"{name}\n" for name in names).encode())
    text = json.dumps(manifest, ensure_ascii=False, indent=1, default=str)
    write_whole(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what the grid in a folder is, and the names of its cells in order.

    Raises
    ------
    ValueError
        If the folder is not a grid's.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = (folder / NAMES).read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise ValueError(
            f"`FOLDER`: {folder} holds no grid of studies. Run `iterdiff study FILE.toml --out "
            f"{folder}` with a file that has a table [grid]."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"`FOLDER`: {folder / MANIFEST} cannot be read: {error}.") from error
    return manifest, names
