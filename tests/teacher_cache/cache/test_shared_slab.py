"""The ranks of one host share slabs: real processes, killed at will."""

import json
import secrets
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from caches import block_of, filled_cache, index_of, manifest_of, new_cache
from repository import REPOSITORY
from small import cache_recipe

from teacher_cache.cache.blocks import write_block
from teacher_cache.cache.cache import create_cache
from teacher_cache.cache.shared_slab import SharedSlabs
from teacher_cache.cache.slab import read_slab
from teacher_cache.errors import CacheError, MissingRecords
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId

RANK = """
import json, pathlib, sys, zlib
from teacher_cache.errors import CacheError
from teacher_cache.cache.shared_slab import SharedSlabs
from teacher_cache.cache.cache import open_cache
from teacher_cache.storage.disk import Disk

def say(**facts):
    print(json.dumps(facts), flush=True)

name, rank, ranks, root = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
cache = open_cache(Disk(pathlib.Path(root)))
with SharedSlabs(name, local_rank=rank, local_world_size=ranks, timeout_s=300) as shared:
    for line in sys.stdin:
        try:
            slab = shared.read(cache, int(line))
        except CacheError as error:
            say(error=type(error).__name__, text=str(error))
            continue
        arrays = slab.ids_NK, slab.logp_NK, slab.tail_NT, slab.check
        say(crc=[zlib.crc32(array.tobytes()) for array in arrays], view=slab.view,
            absent=sorted(slab.absent_rows), writeable=[a.flags.writeable for a in arrays],
            memfd="memfd:retort-slab" in pathlib.Path("/proc/self/maps").read_text())
"""


class Ranks:
    """Processes that read a view a line."""

    def __init__(self, root, count):
        self.name = secrets.token_hex(8)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, self.name, str(rank), str(count), str(root)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
            )
            for rank in range(count)
        ]  # fmt: skip

    def ask(self, view, *ranks):
        for rank in ranks:
            self.processes[rank].stdin.write(f"{view}\n")
            self.processes[rank].stdin.flush()

    def answer(self, rank):
        return json.loads(self.processes[rank].stdout.readline())

    def read(self, view, *ranks):
        self.ask(view, *ranks)
        return [self.answer(rank) for rank in ranks]

    def end(self):
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait(300)
            process.stdout.close()


@pytest.fixture
def ranks():
    started = []

    def start(cache, count):
        started.append(Ranks(cache.place.root, count))
        return started[-1]

    yield start
    for group in started:
        for process in group.processes:
            process.kill()
        group.end()
        assert f"retort-slab-{group.name}" not in Path("/proc/net/unix").read_text()
    assert not list(Path("/dev/shm").glob("*retort*"))


def cache_with_an_absence(root):
    index = index_of(90)
    cache = create_cache(Disk(root), manifest_of(cache_recipe(), index), index)
    for shard in range(3):
        crc, absent = (
            np.arange(len(cache.rows(shard)), dtype=np.uint32),
            {33, 40} if shard == 1 else (),
        )
        cache.sources.commit(shard, crc, frozenset(absent), {})
    for block in cache.blocks():
        write_block(cache, block_of(cache, block), {})
    return cache


def sums(slab):
    arrays = slab.ids_NK, slab.logp_NK, slab.tail_NT, slab.check
    return [zlib.crc32(array.tobytes()) for array in arrays]


def test_every_rank_reads_what_one_process_reads_out_of_the_same_memory(tmp_path, ranks):
    cache = cache_with_an_absence(tmp_path / "cache")
    group = ranks(cache, 3)
    for view in (0, 1, 2, 0):
        slab = read_slab(cache, view)
        for answer in group.read(view, 0, 1, 2):
            assert answer["crc"] == sums(slab)
            assert answer["view"] == view
            assert answer["absent"] == sorted(slab.absent_rows)
            assert answer["writeable"] == [False] * 4
            assert answer["memfd"]
    assert slab.absent_rows == {33, 40}
    group.end()
    assert [process.returncode for process in group.processes] == [0, 0, 0]


@pytest.mark.kill
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_rank_leaves_nothing_and_nobody_waits_for_it(tmp_path, ranks, killed):
    cache = filled_cache(tmp_path / "cache")
    group = ranks(cache, 3)
    living = [rank for rank in range(3) if rank != killed]
    group.read(0, 0, 1, 2)
    group.ask(1, *living[:1])  # one already waits
    group.processes[killed].send_signal(signal.SIGKILL)
    group.ask(1, *living[1:])
    answers = [group.answer(rank) for rank in living]
    if killed == 0:
        assert [answer["error"] for answer in answers] == ["CacheError"] * 2
        assert "this host's ranks has ended" in answers[0]["text"]
    else:
        assert [answer["crc"] for answer in answers] == [sums(read_slab(cache, 1))] * 2
        assert group.read(2, *living)[0]["view"] == 2
    assert sorted(p.name for p in cache.place.root.glob("*")) == sorted(
        ["ledger", "staging", "zarr.json", "ids", "logp", "tail", "check", "source", "keys",
         "labels", "classes", "class_ids"]
    )  # fmt: skip


