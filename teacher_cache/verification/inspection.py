"""What a cache holds, read off the manifest and the ledger, not off the records."""

from collections import Counter
from functools import partial
from typing import Any

from teacher_cache.cache.blocks import committed_blocks, read_entry
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.teacher_sample import read_sample
from teacher_cache.errors import DamagedRecords


def inspect(cache: Cache) -> dict[str, Any]:
    """Facts by name: what it was made from, how far it is filled, what it weighs.

    Raises:
        DamagedRecords: a ledger entry that cannot be read, or that another cache's ledger holds.
    """
    recipe = cache.manifest.parsed_recipe()
    grid = set(cache.blocks())
    blocks = sorted(committed_blocks(cache.place) & grid)
    entries = list(cache.place.in_order(partial(read_entry, cache), blocks))
    if None in entries:
        raise DamagedRecords(f"{cache.place}: its ledger changed while it was read: try again")
    known = [entry for entry in entries if entry is not None]
    records = sum(len(cache.rows(entry.block.shard)) for entry in known)
    stored = sum(file.size for entry in known for file in entry.files)
    everything = cache.place.total_bytes()
    absent = sorted(cache.sources.absent_rows())
    missing = {block.view for block in grid.difference(blocks)}
    filled = Counter(entry.block.view for entry in known)
    return {
        "cache": str(cache.place),
        "cache id": cache.manifest.cache_id,
        "teacher": recipe.teacher.name,
        "teacher weights": cache.manifest.teacher_weights_sha256,
        **_sampled(cache),
        "recipe digest": cache.manifest.recipe_digest,
        "images": len(cache.index),
        "classes": cache.manifest.class_count,
        "views": cache.view_count,
        "complete views": cache.view_count - len(missing),
        "incomplete views": {
            str(view): f"{filled[view]} of {cache.layout.shards} blocks" for view in sorted(missing)
        },
        "size": recipe.views.size,
        "k": recipe.topk.k,
        "temperatures": list(recipe.topk.temperatures),
        "encoding": recipe.storage.encoding.value,
        "records": records,
        "records of a full cache": len(cache.index) * cache.view_count,
        "bytes of records": stored,
        "bytes of index and metadata": everything - stored,
        "bytes a record": round(stored / records, 1) if records else None,
        "bytes a record, all counted": round(everything / records, 1) if records else None,
        "pixel engine": cache.manifest.pixel_engine,
        "absent images": [cache.index.keys[row] for row in absent],
    }


def _sampled(cache: Cache) -> dict[str, Any]:
    """How the teacher did on the sample that it was asked before the first block."""
    sample = read_sample(cache)
    if sample is None:
        return {}
    return {
        "teacher top-1 of a sample": round(sample.top1, 4),
        "teacher mean probability of the label": round(sample.mean_probability, 4),
        "images of the sample": len(sample.rows),
    }
