"""Training on a cache that is still being filled: wait for the view that is needed."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from threading import Event

from student.ranks import ALONE, Ranks
from teacher_cache.cache.blocks import committed_blocks, missing_blocks
from teacher_cache.cache.cache import Cache, open_cache
from teacher_cache.cache.shared_slab import SharedSlabs
from teacher_cache.cache.slab import Slab, read_slab
from teacher_cache.errors import MissingRecords
from teacher_cache.format.layout import Memory, private_memory

POLL_S = 0.5


def await_slab(
    cache: Cache,
    view: int,
    memory: Memory = private_memory,
    *,
    timeout_s: float,
    cancelled: Event,
) -> Slab:
    """Read a view's records once its last block is committed; also of a view yet to be appended.

    Raises:
        MissingRecords: no block was committed anywhere in the cache for `timeout_s` seconds, or
            the wait was cancelled.
        DamagedRecords: as `read_slab` does.
    """
    committed, since = -1, time.monotonic()
    while True:
        if view >= cache.view_count:
            cache = open_cache(cache.place)
        if view < cache.view_count:
            left = sum(block.view == view for block in missing_blocks(cache))
            if not left:
                return read_slab(cache, view, memory)
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


@dataclass(frozen=True, slots=True)
class Waiting:
    """The view that is needed next is still being filled."""

    view: int


def prefetched_slabs(
    cache: Cache, views: list[int], *, follow_timeout_s: float | None = None, ranks: Ranks = ALONE
) -> Iterator[Slab | Waiting]:
    """The slabs of these views in turn; while one is used, a thread reads the next.

    Ranks of one host share them: the first reads, the others map the same memory.
    """
    cancelled = Event()
    load = read_slab
    if follow_timeout_s is not None:
        load = partial(await_slab, timeout_s=follow_timeout_s, cancelled=cancelled)
    slabs = SharedSlabs(
        ranks.host, local_rank=ranks.local_number, local_world_size=ranks.local_count
    )

    with ThreadPoolExecutor(1, thread_name_prefix="slab") as pool:
        try:
            following = pool.submit(slabs.read, cache, views[0], load)
            for view, after in zip(views, [*views[1:], None], strict=True):
                while follow_timeout_s is not None and not wait([following], POLL_S).done:
                    yield Waiting(view)
                slab = following.result()
                if after is not None:
                    following = pool.submit(slabs.read, cache, after, load)
                yield slab
        finally:
            cancelled.set()
            slabs.close()
