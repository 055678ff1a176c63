"""The cache against the living: pixels and teacher once more, and what top-k loses.

B rows of a batch, K kept classes, C classes, V views.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teacher_cache.encodings import kl_cost
from teacher_cache.errors import CacheError
from teacher_cache.images import ImageIndex
from teacher_cache.layout import ROWS_PER_CHECK
from teacher_cache.loader import Request, ViewRenderer, render_here
from teacher_cache.replay import differing_pixels, require_same_images
from teacher_cache.slab import read_slab
from teacher_cache.store import Cache, checked_row, complete_views
from teacher_cache.teacher import Teacher

KL_LIMIT = 1e-3
"""Nats, mean of KL(live || cached), besides what the encoding costs: float16 records cost 1e-7,
another GPU model about 1e-4."""
TOP1_LIMIT = 0.99
"""Share of rows whose best class is the cached one: near ties flip between device models."""
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Audit:
    """What the sample said."""

    records: int
    pixels_checked: int
    pixels_wrong: tuple[str, ...]
    """`view 3, n01/a.jpg` of each checked row whose pixels differ."""
    kl: np.ndarray
    """[records] KL(live || cached) in nats, over the kept classes and the tail as one class."""
    kl_of_encoding: float
    """The most that the cache's encoding costs on average, in nats: 0 where it is exact."""
    top1_agreement: float
    outside: np.ndarray
    """[records] the live teacher's mass outside its k best classes."""
    lost: Mapping[str, np.ndarray]
    """For each tail treatment [records] KL(dense || what the student is shown), in nats."""

    @property
    def kl_limit(self) -> float:
        """Nats, for the mean of `kl`."""
        return KL_LIMIT + self.kl_of_encoding

    @property
    def passed(self) -> bool:
        """Whether pixels are identical and the teacher agrees within the limits."""
        return (
            not self.pixels_wrong
            and float(self.kl.mean()) <= self.kl_limit
            and self.top1_agreement >= TOP1_LIMIT
        )


def audit(cache: Cache, index: ImageIndex, teacher: Teacher, *, records: int, seed: int) -> Audit:
    """Compare a sample of records, half of them rows whose pixels are checked.

    Args:
        cache: with at least one complete view.
        index: the cache's rows over the data folder.
        teacher: the cache's, built anew.
        records: how many to compare.
        seed: another seed, another sample.

    Raises:
        CacheError: another teacher than the cache's, no complete view, or an unreadable image.
    """
    if teacher.weights_sha256 != cache.manifest.teacher_weights_sha256:
        raise CacheError(
            f"teacher weights are {teacher.weights_sha256[:16]}, the cache was filled with "
            f"{cache.manifest.teacher_weights_sha256[:16]}: audit with that teacher "
            "(--set teacher.checkpoint=FILE)"
        )
    sample = _sample(cache, records, np.random.default_rng(seed))
    results = [_audit_view(cache, index, teacher, view, rows) for view, rows in sample.items()]
    return Audit(
        records=sum(len(r.kl) for r in results),
        pixels_checked=sum(r.pixels_checked for r in results),
        pixels_wrong=tuple(name for r in results for name in r.pixels_wrong),
        kl=np.concatenate([r.kl for r in results]),
        kl_of_encoding=results[0].kl_of_encoding,
        top1_agreement=float(np.average(
            [r.top1_agreement for r in results], weights=[len(r.kl) for r in results]
        )),
        outside=np.concatenate([r.outside for r in results]),
        lost={name: np.concatenate([r.lost[name] for r in results]) for name in results[0].lost},
    )  # fmt: skip


def report(cache: Cache, result: Audit) -> dict[str, Any]:
    """The facts to print."""

    def quantiles(values: np.ndarray) -> dict[str, float]:
        return {f"{q:.0%}": float(f"{np.quantile(values, q):.3g}") for q in QUANTILES}

    return {
        "cache": str(cache.root),
        "passed": result.passed,
        "records": result.records,
        "pixels checked": result.pixels_checked,
        "pixels that differ": list(result.pixels_wrong),
        "KL(live || cached), mean": float(f"{result.kl.mean():.3g}"),
        "KL(live || cached), limit": float(f"{result.kl_limit:.5g}"),
        "KL of the encoding, at most": float(f"{result.kl_of_encoding:.3g}"),
        "KL(live || cached)": quantiles(result.kl),
        "top-1 agreement": round(result.top1_agreement, 6),
        "top-1 agreement, limit": TOP1_LIMIT,
        "mass outside top-k": quantiles(result.outside),
        **{f"KL(dense || {name})": quantiles(values) for name, values in result.lost.items()},
    }


