"""What is damaged in a cache taken out, to be computed anew; what describes it, written anew."""

from datetime import UTC, datetime

from teacher_cache.store import Cache, restore_descriptions, withdraw_block
from teacher_cache.verify import Verification


def repair(cache: Cache, found: Verification) -> None:
    """Take damaged blocks and strays out into quarantine, and restore descriptions.

    Sound records stay untouched.
    """
    folder = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    restore_descriptions(cache)
    for block in sorted({damage.block for damage in found.damage if damage.block}):
        withdraw_block(cache, block, folder)
    cache.store.sweep()
    with cache.store.alone():
        cache.store.quarantine(found.strays, folder)
