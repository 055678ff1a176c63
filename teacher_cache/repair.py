"""What is damaged in a cache moved into quarantine, and what can be derived written anew.

Nothing is deleted but what killed writers left on the workbench, sound blocks are never touched,
and neither are others' files.
"""

from datetime import UTC, datetime

from teacher_cache.arrays import source_shard_key
from teacher_cache.keys import QUARANTINE, STAGING
from teacher_cache.ledger import blocks_in, numbers_in, seal, source_key, views_key
from teacher_cache.store import Cache, open_undescribed, restore_descriptions, withdraw_block
from teacher_cache.verify import Verification, is_named


def repair(cache: Cache, found: Verification) -> tuple[Cache, str]:
    """Take damaged blocks and strays out into quarantine, and restore what can be derived.

    Returns:
        The cache as it is now, and the folder below it into which files were moved.
    """
    folder = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for block in sorted({damage.block for damage in found.damage if damage.block}):
        withdraw_block(cache, block, folder)
    beside = {damage.file for damage in found.damage if damage.block is None}
    shards = numbers_in(beside, "source")
    for shard in sorted(shards):
        cache.store.withdraw(source_key(shard), [source_shard_key(shard)], folder)
    beside -= {source_key(shard) for shard in shards}
    for block in sorted(blocks_in(beside)):  # outside the cache
        withdraw_block(cache, block, folder)
    cache.store.sweep()  # of the workbench it alone knows what is litter
    with cache.store.alone():
        cache.store.quarantine(sorted(beside), folder)
        # a writer may have committed since they were listed, and named what was a stray then
        strays = [key for key in found.strays if not key.startswith(f"{STAGING}/")]
        cache.store.quarantine([key for key in strays if not is_named(cache, key)], folder)
    if found.unannounced:
        count = 1 + max(block.view for block in found.unannounced)
        cache.store.add(views_key(count), seal("views", cache.owner, {"views": count}))
    mended = open_undescribed(cache.root)
    restore_descriptions(mended)
    return mended, f"{QUARANTINE}/{folder}"
