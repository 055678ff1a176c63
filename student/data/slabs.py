"""The records of each epoch's view, read ahead of need; a cache may still be being filled.

M rows that this process shows in an epoch.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event

import numpy as np

from student.data.run_plan import Plan
from student.data.training_data import TrainingData
from teacher_cache.cache.blocks import committed_blocks, missing_blocks
from teacher_cache.cache.cache import Cache, open_cache
from teacher_cache.cache.slab import Slab, read_slab
from teacher_cache.errors import MissingRecords

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Waiting:
    """The view that is needed next is still being filled."""

    view: int


def prefetched_slabs(data: TrainingData, plan: Plan, epochs: range) -> Iterator[Slab | Waiting]:
    """The slabs of these epochs in turn; while one is used, a thread reads the next.

    Of several ranks each reads and checks every block, and keeps the records of its own rows.

    Raises:
        MissingRecords: a view that is not filled, and not waited for or not any longer.
        DamagedRecords: as `read_slab` does.
    """
    cancelled = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="slab") as pool:
        try:
            reading = pool.submit(_read, data, plan, epochs[0], cancelled)
            for epoch in epochs:
                while data.follow_timeout_s is not None and not wait([reading], POLL_S).done:
                    yield Waiting(data.view_of(epoch))
                slab = reading.result()
                if epoch + 1 in epochs:
                    reading = pool.submit(_read, data, plan, epoch + 1, cancelled)
                yield slab
        finally:
            cancelled.set()


def _read(data: TrainingData, plan: Plan, epoch: int, cancelled: Event) -> Slab:
    """The records of an epoch's view: all of them, or those of this rank's rows."""
    assert data.cache is not None
    view, kept_M = data.view_of(epoch), None
    if plan.ranks.count > 1:
        kept_M = np.sort(plan.own_rows(data.rows, epoch), axis=None)
    cache = data.cache
    if data.follow_timeout_s is not None:
        cache = _filled(cache, view, timeout_s=data.follow_timeout_s, cancelled=cancelled)
    return read_slab(cache, view, kept_M)


def _filled(cache: Cache, view: int, *, timeout_s: float, cancelled: Event) -> Cache:
    """The cache once a view's last block is committed; also of a view yet to be appended.

    Raises:
        MissingRecords: no block was committed anywhere in the cache for `timeout_s` seconds, or
            the wait was cancelled.
    """
    committed, since = -1, time.monotonic()
    while True:
        if view >= cache.view_count:
            cache = open_cache(cache.place)
        if view < cache.view_count and all(block.view != view for block in missing_blocks(cache)):
            return cache
        now = len(committed_blocks(cache.place))
        if now != committed:
            committed, since = now, time.monotonic()
        if time.monotonic() - since > timeout_s:
            raise MissingRecords(
                f"cache {cache.place}: view {view} is not filled, and no block was committed for "
                f"{timeout_s:g} s: start cache-teacher again (with --views {view + 1} or more), "
                "then the same command, or give it a longer --follow-timeout-s"
            )
        if cancelled.wait(cache.place.look_every_s()):
            raise MissingRecords(f"cache {cache.place}: stopped while waiting for view {view}")
