"""The tiles that the ledger lacks: each is claimed by the first process that is free.

B rows of a batch, G views of a tile.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from teacher_cache.cache.blocks import committed_blocks, is_committed, missing_blocks
from teacher_cache.cache.cache import Cache
from teacher_cache.loading.renderers import Request
from teacher_cache.progress import Progress
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.storage.ledger import BlockId
from teacher_cache.storage.place import Claim

_TRIED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Tile:
    """One shard of rows under several views: the unit of work, so that one decode serves all."""

    shard: int
    first: int
    """Its first view, missing or not: a tile is claimed under one name however full it is."""
    views: tuple[int, ...]
    """Those that are missing."""


def missing_tiles(cache: Cache, views_per_tile: int) -> list[Tile]:
    """The blocks that the ledger lacks, cut into tiles, lower views first."""

    def place(block: BlockId) -> tuple[int, int]:
        return block.view - block.view % views_per_tile, block.shard

    blocks = sorted(missing_blocks(cache), key=place)
    return [
        Tile(shard, first, tuple(sorted(block.view for block in group)))
        for (first, shard), group in groupby(blocks, key=place)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class TakenTile:
    """A tile that this process has claimed: the views that it lacks, and its batches."""

    claim: Claim
    shard: int
    views: tuple[int, ...]
    requests: list[Request]


def take_tiles(
    cache: Cache, recipe: CacheRecipe, rank: int, world_size: int
) -> Iterator[TakenTile]:
    """Claim tile after tile, until living processes have claimed all that are missing."""
    found = True
    while found:
        found = False
        tiles = missing_tiles(cache, recipe.storage.views_per_tile)
        others = [tile for place, tile in enumerate(tiles) if place % world_size != rank]
        for tile in [*tiles[rank::world_size], *others]:
            claim = cache.place.claim(_name_of(tile))
            if claim is None:
                continue
            views = tuple(
                v for v in tile.views if not is_committed(cache.place, BlockId(v, tile.shard))
            )
            if not views:
                claim.release()
                continue
            found = True
            requests = _batches(cache, tile.shard, views, recipe.teacher.batch_size)
            yield TakenTile(claim, tile.shard, views, requests)


def tiles_come_free(count: "Count", views_per_tile: int) -> Generator[Progress, None, bool]:
    """Wait for the tiles of others. Return whether one is to be taken: its writer was killed.

    On a disk there is nothing to wait for. In a bucket a killed writer's claims stand for a while.
    """
    cache = count.cache
    deadline = time.monotonic() + cache.place.claims_outlive_s()
    while time.monotonic() < deadline and (tiles := missing_tiles(cache, views_per_tile)):
        for tile in tiles[:_TRIED_AT_ONCE]:
            if (claim := cache.place.claim(_name_of(tile))) is not None:
                claim.release()
                return True
        time.sleep(1.0)
        count.look_now()
        yield count.progress(0)
    return False


def unclaimed_tiles(cache: Cache, views_per_tile: int) -> list[Tile]:
    """The tiles that lack blocks and that no living writer has claimed."""
    found = []
    for tile in missing_tiles(cache, views_per_tile):
        if (claim := cache.place.claim(_name_of(tile))) is not None:
            claim.release()
            found.append(tile)
    return [tile for tile in found if not all(_is_there(cache, tile))]


def _is_there(cache: Cache, tile: Tile) -> list[bool]:
    return [is_committed(cache.place, BlockId(view, tile.shard)) for view in tile.views]


class Count:
    """Records of the whole cache: this process's, and those that others commit meanwhile.

    The ledger is listed by a thread: in a bucket of 120,000 blocks a listing takes ten seconds, and
    the teacher shall not wait for it.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.own: set[BlockId] = set()
        self.total = len(cache.index) * cache.view_count
        self.finished = 0
        self.own_records = 0
        self._listed: set[BlockId] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._listing: Future[set[BlockId]] | None = None
        self.look_now()
        self.resumed = self.finished

    def look(self) -> None:
        """Count what the last listing found, and begin another one unless one is under way."""
        if self._listing is not None and self._listing.done():
            self._listed = self._listing.result()
            self._listing = None
        if self._listing is None:
            self._listing = self._thread.submit(committed_blocks, self.cache.place)
        self._sum()

    def look_now(self) -> bool:
        """List the ledger, wait for it, and return whether the count changed."""
        before = self.finished
        self._listed = committed_blocks(self.cache.place)
        self._sum()
        return self.finished != before

    def close(self) -> None:
        """Wait for a listing that is under way, and start no other."""
        self._thread.shutdown()

    def _sum(self) -> None:
        views, shards = self.cache.view_count, self.cache.layout.shards
        blocks = {b for b in self._listed if b.view < views and b.shard < shards} | self.own
        self.finished = sum(len(self.cache.rows(block.shard)) for block in blocks)

    def add(self, tile: TakenTile) -> None:
        """Count a tile of this process's as finished."""
        self.own |= {BlockId(view, tile.shard) for view in tile.views}
        self.own_records += len(tile.views) * len(self.cache.rows(tile.shard))
        self.look()

    def progress(self, computed: int, metrics: Mapping[str, float] | None = None) -> Progress:
        """Where the job is, with `computed` records of the tile that is being computed."""
        done = min(self.finished + computed, self.total)
        own = self.own_records + computed
        return Progress(done, self.total, "records", metrics or {}, self.resumed, own)


def _name_of(tile: Tile) -> str:
    return f"tile-{tile.shard}-{tile.first}"


def _batches(cache: Cache, shard: int, views: tuple[int, ...], batch_size: int) -> list[Request]:
    rows = np.array(cache.rows(shard))
    return [
        Request(rows[start : start + batch_size], views)
        for start in range(0, len(rows), batch_size)
    ]
