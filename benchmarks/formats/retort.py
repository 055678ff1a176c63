"""Retort's own cache, through its public API: everything of it that the comparison needs.

The cache's recipe, manifest and image index are made once for all views, so `prepare` is no part of
writing a view, and `index_bytes` no part of its bytes.
"""

from pathlib import Path

from benchmarks import records as benchmark_records
from benchmarks.formats.rows import LoadedView, Rows, bytes_below
from benchmarks.sizes import INDEX
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.record import Encoding, TopK
from teacher_cache.storage.disk import Disk


def prepare(encoding: Encoding, folder: Path, records: TopK) -> None:
    """An empty cache for these records, and the checksums of its images."""
    benchmark_records.cache_of(folder, records, encoding)


def write(folder: Path, records: TopK) -> None:
    """Every block of a view, flushed to the disk and committed."""
    benchmark_records.fill(open_cache(Disk(folder)), records)


def index_bytes(folder: Path) -> int:
    """Bytes that no further view adds: manifest, descriptions, image index and checksums."""
    once = {*INDEX, "source", "zarr.json"}
    parts = (path for path in folder.iterdir() if path.name in once)
    return sum(bytes_below(path) if path.is_dir() else path.stat().st_size for path in parts)


class Reader(LoadedView):
    """Loads and checks the view at the first read."""

    def __init__(self, folder: Path) -> None:
        self._cache = open_cache(Disk(folder))

    def read_all(self) -> Rows:
        slab = read_slab(self._cache, 0)
        return Rows(slab.ids_NK, slab.logp_NK, slab.tail_NT)