def _sample(cache: Cache, records: int, random: np.random.Generator) -> dict[int, np.ndarray]:
    """Rows to compare, by view; up to half have their pixels' CRC in the cache."""
    views = complete_views(cache)
    if not views:
        raise CacheError(f"cache {cache.root} has no complete view yet: nothing to audit")
    rows = len(cache.index)
    records = min(records, rows * len(views))
    entries = -(-rows // ROWS_PER_CHECK)
    checked = random.choice(
        entries * len(views), min(records, entries * len(views)) // 2, replace=False
    )
    pairs = [(views[place // entries], place % entries) for place in checked.tolist()]
    sample = {(view, checked_row(view, entry)) for view, entry in pairs}
    sample = {(view, row) for view, row in sample if row < rows}
    for place in random.choice(rows * len(views), records, replace=False).tolist():
        if len(sample) == records:
            break
        sample.add((views[place // rows], place % rows))
    chosen: dict[int, list[int]] = defaultdict(list)
    for view, row in sorted(sample):
        chosen[view].append(row)
    return {view: np.array(of_view) for view, of_view in chosen.items()}


def _audit_view(
    cache: Cache, index: ImageIndex, teacher: Teacher, view: int, rows: np.ndarray
) -> Audit:
    recipe = cache.manifest.parsed_recipe()
    views, batch = recipe.views, recipe.teacher.batch_size
    renderer = ViewRenderer.of(index, views)
    slab = read_slab(cache, view)
    rows = rows[~np.isin(rows, list(slab.absent_rows))]
    logits: list[Tensor] = []
    checks: dict[tuple[int, int], int] = {}
    for start in range(0, len(rows), batch):
        part = render_here(renderer, Request(rows[start : start + batch], (view,)))
        for row, reason in part.unreadable.items():
            raise CacheError(f"{index.root / index.keys[row]}: {reason}: restore the image")
        require_same_images(cache.sources, index, part)
        checks |= part.checks
        logits.append(teacher.logits_of_batch(part.pixels_GBHWC[0], batch).cpu())
    wrong = differing_pixels(checks, slab.check)
    log_p_BC = torch.log_softmax(torch.cat(logits).double(), dim=1)
    ids_BK = torch.from_numpy(slab.ids_NK[rows].astype(np.int64))
    kept_BK = torch.from_numpy(slab.logp_NK[rows]).double()
    temperatures = recipe.topk.temperatures
    tail_B1 = (
        torch.from_numpy(slab.tail_NT[rows, temperatures.index(1.0)]).double()[:, None]
        if 1.0 in temperatures
        else torch.log1p(-kept_BK.exp().sum(1, keepdim=True).clamp(max=1.0))
    )
    kl, outside, lost = _compare(log_p_BC, ids_BK, kept_BK, tail_B1)
    return Audit(
        records=len(rows),
        pixels_checked=len(checks),
        pixels_wrong=tuple(f"view {view}, {index.keys[row]}" for row in wrong),
        kl=kl,
        kl_of_encoding=kl_cost(recipe.storage.encoding, recipe.topk.k),
        top1_agreement=float((log_p_BC.argmax(1) == ids_BK[:, 0]).double().mean()),
        outside=outside,
        lost=lost,
    )


def _compare(
    log_p_BC: Tensor, ids_BK: Tensor, kept_BK: Tensor, tail_B1: Tensor
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """KL(live || cached), the live mass outside top-k, and what each tail treatment loses."""
    others = log_p_BC.shape[1] - ids_BK.shape[1]
    live_BK = log_p_BC.gather(1, ids_BK)
    log_rest_BC = log_p_BC.scatter(1, ids_BK, -torch.inf)
    rest_B1 = log_rest_BC.logsumexp(dim=1, keepdim=True)
    log_q_BL = torch.log_softmax(torch.cat([kept_BK, tail_B1], 1), 1)
    kl_B = _kl(torch.cat([live_BK, rest_B1], 1), log_q_BL)
    # inside the tail: p (log p - log q), with q the cached tail's mass in equal parts
    even_B1 = log_q_BL[:, -1:] - float(np.log(max(others, 1)))
    uniform_B = _kl(live_BK, log_q_BL[:, :-1]) + _kl(log_rest_BC, even_B1)
    lost = {
        "bucket": kl_B,
        "uniform": uniform_B,
        # its forward KL is infinite: it gives the other classes no mass at all
        "renormalize, reversed": -torch.logsumexp(live_BK, dim=1),
    }
    found = {name: values.clamp(min=0).numpy() for name, values in lost.items()}
    return kl_B.clamp(min=0).numpy(), rest_B1.exp().flatten().numpy(), found


def _kl(log_p_BL: Tensor, log_q_BL: Tensor) -> Tensor:
    """The sum of p (log p - log q), where 0 log 0 is 0."""
    terms_BL = log_p_BL.exp() * (log_p_BL - log_q_BL)
    return torch.where(log_p_BL.isneginf(), 0.0, terms_BL).sum(dim=1)
