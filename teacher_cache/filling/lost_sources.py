"""The images' checksums of shards that have records, but whose source entry a repair took out."""

from collections.abc import Mapping

import google_crc32c
import numpy as np

from teacher_cache.cache.blocks import committed_blocks, read_entry
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.slab import absent_rows_in, committed_files
from teacher_cache.errors import ImagesChanged
from teacher_cache.images.index import ImageIndex


def restore_lost_sources(cache: Cache, index: ImageIndex, producer: Mapping[str, str]) -> list[int]:
    """Read the images of such shards again, and commit their checksums if the records name them.

    Every block names the file of its images' checksums by its SHA-256, so what is read now is
    proved to be what the teacher read.

    Args:
        cache: to be filled further.
        index: its rows over the data folder.
        producer: who reads them.

    Returns:
        The shards whose checksums were restored.

    Raises:
        ImagesChanged: the images are not those that the records are of.
        OSError: an image cannot be read.
    """
    first = {block.shard: block for block in sorted(committed_blocks(cache.place), reverse=True)}
    lost = sorted(set(first) - set(cache.sources.committed_shards()))
    for shard in lost:
        entry = read_entry(cache, first[shard])
        if entry is None:
            continue
        rows = cache.rows(shard)
        absent = absent_rows_in(cache, entry, committed_files(cache, entry))
        crc = np.array([google_crc32c.value(index.read(row)) for row in rows], np.uint32)
        if cache.sources.file_of(shard, crc)[0].sha256 != entry.source_sha256:
            raise ImagesChanged(
                f"cache {cache.place}: the images of rows {rows.start}-{rows.stop - 1} are not "
                "those that its records are of: restore the images that the cache was begun "
                "with, or fill a new cache with another --out"
            )
        cache.sources.commit(shard, crc, absent, producer)
    return lost
