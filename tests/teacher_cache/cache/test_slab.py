"""The records of a view, read whole or for the rows that a process needs."""

import numpy as np
import pytest
from caches import block_of, filled_cache, index_of, manifest_of
from hypothesis import given
from hypothesis import strategies as st
from small import cache_recipe

from teacher_cache.cache.blocks import write_block
from teacher_cache.cache.cache import create_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.errors import DamagedRecords
from teacher_cache.record import Encoding
from teacher_cache.storage.disk import Disk

ROWS = 20_000
"""Three shards of two chunks each; the last chunk is not full, and one is not there."""


@pytest.fixture(scope="module", params=list(Encoding))
def cache(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("slab") / request.param.value
    changes = {"storage__rows_per_shard": 8192, "storage__encoding": request.param.value}
    return filled_cache(root, rows=ROWS, views__count=2, **changes)


def assert_records_of(slab, whole, rows):
    at = slab.positions_of(rows)
    for name in ("ids_NK", "logp_NK", "tail_NT"):
        found, expected = getattr(slab, name)[at], getattr(whole, name)[rows]
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 8, 5000])
def test_the_shares_of_processes_are_together_the_whole_view(cache, view, count):
    whole, order = read_slab(cache, view), np.random.default_rng(count).permutation(ROWS)
    for share in np.array_split(order, count)[:8]:
        slab = read_slab(cache, view, np.sort(share))
        assert len(slab.ids_NK) == len(slab.logp_NK) == len(slab.tail_NT) == len(share)
        assert_records_of(slab, whole, share)
        np.testing.assert_array_equal(slab.check, whole.check)
        assert (slab.view, slab.absent_rows) == (view, whole.absent_rows)


@given(edges=st.sets(st.sampled_from([0, 1, 4095, 4096, 8191, 8192, 16_384, 19_999])))
def test_rows_at_the_edges_of_chunks_and_shards_are_kept(cache, edges):
    rows = np.array(sorted(edges), np.int64)
    assert_records_of(read_slab(cache, 0, rows), read_slab(cache, 0), rows)


def test_a_row_that_was_not_kept_is_no_other_rows_record(cache):
    slab = read_slab(cache, 0, np.array([3, 5, 4096]))
    assert slab.positions_of(np.array([4096, 3])).tolist() == [2, 0]
    for rows in ([4], [3, 6], [4097], [-1]):
        with pytest.raises(ValueError, match="view 0: asked for records of rows that were not"):
            slab.positions_of(np.array(rows))


@pytest.mark.parametrize("rows", [[2, 1], [1, 1], [-1, 4], [4, ROWS]])
def test_rows_to_keep_are_in_ascending_order_and_of_the_view(cache, rows):
    with pytest.raises(ValueError, match=f"not in ascending order below {ROWS}"):
        read_slab(cache, 0, np.array(rows))


@pytest.mark.parametrize("name", ["ids", "logp", "tail", "check"])
def test_each_process_checks_the_files_of_blocks_that_it_keeps_nothing_of(tmp_path, name):
    cache = filled_cache(tmp_path / "cache")
    path = cache.place.root / name / ("c.1.2" if name == "check" else "c.1.2.0")
    data = path.read_bytes()
    path.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
    with pytest.raises(DamagedRecords, match=rf"view 1, rows 64-89: {name}/c.1.2"):
        read_slab(cache, 1, np.arange(10))


def test_absent_rows_are_those_of_the_whole_view_whichever_rows_are_kept(tmp_path):
    index = index_of(90)
    cache = create_cache(Disk(tmp_path / "cache"), manifest_of(cache_recipe(), index), index)
    for shard in range(3):
        crc = np.arange(len(cache.rows(shard)), dtype=np.uint32)
        cache.sources.commit(shard, crc, frozenset({33, 40} if shard == 1 else ()), {})
    for block in cache.blocks():
        write_block(cache, block_of(cache, block), {})
    assert read_slab(cache, 0).absent_rows == {33, 40}
    assert read_slab(cache, 0, np.arange(5)).absent_rows == {33, 40}
