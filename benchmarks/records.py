"""Records to measure a cache with: simulated ones, and a real cache's.

B rows of a batch, K kept classes, L = K + 1, C classes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacher_cache.cache.blocks import Block, missing_blocks, write_block
from teacher_cache.cache.cache import Cache, create_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.cache.teacher_sample import TeacherSample, keep_sample
from teacher_cache.format.manifest import Manifest
from teacher_cache.images.index import ImageIndex
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.record import Encoding, TopK
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.answers import top_k

CLASSES = 1_000
PART = 4_096


def simulated_logits(rows: int, seed: int) -> Tensor:
    """A label's logit 5 to 12 above a Gaussian's, two dozen related classes between."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn((rows, CLASSES), generator=g)
    label = torch.randint(CLASSES, (rows, 1), generator=g)
    related = (label + torch.randint(1, 40, (rows, 24), generator=g)) % CLASSES
    logits.scatter_add_(1, related, 3 * torch.rand((rows, 24), generator=g))
    logits.scatter_add_(1, label, 5 + 7 * torch.rand((rows, 1), generator=g))
    return logits


def simulated(rows: int, k: int, temperatures: tuple[float, ...] = (1.0,)) -> TopK:
    """What the cache would hold of simulated logits."""
    return joined(
        top_k(simulated_logits(min(PART, rows - at), at), k=k, temperatures=temperatures)
        for at in range(0, rows, PART)
    )


def real(cache: Cache, k: int) -> TopK:
    """All views' records of a cache, one after the other, cut to k classes, the tail at 1."""
    column = cache.manifest.parsed_recipe().topk.temperatures.index(1.0)
    parts = []
    for view in range(cache.view_count):
        slab = read_slab(cache, view)
        outside = np.concatenate([slab.logp_NK[:, k:], slab.tail_NT[:, column : column + 1]], 1)
        tail = np.logaddexp.reduce(outside.astype(np.float64), axis=1, keepdims=True)
        parts.append(TopK(slab.ids_NK[:, :k], slab.logp_NK[:, :k], tail.astype(np.float16)))
    return joined(parts)


def joined(parts: "Iterator[TopK] | list[TopK]") -> TopK:
    found = list(parts)
    return TopK(
        np.concatenate([part.ids_BK for part in found]),
        np.concatenate([part.logp_BK for part in found]),
        np.concatenate([part.tail_BT for part in found]),
    )


def cache_of(
    root: Path, topk: TopK, encoding: Encoding = Encoding.DEFAULT, classes: int = CLASSES
) -> Cache:
    """A cache of these records in one view, named as ImageNet's files are."""
    rows, k = topk.ids_BK.shape
    document = {
        "teacher": {"model": "beitv2_base_patch16_224"},
        "views": {"count": 1},
        "topk": {"k": k, "temperatures": [float(2**n) for n in range(topk.tail_BT.shape[1])]},
        "storage": {"encoding": encoding.value},
    }
    recipe = parse_recipe(document, CacheRecipe, source="benchmark")
    keys = tuple(f"n{row % classes:08}/n{row % classes:08}_{row}.JPEG" for row in range(rows))
    names = {f"n{c:08}": c for c in range(classes)}
    index = ImageIndex(root, keys, np.arange(rows) % classes, names)
    manifest = Manifest(
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe.digest(),
        index_digest=index.digest(),
        image_count=rows,
        class_count=classes,
        teacher={"weights_sha256": "0" * 64},
        pixel_engine="pillow-1",
        pixel_libraries={},
        versions={},
    )
    cache = create_cache(Disk(root), manifest, index)
    for shard in range(cache.layout.shards):
        crc = np.array(cache.rows(shard), np.uint32) * np.uint32(2_654_435_761)
        cache.sources.commit(shard, crc, frozenset(), {})
    first = TopK(topk.ids_BK[:1], topk.logp_BK[:1], topk.tail_BT[:1])
    row = np.zeros(1, np.int64)
    said = np.exp(first.logp_BK[:, 0].astype(np.float32))
    sample = TeacherSample(row, row, first.ids_BK, first.logp_BK, first.tail_BT, said)
    keep_sample(cache, sample)
    return cache


def fill(cache: Cache, topk: TopK) -> Cache:
    """Commit the records, block by block."""
    for block in missing_blocks(cache):
        rows = slice(cache.rows(block.shard).start, cache.rows(block.shard).stop)
        part = TopK(topk.ids_BK[rows], topk.logp_BK[rows], topk.tail_BT[rows])
        checks = np.arange(rows.start // 32, -(-rows.stop // 32), dtype=np.uint32)
        write_block(cache, Block(block, part, checks * np.uint32(2_654_435_761)), {})
    return cache


def shown(logp_BK: np.ndarray, tail_B1: np.ndarray) -> Tensor:
    """float64 [B, L] log-probabilities as the loss sees them: kept classes and tail, sum 1."""
    scores = np.concatenate([logp_BK, tail_B1], axis=1).astype(np.float64)
    return torch.log_softmax(torch.from_numpy(scores), dim=1)


def dense(logits_BC: Tensor, ids_BK: np.ndarray) -> Tensor:
    """float64 [B, L] the teacher's own log-probabilities of the same classes and of the rest."""
    log_p_BC = torch.log_softmax(logits_BC.double(), dim=1)
    ids = torch.from_numpy(ids_BK.astype(np.int64))
    rest_B1 = log_p_BC.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_p_BC.gather(1, ids), rest_B1], dim=1)


def mean_kl(log_p_BL: Tensor, log_q_BL: Tensor) -> float:
    """Mean KL(p || q) in nats."""
    terms_BL = log_p_BL.exp() * (log_p_BL - log_q_BL)
    return float(torch.where(log_p_BL.isneginf(), 0.0, terms_BL).sum(1).mean())