@pytest.mark.kill
def test_a_whole_group_killed_while_it_reads_can_be_started_again(tmp_path, ranks):
    cache = filled_cache(tmp_path / "cache")
    first = ranks(cache, 2)
    first.read(0, 0, 1)
    first.ask(1, 0, 1)
    for process in first.processes:
        process.send_signal(signal.SIGKILL)
    second = ranks(cache, 2)
    assert [answer["crc"] for answer in second.read(1, 0, 1)] == [sums(read_slab(cache, 1))] * 2


def test_an_error_of_the_reading_rank_is_everybodys(tmp_path, ranks):
    cache = new_cache(tmp_path / "cache")
    for block in cache.blocks():
        if block != BlockId(1, 2):
            write_block(cache, block_of(cache, block), {})
    group = ranks(cache, 2)
    answers = group.read(1, 0, 1)
    assert [answer["error"] for answer in answers] == ["MissingRecords"] * 2
    assert answers[0]["text"] == answers[1]["text"]
    assert "view 1, rows 64-89: not filled yet" in answers[1]["text"]
    assert [answer["view"] for answer in group.read(0, 0, 1)] == [0, 0]  # and goes on


def test_ranks_that_ask_for_different_views_are_told_so(tmp_path, ranks):
    group = ranks(filled_cache(tmp_path / "cache"), 2)
    group.ask(0, 0)
    group.ask(1, 1)
    for rank in (0, 1):
        assert "ask for different views, 0 and 1" in group.answer(rank)["text"]


def test_a_slab_is_loaded_only_when_every_rank_has_asked_for_it(tmp_path):
    """Whoever asks is about to let go of the view before the last: two slabs a host, no third."""
    cache, name = filled_cache(tmp_path / "cache"), secrets.token_hex(8)
    loaded = []

    def load(*arguments):
        loaded.append(time.monotonic())
        return read_slab(*arguments)

    with (
        SharedSlabs(name, local_rank=0, local_world_size=2) as first,
        SharedSlabs(name, local_rank=1, local_world_size=2) as second,
    ):
        reader = threading.Thread(target=first.read, args=(cache, 0, load))
        reader.start()
        time.sleep(0.5)
        assert loaded == []
        asked = time.monotonic()
        slab = second.read(cache, 0)
        reader.join()
    assert loaded[0] > asked
    np.testing.assert_array_equal(slab.logp_NK, read_slab(cache, 0).logp_NK)  # after close, too


def test_one_rank_alone_shares_nothing(tmp_path):
    cache = filled_cache(tmp_path / "cache")
    with SharedSlabs("unused", local_rank=0, local_world_size=1) as alone:
        slab = alone.read(cache, 1)
        with pytest.raises(MissingRecords, match="asked for view 3"):
            alone.read(cache, 3)
    assert sums(slab) == sums(read_slab(cache, 1))
    assert slab.logp_NK.flags.writeable


def test_ranks_that_never_come_are_an_error_that_counts_them(tmp_path):
    cache = filled_cache(tmp_path / "cache")
    for rank, words in ((0, "1 of 3 of this host's ranks"), (1, "no rank 0 of this host's ranks")):
        lone = SharedSlabs(secrets.token_hex(8), local_rank=rank, local_world_size=3, timeout_s=0.3)
        with lone, pytest.raises(CacheError, match=f"{words} came .* within 0.3 s"):
            lone.read(cache, 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_closing_ends_a_read_that_waits(tmp_path, rank):
    cache, name = filled_cache(tmp_path / "cache"), secrets.token_hex(8)
    ended = []
    with SharedSlabs(name, local_rank=1 - rank, local_world_size=2) as other:
        waiting = SharedSlabs(name, local_rank=rank, local_world_size=2)

        def read():
            for view in (0, 1):
                try:
                    waiting.read(cache, view)
                except CacheError as error:
                    ended.append(str(error))

        reader = threading.Thread(target=read)
        reader.start()
        other.read(cache, 0)
        time.sleep(0.3)
        started = time.monotonic()
        waiting.close()
        reader.join(60)
    assert ended == ["stopped while waiting for the records of a view"]
    assert time.monotonic() - started < 30  # it waits for ever otherwise
