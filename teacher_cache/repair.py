"""What is damaged in a cache taken out, to be computed anew; what describes it, written anew."""

import json

from teacher_cache.arrays import array_documents, shard_key, views_described
from teacher_cache.errors import CacheError
from teacher_cache.layout import RECORD_ARRAYS
from teacher_cache.ledger import BlockId, committed_blocks, is_committed
from teacher_cache.place import Root, place_of
from teacher_cache.store import Cache, drop_block, read_origin
from teacher_cache.verify import Verification


def repair(cache: Cache, found: Verification) -> None:
    """Drop damaged blocks and strays and restore descriptions; sound records stay untouched."""
    for block in sorted({damage.block for damage in found.damage if damage.block}):
        drop_block(cache, block)
    if wrong := [damage.file for damage in found.damage if damage.block is None]:
        documents = array_documents(cache.manifest, len(cache.index))
        for file in wrong:
            document = documents[file.partition("/")[0]]
            document["shape"][0] = cache.view_count
            cache.store.replace(file, json.dumps(document, indent=2).encode())
    cache.store.sweep()
    with cache.store.alone():
        for key in found.strays:
            owner = _block_of(key)
            if owner is None or not is_committed(cache.root, owner):  # it may be, by now
                cache.store.remove(key)


def restore_descriptions(root: Root) -> list[str]:
    """Write anew the record arrays' `zarr.json` that cannot be read at all; which they were.

    Without them a cache cannot be opened. The manifest says what they hold but the number of views,
    which the other arrays say, or else the ledger.

    Raises:
        CacheError: as `read_origin`.
    """
    manifest, index = read_origin(root)
    views: list[int] = []
    unreadable = []
    for name in RECORD_ARRAYS:
        try:
            views.append(views_described(root, name))
        except CacheError:
            unreadable.append(name)
    documents = array_documents(manifest, len(index)) if unreadable else {}
    views = views or [1 + max((block.view for block in committed_blocks(root)), default=-1)]
    for name in unreadable:
        documents[name]["shape"][0] = max(manifest.parsed_recipe().views.count, min(views))
        document = json.dumps(documents[name], indent=2).encode()
        place_of(root).replace(f"{name}/zarr.json", document)
    return [f"{name}/zarr.json" for name in unreadable]


def _block_of(key: str) -> BlockId | None:
    """Whose shard a path below the cache is."""
    match key.split("/"):
        case (name, "c", view, shard, *_) if name in RECORD_ARRAYS and (view + shard).isdigit():
            block = BlockId(int(view), int(shard))
            return block if shard_key(name, block) == key else None
    return None
