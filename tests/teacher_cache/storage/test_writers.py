"""Several writers in one cache: threads for the races, real processes for the kills."""

import random
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from caches import assert_same_records, block_of, new_cache
from commands import sigkill, start
from small import cache_document, to_toml

from teacher_cache.cache.blocks import committed_blocks, missing_blocks, write_block
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId
from teacher_cache.verification.verify import verify


def test_many_writers_of_the_same_block_leave_the_records_of_exactly_one(tmp_path):
    cache = new_cache(tmp_path / "cache", views__count=4)
    barrier = threading.Barrier(4)

    def write(seed):
        for block in cache.blocks():
            barrier.wait()
            write_block(cache, block_of(cache, block, seed=seed), {"host": str(seed)})

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert verify(cache).is_sound
    for view in range(4):
        slab = read_slab(cache, view)
        for shard in range(3):
            rows, block = cache.rows(shard), BlockId(view, shard)
            found = slab.logp_NK[rows.start : rows.stop]
            candidates = [block_of(cache, block, seed=seed).topk.logp_BK for seed in range(4)]
            assert sum(np.array_equal(found, each) for each in candidates) == 1


def test_a_writer_that_comes_late_does_not_touch_what_another_has_committed(tmp_path, monkeypatch):
    """The other commits between this writer's look at the ledger and its move into place."""
    from teacher_cache.storage import disk

    cache = new_cache(tmp_path / "cache")
    block, stage = cache.blocks()[0], disk.stage

    def stage_while_another_commits(root, data):
        monkeypatch.setattr(disk, "stage", stage)
        write_block(cache, block_of(cache, block, seed=1), {"host": "other"})
        return stage(root, data)

    monkeypatch.setattr(disk, "stage", stage_while_another_commits)
    write_block(cache, block_of(cache, block, seed=2), {"host": "late"})
    assert committed_blocks(cache.place) == {block}
    found = verify(cache)
    assert (found.damage, found.strays) == ((), ())
    for missing in missing_blocks(cache):
        write_block(cache, block_of(cache, missing), {})
    expected = block_of(cache, block, seed=1).topk.logp_BK
    np.testing.assert_array_equal(read_slab(cache, 0).logp_NK[:32], expected)


def ledger_stamps(root):
    return {path: path.stat().st_mtime_ns for path in (root / "ledger").glob("*/*.json")}


class Writers:
    """`cache-teacher` processes of one cache, killed and started again."""

    def __init__(self, folder, data, root, **changes):
        self.folder, self.root = folder, root
        recipe = folder / f"{root.name}.toml"
        recipe.write_text(to_toml(cache_document(**changes)))
        self.arguments = ["cache-teacher", recipe, "--data", data, "--out", root]
        self.kept = {}

    def start(self, rank, world_size):
        # half of them as torchrun starts them, half by options
        ranks = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        options = ["--rank", rank, "--world-size", world_size] if rank % 2 else []
        return start(
            self.folder,
            [*self.arguments, *options],
            env={} if options else ranks,
            stderr=subprocess.STDOUT,
        )

    def require_kept(self):
        """No committed block was touched since the last look, let alone computed again."""
        stamps = ledger_stamps(self.root)
        assert self.kept.items() <= stamps.items()
        self.kept = stamps


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def storm(writers, *, kills, most, seed):
    """SIGKILLs at random moments over up to `most` writers, each replaced under another rank."""
    moments = random.Random(seed)
    running = []
    try:
        while kills:
            while len(running) < most:
                world_size = moments.randint(1, most)
                running.append(writers.start(moments.randrange(world_size), world_size))
            time.sleep(moments.uniform(0.1, 5.0))  # a writer needs 5 s to its first block
            victim = running.pop(moments.randrange(len(running)))
            if victim.poll() is None:
                sigkill(victim)
                assert victim.returncode in (0, -signal.SIGKILL)
                kills -= victim.returncode != 0
            else:
                finish(victim)
            writers.require_kept()
            if writers.root.exists() and not missing_blocks(open_cache(Disk(writers.root))):
                return kills
    finally:
        for process in running:
            sigkill(process)
    return 0


@pytest.mark.kill
@pytest.mark.slow
def test_writers_under_sigkill_leave_one_whole_cache(cli, scans, tmp_path):
    changes = {
        "views__count": 24, "views__size": 96, "storage__views_per_tile": 2, "loader__workers": 1,
    }  # fmt: skip
    writers = Writers(tmp_path, scans / "train", tmp_path / "cache", **changes)
    running = [writers.start(rank, 3) for rank in range(3)]
    deadline = time.monotonic() + 900
    for number, victim in enumerate(running[:2]):
        while len(committed_blocks(Disk(writers.root))) < 6 * (number + 1):
            assert victim.poll() is None, victim.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        sigkill(victim)
        writers.require_kept()
    output = finish(running[2])  # the one that lives takes over what the dead held
    assert "24 views of 90 images, complete" in output
    writers.require_kept()
    cache = open_cache(Disk(writers.root))
    found = verify(cache)
    assert (found.missing, found.damage) == ((), ())
    cli(*writers.arguments)
    assert verify(cache).is_sound  # the next start swept what the dead left
    writers.require_kept()
    assert list(tmp_path.glob(".*.tmp")) == []


@pytest.mark.kill
@pytest.mark.slow
def test_two_writers_who_both_believe_to_be_alone_share_the_work(cli, scans, filled, tmp_path):
    writers = Writers(tmp_path, scans / "train", tmp_path / "cache")
    other = writers.start(0, 1)
    cli(*writers.arguments)
    assert "complete" in (output := finish(other)) or "other writers" in output
    cache = open_cache(Disk(writers.root))
    assert verify(cache).is_sound
    assert_same_records(cache, filled)


@pytest.mark.kill
@pytest.mark.slow
def test_a_hundred_sigkills_over_four_writers_leave_the_records_of_an_unbroken_fill(
    scans, tmp_path
):
    changes = {"views__count": 400, "views__size": 96, "storage__views_per_tile": 4}
    unbroken = Writers(tmp_path, scans / "train", tmp_path / "unbroken", **changes)
    finish(unbroken.start(0, 1))
    kills, caches = 100, 0
    while kills:  # a quick machine fills a cache before the last kill: then the next one
        writers = Writers(tmp_path, scans / "train", tmp_path / f"killed-{caches}", **changes)
        kills = storm(writers, kills=kills, most=4, seed=caches)
        caches += 1
        finish(writers.start(0, 1))
        writers.require_kept()
        cache = open_cache(Disk(writers.root))
        assert verify(cache).is_sound
        assert_same_records(cache, open_cache(Disk(unbroken.root)))
        assert list(tmp_path.glob(".*.tmp")) == []
