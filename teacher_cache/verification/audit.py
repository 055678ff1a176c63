"""Ask the teacher again about a sample of records, read and render its images again, and compare.

B rows of a batch, K kept classes, C classes, T temperatures.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from teacher_cache.cache.blocks import committed_blocks
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.slab import Slab, block_name, read_block
from teacher_cache.errors import CacheError
from teacher_cache.format.encodings import kl_cost
from teacher_cache.images.index import ImageIndex
from teacher_cache.loading.queue import Rendered, render_here
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.record import Tail, checked_rows
from teacher_cache.storage.ledger import BlockId
from teacher_cache.teacher.networks import Teacher
from teacher_cache.verification.divergence import bucketed, kl_of_records
from teacher_cache.verification.fidelity import Fidelity, Student, fidelities
from teacher_cache.verification.replay import differing_pixels
from teacher_cache.verification.sampling import KL_LIMIT, TOP1_LIMIT

LEAST_OF_A_BLOCK = 4
"""Records of each block that is looked at, so that one foreign block among many is found."""
OUTLYING_FACTOR = 30
"""A block is not the teacher's if its mean KL is so many times that of the median block. A few
records may be unlucky, and another device model shifts all blocks alike (by 1e-4 nats); records of
another teacher or of other images are off by a thousand times as much."""
NEGLIGIBLE_KL = KL_LIMIT / 10
"""Nats: no block whose mean is below this is foreign, whatever the others are."""
MOMENTS_LIMIT = 0.02
"""How far mean and deviation may be from the live teacher's, in nats, and of its deviation. A row
beyond it counts as one whose best class has flipped."""
CHANCE_OF_FALSE_ALARM = 1e-6
"""A sound block fails by its flipped best classes alone no more often than this."""
_Key = TypeVar("_Key")
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found about the sampled records of one block."""

    block: BlockId
    images_wrong: tuple[str, ...]
    """`n01/a.jpg` of each image whose bytes are not those that the teacher read."""
    pixels_checked: int
    pixels_wrong: tuple[str, ...]
    """`view 3, n01/a.jpg` of each checked row whose pixels differ."""
    kl_NT: np.ndarray
    """[n, T] KL(live || cached) in nats at each temperature, the tail as one class."""
    agree_N: np.ndarray
    """bool [n] whether the live teacher's best class, and its moments, are the cached ones."""
    outside_N: np.ndarray
    """[n] the live teacher's mass outside its k best classes."""
    cosines: Mapping[tuple[float, Tail, Student], np.ndarray]
    """[n] between the gradients of training on records and on the whole answer."""
    lost: Mapping[tuple[float, Tail], np.ndarray]
    """[n] KL(dense || what the record draws a trained-like student to), in nats."""

    @property
    def mean_kl(self) -> float:
        """Nats, at the temperature where it is largest."""
        return float(self.kl_NT.mean(0).max())

    def is_foreign(self, kl_limit: float) -> bool:
        """Whether its records are not the teacher's, while those of other blocks are."""
        flipped = int((~self.agree_N).sum())
        return self.mean_kl > kl_limit or flipped > most_flips(len(self.agree_N))


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found about the sampled records of all blocks."""

    temperatures: tuple[float, ...]
    findings: tuple[Findings, ...]
    """Of each block that was looked at."""
    blocks: int
    """How many the cache has."""
    kl_of_encoding: float
    """The most that the cache's encoding costs on average, in nats: 0 where it is exact."""
    foreign: tuple[str, ...] = field(default=())
    """Blocks whose records are not the teacher's, by view and rows."""

    @property
    def records(self) -> int:
        """How many were compared."""
        return sum(len(each.agree_N) for each in self.findings)

    @property
    def kl_NT(self) -> np.ndarray:  # noqa: N802  (a shape suffix)
        """[records, T] KL(live || cached) in nats."""
        return np.concatenate([each.kl_NT for each in self.findings])

    @property
    def kl_limit(self) -> float:
        """Nats, for the mean of `kl_NT` at every temperature."""
        return KL_LIMIT + self.kl_of_encoding

    @property
    def top1_agreement(self) -> float:
        """Share of records whose best class is the live teacher's."""
        return float(np.concatenate([each.agree_N for each in self.findings]).mean())

    @property
    def images_wrong(self) -> tuple[str, ...]:
        """Names of images whose bytes are not those that the teacher read."""
        return tuple(dict.fromkeys(name for each in self.findings for name in each.images_wrong))

    @property
    def pixels_wrong(self) -> tuple[str, ...]:
        """Views and names of checked rows whose pixels differ."""
        return tuple(name for each in self.findings for name in each.pixels_wrong)

    @property
    def passed(self) -> bool:
        """Whether images and pixels are identical and the teacher agrees within the limits."""
        return not (self.images_wrong or self.pixels_wrong or self.foreign) and (
            float(self.kl_NT.mean(0).max()) <= self.kl_limit and self.top1_agreement >= TOP1_LIMIT
        )


