"""The folder of a grid: whole files or none, damage is found, one writer at a time."""

import json
import os
import subprocess
import sys
import time

import pytest

from iterdiff.study import store


def content(size=200):
    """A file with a place for its checksum."""
    return b"CDF" + store.UNSEALED.encode() + bytes(range(200)) * (size // 200)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / store.CELLS).mkdir()
    return tmp_path


def test_any_changed_byte_is_found(folder):
    path = store.cell_file(folder, "a")
    sealed = store.seal(content())
    for place in (0, 5, len(store.TAG) + 10, 150, len(sealed) - 1):
        path.write_bytes(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
        with pytest.raises(store.CorruptedCell, match=r"a\.nc"):
            store.verified(path)
    path.write_bytes(sealed[:-1])
    store.write_whole(store.cell_file(folder, "b"), sealed)
    assert store.verified(store.cell_file(folder, "b")) == sealed
    assert store.present(folder, ["a", "b", "c"]) == ({"b"}, ["a"])


def test_content_without_a_place_for_a_checksum_is_refused():
    with pytest.raises(ValueError, match="`content`"):
        store.seal(b"CDF")


def test_a_failed_write_leaves_the_earlier_file_and_no_other(folder, monkeypatch):
    path = store.cell_file(folder, "a")
    store.write_whole(path, b"first")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="space"):
        store.write_whole(path, b"second")
    assert path.read_bytes() == b"first" and len(list(path.parent.iterdir())) == 1


def test_half_a_line_of_events_is_skipped(folder):
    store.append_event(folder, "failed", cell="a", cause="first")
    with open(folder / store.EVENTS, "ab") as file:
        file.write(b'{"event": "failed", "cel')
    store.append_event(folder, "failed", cell="b", cause="<b>ünï</b>")
    store.append_event(folder, "done", cell="a")
    assert [event["event"] for event in store.events(folder)] == ["failed", "failed", "done"]
    assert store.failures(folder) == {"b": "<b>ünï</b>"}
    store.clear(folder)
    assert store.failures(folder) == {}


def test_nothing_depends_on_the_clock(folder, monkeypatch):
    times = iter(["2030-01-01", "1970-01-01"])
    monkeypatch.setattr(store, "now", lambda: next(times))
    store.append_event(folder, "failed", cell="a", cause="x")
    store.append_event(folder, "done", cell="a")  # sixty years earlier, by the clock
    assert store.failures(folder) == {}


HOLDS = """
import sys, time
from pathlib import Path
from iterdiff.study import store
with store.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_holds_the_folder_until_that_process_ends(folder):
    words = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(store.FolderHeld, match=f"process {holder.pid}"), store.held(folder):
            pass
        holder.kill()  # the lock ends with the process, however that ends
    with store.held(folder):
        assert json.loads((folder / store.HOLDER).read_text())["process"] == os.getpid()
    assert not (folder / store.HOLDER).exists()


WRITES = """
import sys
from pathlib import Path
from iterdiff.study import store
number = 0
while True:
    body = bytes([number % 251]) * 300_000
    content = store.seal(b"CDF" + store.UNSEALED.encode() + body)
    store.write_whole(store.cell_file(Path(sys.argv[1]), f"c{number % 7}"), content)
    number += 1
    print(number, flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_whole_files(folder):
    # benchmarks/studies kills real runs, a hundred times at random moments.
    for delay in (0.0, 0.001, 0.003):
        words = [sys.executable, "-c", WRITES, str(folder)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(8):
                writer.stdout.readline()
            time.sleep(delay)
            writer.kill()
        names = [path.stem for path in (folder / store.CELLS).glob("c*.nc")]
        assert len(names) == 7 and store.present(folder, names) == (set(names), [])
    with store.held(folder):
        assert not list((folder / store.CELLS).glob(f"{store.UNFINISHED}*"))


def test_folders_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("here")
    for out in (file, file / "below"):
        with pytest.raises(ValueError, match="`out`"), store.held(out):
            pass
    with pytest.raises(ValueError, match="`FOLDER`"):
        store.read_manifest(tmp_path)
