"""The writers' workbench: claims, the lock and who holds it, and what a sweep may touch."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from repository import REPOSITORY

from teacher_cache.storage import staging
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.keys import is_workbench
from teacher_cache.storage.tree import Tree

HOLD = """
import sys
from pathlib import Path
from teacher_cache.storage.disk import Disk
with Disk(Path(sys.argv[2])).alone():
    print("held", flush=True)
    sys.stdin.read(1)
"""


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "cache").mkdir()
    return Disk(tmp_path / "cache")


@contextmanager
def holder(disk):
    """A process that holds the cache's lock until a byte is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "cache-teacher", disk.root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def waiting(disk):
    """A thread that waits for the lock; it has got it when the block ends."""
    got = threading.Event()

    def wait():
        with disk.alone():
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    yield got
    assert got.wait(60)
    thread.join()


def until(condition):
    deadline = time.monotonic() + 900
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_writer_that_holds_the_lock_is_named_again_and_again(disk, caplog, monkeypatch):
    assert (staging.NAME_HOLDER_AFTER_S, staging.NAME_HOLDER_EVERY_S) == (10, 60)
    monkeypatch.setattr(staging, "NAME_HOLDER_AFTER_S", 0.2)
    monkeypatch.setattr(staging, "NAME_HOLDER_EVERY_S", 0.3)
    caplog.set_level(logging.WARNING)
    with holder(disk) as process:
        process.send_signal(signal.SIGSTOP)
        with waiting(disk) as got:
            until(lambda: len(caplog.records) >= 2)
            assert not got.is_set()
            process.send_signal(signal.SIGCONT)
            process.stdin.write("x")
            process.stdin.flush()
        for message in {record.getMessage() for record in caplog.records}:
            assert message.startswith(f"{disk.root}: still waiting for the lock")
            assert f"process {process.pid} (-c cache-teacher) on " in message
            assert " since 20" in message


def test_a_lock_that_goes_from_hand_to_hand_is_no_reason_to_warn(disk, caplog, monkeypatch):
    monkeypatch.setattr(staging, "NAME_HOLDER_AFTER_S", 0.1)
    seen = [f"process {number}" for number in range(6)]
    monkeypatch.setattr(staging, "_signature", lambda _: seen.pop(0) if seen else "process 9")
    with holder(disk) as process, waiting(disk):
        until(lambda: caplog.records)  # only once they stay the same
        assert not seen
        process.kill()
    assert "process 9" in caplog.text


def test_a_lock_is_free_when_its_holder_is_killed_and_its_name_gone_when_it_ends(disk):
    with holder(disk) as process, waiting(disk):
        process.kill()
    with disk.alone():
        assert f"process {os.getpid()} " in (disk.root / "staging/lock").read_text()
    assert (disk.root / "staging/lock").read_bytes() == b""


def test_a_worker_that_was_forked_under_the_lock_does_not_keep_it(disk):
    with disk.alone():
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with waiting(disk):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_a_stranger_wrote_into_the_lock_file_cannot_reach_a_terminal(disk, monkeypatch):
    with disk.alone():
        pass
    (disk.root / "staging/lock").write_bytes(b"\x1b]0;owned\x07" + 2000 * b"x")
    descriptor = os.open(disk.root / "staging/lock", os.O_RDONLY)
    text = staging._signature(descriptor)
    os.close(descriptor)
    assert text.isprintable()
    assert len(text) < 520


def test_a_claim_is_one_processes_and_ends_with_it(disk):
    held = disk.claim("tile-0-0")
    assert disk.claim("tile-0-0") is None
    held.release()
    assert [p.name for p in (disk.root / "staging").iterdir()] == []
    child = os.fork()
    if child == 0:
        disk.claim("tile-0-0")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert disk.abandoned() == ["staging/tile-0-0"]  # what the dead leave
    again = disk.claim("tile-0-0")
    assert again is not None
    assert disk.abandoned() == []
    again.release()
    assert [p.name for p in (disk.root / "staging").iterdir()] == []


def test_a_claim_has_a_name_that_a_sweep_knows(disk):
    for name in ("tile-3-17", "source-3", "sample", "table"):
        assert is_workbench(f"staging/{name}")
        disk.claim(name).release()
    for name in ("lock", "notes.txt", "tile-3/x", "tile-x", "0123456789abcdef.tmp"):
        with pytest.raises(ValueError, match="is no name of a claim"):
            disk.claim(name)


def test_a_sweep_takes_what_the_dead_left_and_nothing_else(disk):
    folder = disk.root / "staging"
    folder.mkdir()
    dead = ("tile-0-0", "0123456789abcdef.tmp", "source-4")
    others = ("notes.txt", "lock", "tile-0-0.bak", "upload.tmp", "tile-0", "writers/notes")
    (folder / "writers").mkdir()
    for name in (*dead, *others[:-2], others[-1]):
        (folder / name).write_bytes(b"x")
    (folder / "tile-0").symlink_to("notes.txt")
    alive = disk.claim("tile-1-0")
    staged = staging.stage(Tree(disk.root), b"alive")
    assert sorted(disk.abandoned()) == sorted(f"staging/{name}" for name in dead)
    disk.sweep()
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - {"writers"}
    assert left == {*others, "tile-1-0", staged.name}
    assert (disk.root / staged.key).read_bytes() == b"alive"
    alive.release()
    staged.release()


def test_a_sweep_of_no_cache_makes_nothing(tmp_path):
    Disk(tmp_path).sweep()
    assert Disk(tmp_path / "gone").abandoned() == []
    assert list(tmp_path.iterdir()) == []