def audit(
    cache: Cache,
    index: ImageIndex,
    teacher: Teacher,
    recipe: CacheRecipe,
    *,
    records: int,
    seed: int,
) -> Audit:
    """Compare a sample of records, some of every block, half of them rows whose pixels are checked.

    Args:
        cache: with at least one block.
        index: the cache's rows over the data folder.
        teacher: the cache's, built anew from the user's own recipe.
        recipe: that recipe.
        records: how many to compare, about.
        seed: another seed, another sample.

    Raises:
        CacheError: no block to compare, or an image that does not decode any more.
    """
    sample = _sample(cache, records, np.random.default_rng(seed))
    found = [_audit_block(cache, index, teacher, recipe, b, rows) for b, rows in sample.items()]
    findings = tuple(each for each in found if each is not None)
    if not findings:
        raise CacheError(f"cache {cache.place} has no records yet, or of absent images alone")
    encoding_kl = kl_cost(recipe.storage.encoding, recipe.topk.k)
    median = float(np.median([each.mean_kl for each in findings]))
    limit = max(NEGLIGIBLE_KL + 10 * encoding_kl, OUTLYING_FACTOR * median)
    foreign = tuple(block_name(cache, each.block) for each in findings if each.is_foreign(limit))
    return Audit(recipe.topk.temperatures, findings, len(cache.blocks()), encoding_kl, foreign)


def report(cache: Cache, result: Audit, *, seed: int) -> dict[str, Any]:
    """The facts to print."""
    means = result.kl_NT.mean(0)
    return {
        "cache": str(cache.place),
        "passed": result.passed,
        "seed": str(seed),  # without thousands separators, to be passed on
        "records": result.records,
        "blocks": f"{len(result.findings)} of {result.blocks}",
        "blocks that are not the teacher's": list(result.foreign),
        "images that differ": list(result.images_wrong),
        "pixels checked": sum(each.pixels_checked for each in result.findings),
        "pixels that differ": list(result.pixels_wrong),
        "KL(live || cached), mean": {
            f"tau {tau:g}": float(f"{mean:.3g}")
            for tau, mean in zip(result.temperatures, means, strict=True)
        },
        "KL(live || cached), limit": float(f"{result.kl_limit:.5g}"),
        "KL of the encoding, at most": float(f"{result.kl_of_encoding:.3g}"),
        "KL(live || cached)": _quantiles(result.kl_NT.max(1)),
        "top-1 agreement": round(result.top1_agreement, 6),
        "top-1 agreement, limit": TOP1_LIMIT,
        "mass outside top-k": _quantiles(
            np.concatenate([each.outside_N for each in result.findings])
        ),
        **_training_report(result),
    }


