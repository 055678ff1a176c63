"""What is damaged in a cache moved into quarantine, and what can be derived written anew.

Nothing is deleted but what killed writers left on the workbench, sound blocks are never touched,
and neither are others' files.
"""

from datetime import UTC, datetime

from teacher_cache.cache.blocks import withdraw_block
from teacher_cache.cache.cache import Cache, open_undescribed, restore_descriptions
from teacher_cache.format.arrays import source_shard_key
from teacher_cache.storage.keys import LOCK_KEY, QUARANTINE, STAGING
from teacher_cache.storage.ledger import (
    BlockId,
    block_key,
    blocks_in,
    numbers_in,
    seal,
    source_key,
    views_key,
)
from teacher_cache.verification.verify import (
    Verification,
    checked_block,
    damage_beside_blocks,
    is_named,
)


def repair(cache: Cache, found: Verification) -> tuple[Cache, str]:
    """Move damaged blocks and strays into quarantine, and restore what can be derived.

    Returns:
        The cache as it is now, and the folder below it into which files were moved.

    Raises:
        UnexpectedFolder: something else stands where a folder of the cache should, and nothing was
            changed: what seems damaged may be sound behind it.
    """
    for damage in found.damage:
        cache.place.exists(damage.file)
    cache = open_undescribed(cache.place)
    blocks, beside = _still_damaged(cache, found)
    folder = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if (
        LOCK_KEY in beside
    ):  # A lock that is no regular file locks nothing, and no process could take it.
        cache.place.quarantine([LOCK_KEY], folder)
    for block in blocks:
        withdraw_block(cache, block, folder)
    shards = numbers_in(beside, "source")
    for shard in sorted(shards):
        cache.place.withdraw(source_key(shard), [source_shard_key(shard)], folder)
    beside -= {LOCK_KEY, *map(source_key, shards)}
    for block in sorted(blocks_in(beside)):  # beyond the cache's views or shards
        withdraw_block(cache, block, folder)
    cache.place.sweep()  # only `sweep` can tell which files of the workbench a killed writer left
    with cache.place.alone():
        cache.place.quarantine(sorted(beside), folder)
        # A writer may have committed since, and named files that were strays when they were listed.
        strays = [key for key in found.strays if not key.startswith(f"{STAGING}/")]
        cache.place.quarantine([key for key in strays if not is_named(cache, key)], folder)
    if found.unannounced:
        count = 1 + max(block.view for block in found.unannounced)
        cache.place.add(views_key(count), seal("views", cache.owner, {"views": count}))
    mended = open_undescribed(cache.place)
    restore_descriptions(mended)
    return mended, f"{QUARANTINE}/{folder}"


def _still_damaged(cache: Cache, found: Verification) -> tuple[list[BlockId], set[str]]:
    """Look again at the damage that was found: blocks, and keys of other files, still damaged now.

    Reading a large cache takes hours. What another repair took out meanwhile, and a writer computed
    anew, is sound and stays.
    """
    blocks = sorted({damage.block for damage in found.damage if damage.block})
    beside = {damage.file for damage in found.damage if damage.block is None}
    outside = {block_key(block) for block in blocks_in(beside) if checked_block(cache, block)[0]}
    if beside:
        keys = set(cache.place.keys("ledger"))
        beside &= {damage.file for damage in damage_beside_blocks(cache, keys)}
    return [block for block in blocks if checked_block(cache, block)[0]], beside | outside
