"""Who does what: the tiles that the ledger lacks, taken one by one by whoever is free.

B rows of a batch, G views of a tile.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from teacher_cache.ledger import BlockId, committed_blocks, is_committed
from teacher_cache.loader import Request
from teacher_cache.place import Claim
from teacher_cache.progress import Progress
from teacher_cache.recipe import CacheRecipe
from teacher_cache.store import Cache, missing_blocks

_TRIED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Tile:
    """One shard of rows under several views: the unit of work, so that one decode serves all."""

    shard: int
    views: tuple[int, ...]


def missing_tiles(cache: Cache, views_per_tile: int) -> list[Tile]:
    """What the ledger lacks, cut into tiles, lower views first."""

    def place(block: BlockId) -> tuple[int, int]:
        return block.view // views_per_tile, block.shard

    blocks = sorted(missing_blocks(cache), key=place)
    return [
        Tile(shard, tuple(sorted(block.view for block in group)))
        for (_, shard), group in groupby(blocks, key=place)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A tile that this process holds, what is missing of it, and its batches."""

    held: Claim
    shard: int
    views: tuple[int, ...]
    requests: list[Request]


def take_tiles(cache: Cache, recipe: CacheRecipe, rank: int, world_size: int) -> Iterator[Work]:
    """Tile after tile that nobody holds, until all that are left belong to living processes."""
    found = True
    while found:
        found = False
        tiles = missing_tiles(cache, recipe.storage.views_per_tile)
        others = [tile for place, tile in enumerate(tiles) if place % world_size != rank]
        for tile in [*tiles[rank::world_size], *others]:
            held = cache.store.claim(_name_of(tile))
            if held is None:
                continue
            views = tuple(
                v for v in tile.views if not is_committed(cache.root, BlockId(v, tile.shard))
            )
            if not views:
                held.release()
                continue
            found = True
            requests = _batches(cache, Tile(tile.shard, views), recipe.teacher.batch_size)
            yield Work(held, tile.shard, views, requests)


def tiles_come_free(count: "Count", views_per_tile: int) -> Generator[Progress, None, bool]:
    """Wait for the tiles of others; whether one is to be taken, because its writer was killed.

    On a disk there is nothing to wait for. In a bucket a killed writer's claims stand for a while.
    """
    cache = count.cache
    deadline = time.monotonic() + cache.store.claims_outlive_s()
    while time.monotonic() < deadline and (tiles := missing_tiles(cache, views_per_tile)):
        for tile in tiles[:_TRIED_AT_ONCE]:
            if (held := cache.store.claim(_name_of(tile))) is not None:
                held.release()
                return True
        time.sleep(1.0)
        count.look()
        yield count.progress(0)
    return False


class Count:
    """Records of the whole cache: this process's, and those that others commit meanwhile."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.own: set[BlockId] = set()
        self.total = len(cache.index) * cache.view_count
        self.finished = 0
        self.own_records = 0
        self.look()
        self.resumed = self.finished

    def look(self) -> bool:
        """Read the ledger; whether the count changed."""
        before = self.finished
        blocks = self.own | {
            block
            for block in committed_blocks(self.cache.root)
            if block.view < self.cache.view_count
        }
        self.finished = sum(len(self.cache.rows(block.shard)) for block in blocks)
        return self.finished != before

    def add(self, tile: Work) -> None:
        """Count a tile of this process's as finished."""
        self.own |= {BlockId(view, tile.shard) for view in tile.views}
        self.own_records += len(tile.views) * len(self.cache.rows(tile.shard))
        self.look()

    def progress(self, at_hand: int, metrics: Mapping[str, float] | None = None) -> Progress:
        """Where the job is, with `at_hand` records of the tile that is being computed."""
        done = min(self.finished + at_hand, self.total)
        own = self.own_records + at_hand
        return Progress(done, self.total, "records", metrics or {}, self.resumed, own)


def _name_of(tile: Tile) -> str:
    return f"tile-{tile.shard}-{tile.views[0]}"


def _batches(cache: Cache, tile: Tile, batch_size: int) -> list[Request]:
    rows = np.array(cache.rows(tile.shard))
    return [
        Request(rows[start : start + batch_size], tile.views)
        for start in range(0, len(rows), batch_size)
    ]