def _training_report(result: Audit) -> dict[str, dict[str, float]]:
    """What training on the records is to training on whole answers, by tau, tail and student."""
    lost = _joined([each.lost for each in result.findings])
    cosines = _joined([each.cosines for each in result.findings])
    found = {key: Fidelity.of(values) for key, values in cosines.items()}
    return {
        **{f"KL(dense || {tail}), tau {tau:g}": _quantiles(v) for (tau, tail), v in lost.items()},
        **{
            f"gradient cosine, tau {tau:g}, {tail}, {student}": each.spelt()
            for (tau, tail, student), each in found.items()
            if each is not None
        },
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{q:.0%}": float(f"{np.quantile(values, q):.3g}") for q in QUANTILES}


def most_flips(records: int) -> int:
    """How many best classes of so many records may differ by chance, each with 1%."""
    share, left = 1 - TOP1_LIMIT, 1.0
    for flips in range(records + 1):
        left -= math.comb(records, flips) * share**flips * (1 - share) ** (records - flips)
        if left < CHANCE_OF_FALSE_ALARM:
            return flips
    return records


def _sample(cache: Cache, records: int, random: np.random.Generator) -> dict[BlockId, np.ndarray]:
    """Rows to compare, by block; half of them have their pixels' CRC in the cache."""
    blocks = sorted(committed_blocks(cache.place).intersection(cache.blocks()))
    if not blocks:
        raise CacheError(f"cache {cache.place} has no block yet: nothing to audit")
    each = max(LEAST_OF_A_BLOCK, -(-records // len(blocks)))
    places = random.permutation(len(blocks))[: max(1, -(-records // each))]
    left, chosen = records, {}
    for block in (blocks[at] for at in places.tolist()):
        rows = cache.rows(block.shard)
        count = min(each, max(left, 1), len(rows))
        checked = checked_rows(block.view, rows)
        first = random.permutation(checked)[: -(-count // 2)]
        others = np.setdiff1d(np.arange(rows.start, rows.stop), first)
        chosen[block] = np.sort(
            np.concatenate([first, random.permutation(others)[: count - len(first)]])
        )
        left -= count
    return chosen


def _audit_block(
    cache: Cache,
    index: ImageIndex,
    teacher: Teacher,
    recipe: CacheRecipe,
    block: BlockId,
    rows: np.ndarray,
) -> Findings | None:
    """Compare some rows of a block; None where all of them are absent."""
    slab = read_block(cache, block)
    rows = rows[~np.isin(rows, list(slab.absent_rows))]
    batch = recipe.teacher.batch_size
    renderer = ViewRenderer.of(index, recipe.views)
    parts: dict[str, list[Any]] = defaultdict(list)
    for start in range(0, len(rows), batch):
        views = (block.view, block.view + 1)  # the next one is a trained-like student's answer
        images = render_here(renderer, Request(rows[start : start + batch], views))
        _require_readable(index, images)
        logits_BC, another_BC = (
            teacher.logits_of_batch(pixels_BHWC, batch).cpu() for pixels_BHWC in images.pixels_GBHWC
        )
        _compare_images(cache, index, images, slab, parts)
        own = images.request.rows - cache.rows(block.shard).start
        records = _records(slab, own)
        found = _compare_answers(logits_BC, records, recipe)
        if slab.moments_N2 is not None:
            found["agree"] &= _same_moments(logits_BC, slab.moments_N2[own])
        for name, value in found.items():
            parts[name].append(value)
        cosines, lost = _compare_training(logits_BC, another_BC, records, recipe)
        parts["cosines"].append(cosines)
        parts["lost"].append(lost)
    if not len(rows):
        return None
    return Findings(
        block,
        tuple(parts["images"]),
        len(parts["checked"]),
        tuple(parts["pixels"]),
        np.concatenate(parts["kl"]),
        np.concatenate(parts["agree"]),
        np.concatenate(parts["outside"]),
        _joined(parts["cosines"]),
        _joined(parts["lost"]),
    )


def _joined(parts: Sequence[Mapping[_Key, np.ndarray]]) -> dict[_Key, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _require_readable(index: ImageIndex, images: Rendered) -> None:
    for row, reason in images.unreadable.items():
        raise CacheError(f"{index.name_of(row)}: {reason}: restore the image")


def _compare_images(
    cache: Cache,
    index: ImageIndex,
    images: Rendered,
    slab: Slab,
    parts: dict[str, list[Any]],
) -> None:
    """Bytes of the images and pixels of the checked rows against what the cache holds of them."""
    changed = cache.sources.differing(images.request.rows, images.sources_B)
    parts["images"] += [index.keys[row] for row in changed]
    first = cache.rows(int(images.request.rows[0]) // cache.layout.rows_per_shard).start
    own = {
        (view, row - first): crc for (view, row), crc in images.checks.items() if view == slab.view
    }
    parts["checked"] += list(own)
    parts["pixels"] += [
        f"view {slab.view}, {index.keys[row + first]}" for row in differing_pixels(own, slab.check)
    ]


def _records(slab: Slab, own: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, K], log-probabilities [B, K] and tails [B, T] of some rows of a block."""
    return (
        torch.from_numpy(slab.ids_NK[own].astype(np.int64)),
        torch.from_numpy(slab.logp_NK[own]).double(),
        torch.from_numpy(slab.tail_NT[own]).double(),
    )


def _compare_answers(
    logits_BC: Tensor, records: tuple[Tensor, Tensor, Tensor], recipe: CacheRecipe
) -> dict[str, np.ndarray]:
    """The live teacher against the records at some rows of a block."""
    ids_BK, kept_BK, tail_BT = records
    log_p_BC = logits_BC.double().log_softmax(1)
    kl_BT = [
        kl_of_records(log_p_BC, ids_BK, kept_BK, tail_BT[:, n : n + 1], tau).numpy()
        for n, tau in enumerate(recipe.topk.temperatures)
    ]
    agree = (log_p_BC.argmax(1) == ids_BK[:, 0]).numpy()
    outside = bucketed(log_p_BC, ids_BK)[:, -1].exp().numpy()
    return {"kl": np.stack(kl_BT, 1), "agree": agree, "outside": outside}


def _same_moments(logits_BC: Tensor, moments_B2: np.ndarray) -> np.ndarray:
    """Whether mean and deviation are the live teacher's, bool [B], to a part of its deviation."""
    log_p_BC = logits_BC.double().log_softmax(1)
    live_B2 = torch.stack([log_p_BC.mean(1), log_p_BC.std(1, correction=0)], 1).numpy()
    near = np.abs(live_B2 - moments_B2) <= MOMENTS_LIMIT * (1 + live_B2[:, 1:])
    are_near: np.ndarray = near.all(1)
    return are_near


def _compare_training(
    logits_BC: Tensor,
    another_BC: Tensor,
    records: tuple[Tensor, Tensor, Tensor],
    recipe: CacheRecipe,
) -> tuple[dict[tuple[float, Tail, Student], np.ndarray], dict[tuple[float, Tail], np.ndarray]]:
    """What training on the records is to training on the live teacher's whole answer."""
    ids_BK, kept_BK, tail_BT = records
    log_p_BC, another_BC = logits_BC.double().log_softmax(1), another_BC.double()
    cosines, lost = {}, {}
    for n, tau in enumerate(recipe.topk.temperatures):
        tail_B1 = tail_BT[:, n : n + 1]
        found = fidelities(log_p_BC, another_BC, ids_BK, kept_BK, tail_B1, tau)
        for student, tail, cosine_B, lost_B in found:
            cosines[tau, tail, student] = cosine_B.numpy()
            if student is Student.TRAINED:
                lost[tau, tail] = lost_B.numpy()
    return cosines, lost
