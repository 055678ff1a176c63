"""Training on a cache that is still being filled: wait for the view that is needed."""

import time
from threading import Event

from teacher_cache.errors import MissingRecords
from teacher_cache.layout import Memory, private_memory
from teacher_cache.slab import Slab, read_slab
from teacher_cache.store import Cache, committed_blocks, missing_blocks, open_cache

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
            cache = open_cache(cache.root)
        if view < cache.view_count:
            left = sum(block.view == view for block in missing_blocks(cache))
            if not left:
                return read_slab(cache, view, memory)
        now = len(committed_blocks(cache.root))
        if now != committed:
            committed, since = now, time.monotonic()
        if time.monotonic() - since > timeout_s:
            raise MissingRecords(
                f"cache {cache.root}: view {view} is not filled, and no block was committed for "
                f"{timeout_s:g} s: start cache-teacher again (with --views {view + 1} or more), "
                "then the same command, or give it a longer --follow-timeout-s"
            )
        if cancelled.wait(cache.store.look_every_s()):
            raise MissingRecords(f"cache {cache.root}: stopped while waiting for view {view}")
