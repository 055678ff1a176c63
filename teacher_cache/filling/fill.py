"""The one-off job: every missing tile rendered, shown to the teacher, and committed."""

import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version

import torch

from teacher_cache.cache.blocks import write_block
from teacher_cache.cache.cache import Cache, require_in_place
from teacher_cache.filling.batch_records import BatchRecords, ask, block_of, commit_images
from teacher_cache.filling.lost_sources import restore_lost_sources
from teacher_cache.filling.tiles import Count, TakenTile, take_tiles, tiles_come_free
from teacher_cache.images.index import ImageIndex, allowed_unreadable
from teacher_cache.loading.loader import Loader, LoaderSettings, rendered
from teacher_cache.loading.queue import Rendered
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.machine import processor
from teacher_cache.progress import Job, Progress
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.stopwatch import Stopwatch
from teacher_cache.storage.ledger import BlockId
from teacher_cache.teacher.networks import Teacher

POLL_S = 0.5
"""How often a job that waits for pixels looks whether it shall stop."""

LOOK_EVERY_S = 10.0
"""How often a long tile says where its time goes; every tile's end says so in any case."""


def fill(
    cache: Cache,
    index: ImageIndex,
    teacher: Teacher,
    recipe: CacheRecipe,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Job:
    """Compute and commit every missing tile; closing the job commits the tile that it is computing.

    Any number of processes may fill one cache, join and die: each takes the next tile that the
    ledger lacks and that no living process has claimed, first those of its own rank, then the
    others'. Workers decode and render ahead of the teacher, and a thread commits behind it.

    A record depends on the recipe alone: batches are cut inside a block, the last one is padded to
    the full batch size, and neither tile, rank, restart nor order reaches the teacher.

    Args:
        cache: from `opening.open_or_create`.
        index: the cache's rows over the data folder.
        teacher: as in the cache's manifest.
        recipe: batch size, tile size, workers, and what becomes of unreadable images.
        rank: this process's number, 0 to world_size - 1.
        world_size: how many processes are meant to fill this cache.

    Raises:
        ImagesError: an unreadable image, unless `images.skip_unreadable`.
        CacheError: the cache was moved, removed or replaced meanwhile.
        WorkerDied: a loader's worker was killed or crashed; committed blocks stay.
        UserError: two batches of a tile do not fit into `loader.memory_mb`.
        OSError, StoreError: the disk or store cannot be written; committed blocks stay.
    """
    restore_lost_sources(cache, index, _producer(teacher))
    count, pace = Count(cache), _Pace()
    more = True
    try:
        while more:
            tiles = take_tiles(cache, recipe, rank, world_size)
            yield from _fill_tiles(tiles, count, pace, index, teacher, recipe)
            more = yield from tiles_come_free(count, recipe.storage.views_per_tile)
        require_in_place(cache)  # a cache that was moved away is not complete
    except GeneratorExit:
        count.look_now()
        return count.progress(0, pace.written())
    finally:
        count.close()
    return None


def _fill_tiles(
    tiles: Iterator[TakenTile],
    count: Count,
    pace: "_Pace",
    index: ImageIndex,
    teacher: Teacher,
    recipe: CacheRecipe,
) -> Iterator[Progress]:
    """Start workers, fill the tiles that are claimed, and release the claims of unfinished ones."""
    settings = LoaderSettings(
        workers=recipe.loader.workers,
        memory_mb=recipe.loader.memory_mb,
        pinned=teacher.device.type == "cuda",
        lower="teacher.batch_size or storage.views_per_tile",
    )
    largest = (recipe.storage.views_per_tile, recipe.teacher.batch_size)
    work: deque[TakenTile] = deque()
    renderer = ViewRenderer.of(index, recipe.views)
    try:
        with (
            rendered(renderer, _requests(tiles, work), settings, largest=largest) as stream,
            ThreadPoolExecutor(1, thread_name_prefix="commit") as committer,
        ):
            yield from _fill(count, pace, index, teacher, recipe, stream, work, committer)
    finally:
        for unfinished in work:
            unfinished.claim.release()


def _fill(
    count: Count,
    pace: "_Pace",
    index: ImageIndex,
    teacher: Teacher,
    recipe: CacheRecipe,
    stream: Loader,
    work: "deque[TakenTile]",
    committer: ThreadPoolExecutor,
) -> Iterator[Progress]:
    producer = _producer(teacher)
    allowed = allowed_unreadable(len(index), recipe.images.max_unreadable)
    yield count.progress(0)
    commit: Future[int] | None = None
    answers: list[BatchRecords] = []
    done, closing = 0, False
    for batch in _polled(stream, pace.watch):
        if batch is not None:
            with pace.watch.during("teacher"):
                answers.append(ask(teacher, batch, recipe, index, count.cache.sources))
            done += len(batch.request.rows) * len(work[0].views)
        is_whole = bool(answers) and len(answers) == len(work[0].requests)
        if not closing:
            try:
                yield count.progress(done, pace.metrics(now=is_whole))
            except GeneratorExit:
                closing = True  # finish and commit the tile, then stop
        if is_whole:
            if commit is not None:
                with pace.watch.during("write"):
                    pace.bytes += commit.result()  # of the tile before; if it failed, the job stops
            tile = work.popleft()
            count.add(tile)
            commit = committer.submit(_commit, count.cache, tile, answers, producer, allowed)
            answers, done = [], 0
        if closing and not answers:
            break
    if commit is not None:
        pace.bytes += commit.result()
    if not closing and (count.look_now() or pace.bytes):
        yield count.progress(0, pace.written())  # others may have committed, too


def _polled(stream: Loader, watch: Stopwatch) -> Iterator[Rendered | None]:
    """The batches in turn; None after each half second without one, so that the job can end."""
    while True:
        with watch.during("data_wait"):
            is_ready = stream.ready(POLL_S)
            batch = next(stream, None) if is_ready else None
        if is_ready and batch is None:
            return
        yield batch


@dataclass(slots=True)
class _Pace:
    """What the loop waits for (pixels, the teacher, the tile that is being written), and bytes."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    looked: float = field(default_factory=time.monotonic)
    bytes: int = 0
    """What this process has committed."""

    def metrics(self, *, now: bool) -> dict[str, float]:
        """Shares of wall time since they were last told; empty unless `now` or that is long ago."""
        if not now and time.monotonic() - self.looked < LOOK_EVERY_S:
            return {}
        self.looked = time.monotonic()
        return {**self.watch.shares("data_wait", "teacher", "write"), **self.written()}

    def written(self) -> dict[str, float]:
        """What this process has committed, as a metric."""
        return {"bytes": float(self.bytes)}


def _requests(taken: Iterator[TakenTile], work: "deque[TakenTile]") -> Iterator[Request]:
    """The requests of tiles as they are claimed; `work` tells the consumer which tiles."""
    for tile in taken:
        work.append(tile)
        yield from tile.requests


def _commit(
    cache: Cache,
    tile: TakenTile,
    answers: list[BatchRecords],
    producer: Mapping[str, str],
    allowed_unreadable: int,
) -> int:
    try:
        require_in_place(cache)
        commit_images(
            cache, tile.shard, answers, allowed_unreadable=allowed_unreadable, producer=producer
        )
        return sum(
            write_block(cache, block_of(BlockId(view, tile.shard), g, answers), producer)
            for g, view in enumerate(tile.views)
        )
    finally:
        tile.claim.release()


def _producer(teacher: Teacher) -> dict[str, str]:
    cuda = teacher.device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(teacher.device) if cuda else processor(),
        "torch": torch.__version__,
        "timm": version("timm"),
    }
