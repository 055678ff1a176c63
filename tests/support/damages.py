"""One block of the small cache, to be damaged, and what the cache is filled up from."""

from teacher_cache.cache.blocks import Block, missing_blocks, write_block
from teacher_cache.cache.slab import read_slab
from teacher_cache.record import TopK
from teacher_cache.storage.ledger import BlockId

BLOCK = BlockId(1, 2)


FILES = ("ids/c.1.2.0", "logp/c.1.2.0", "tail/c.1.2.0", "check/c.1.2", "ledger/1/2.json")


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def files_of(root):
    """What lies in a cache besides what repairs have taken out."""
    found = contents(root)
    return {path: data for path, data in found.items() if "quarantine" not in path.parts}


def refill(cache, source):
    """What cache-teacher does for the blocks that are missing, with another cache's records."""
    for block in missing_blocks(cache):
        slab, rows = read_slab(source, block.view), cache.rows(block.shard)
        part = slice(rows.start, rows.stop)
        topk = TopK(slab.ids_NK[part], slab.logp_NK[part], slab.tail_NT[part])
        check = slab.check[rows.start // 32 : -(-rows.stop // 32)]
        write_block(cache, Block(block, topk, check), {"host": "test"})
