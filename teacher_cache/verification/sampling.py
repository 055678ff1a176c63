"""The teacher asked for a sample of labelled images, before the first block of a cache.

Rows are sorted by class, so the first shard of a cache tells nothing of a teacher. The sample is
spread over the classes, is kept in the cache, and answers three questions: is this a teacher of
these classes at all, how near do its records come to its whole answers, and is it still the same
one under other libraries.

n images of the sample, B rows of a batch, K kept classes, C classes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from teacher_cache.cache.teacher_sample import MOST_IMAGES, TeacherSample
from teacher_cache.errors import CacheError
from teacher_cache.images.index import ImageIndex, natural_order
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.record import Tail, TopK
from teacher_cache.teacher.answers import top_k
from teacher_cache.teacher.member import TeacherError
from teacher_cache.teacher.networks import Teacher
from teacher_cache.verification.divergence import kl_of_records
from teacher_cache.verification.fidelity import Fidelity, Student, fidelities, to_measures

LEAST_IMAGES = 512
"""One image a class, but at least so many, and at most MOST_IMAGES."""
VIEW = 0
"""The view in which images are shown: every cache has it, whatever views are appended."""
ANOTHER_VIEW = 1
"""What the teacher says of this one is a trained student's answer, where records are measured."""
KL_LIMIT = 1e-3
"""Nats, mean of KL(live || cached): float16 records cost 1e-7, another GPU model about 1e-4."""
TOP1_LIMIT = 0.99
"""Share of images whose best class is the cached one: near ties flip between device models."""


def choose_rows(labels: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """A sample that holds every class as often as every other, as far as there are images.

    Args:
        labels: int64 [N] class ids of all rows.
        count: how many rows to choose, at most.
        seed: another seed, another sample; the same on every machine and library version.

    Returns:
        int64 [min(count, N)], ascending.
    """
    digest = hashlib.shake_128(b"retort/sample/1\0%d" % seed).digest(8 * len(labels))
    words = np.frombuffer(digest, "<u8")
    order = np.lexsort((words, labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    lengths = np.diff(starts, append=len(labels))
    rank = np.empty(len(labels), np.int64)  # of a row among its class's, in the order of words
    rank[order] = np.arange(len(labels)) - np.repeat(starts, lengths)
    return np.sort(np.lexsort((words, rank))[:count])


def ask_sample(index: ImageIndex, teacher: Teacher, recipe: CacheRecipe) -> TeacherSample:
    """Show the teacher a sample of the images, each in view 0, in batches as a fill makes them.

    Images whose bytes do not decode are left out. What it says of view 1 only serves to measure
    how near the records come to whole answers.

    Raises:
        ImageUnavailable: an image that cannot be read.
        CacheError: none of the sample can be decoded.
    """
    count = min(max(LEAST_IMAGES, teacher.class_count), MOST_IMAGES)
    rows = choose_rows(index.labels, count=count, seed=recipe.views.seed)
    parts, cosines = [], defaultdict(list)
    views = (VIEW, ANOTHER_VIEW)
    for asked, (logits_BC, another_BC) in answers_of(index, teacher, recipe, rows, views):
        labels = torch.from_numpy(index.labels[asked])
        topk = top_k(logits_BC, k=recipe.topk.k, temperatures=recipe.topk.temperatures)
        known = labels < logits_BC.shape[1]
        probability = logits_BC.softmax(1).gather(1, labels.where(known, 0)[:, None])[:, 0]
        parts.append((asked, topk, (probability * known).numpy()))
        for key, values in _cosines(logits_BC, another_BC, topk, recipe).items():
            cosines[key].append(values)
    if not parts:
        raise CacheError(
            f"none of {len(rows)} sampled images can be decoded: --data names no images, or their "
            "format is unknown here"
        )
    asked = np.concatenate([part[0] for part in parts])
    return TeacherSample(
        asked,
        index.labels[asked],
        np.concatenate([part[1].ids_BK for part in parts]).astype(np.int64),
        np.concatenate([part[1].logp_BK for part in parts]),
        np.concatenate([part[1].tail_BT for part in parts]),
        np.concatenate([part[2] for part in parts]).astype(np.float32),
        to_measures({key: Fidelity.of(np.concatenate(each)) for key, each in cosines.items()}),
    )


def _cosines(
    logits_BC: Tensor, another_BC: Tensor, topk: TopK, recipe: CacheRecipe
) -> dict[tuple[float, Tail, Student], np.ndarray]:
    """Gradient cosines of some of the sample's records, at every temperature."""
    log_p_BC, another_BC = logits_BC.double().log_softmax(1), another_BC.double()
    ids_BK = torch.from_numpy(topk.ids_BK.astype(np.int64))
    logp_BK = torch.from_numpy(topk.logp_BK).double()
    tail_BT = torch.from_numpy(topk.tail_BT).double()
    return {
        (tau, tail, student): cosine_B.numpy()
        for n, tau in enumerate(recipe.topk.temperatures)
        for student, tail, cosine_B, _ in fidelities(
            log_p_BC, another_BC, ids_BK, logp_BK, tail_BT[:, n : n + 1], tau
        )
    }


def answers_of(
    index: ImageIndex,
    teacher: Teacher,
    recipe: CacheRecipe,
    rows: np.ndarray,
    views: tuple[int, ...] = (VIEW,),
) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
    """Batch by batch the rows whose images decode, and per view float32 [B, C] logits, on the host.

    Each view's are those of a batch of its own, as a fill's are.
    """
    batch = recipe.teacher.batch_size
    requests = [Request(rows[at : at + batch], views) for at in range(0, len(rows), batch)]
    settings = LoaderSettings(
        recipe.loader.workers, recipe.loader.memory_mb, lower="teacher.batch_size"
    )
    renderer = ViewRenderer.of(index, recipe.views)
    with rendered(renderer, requests, settings, largest=(len(views), batch)) as stream:
        for images in stream:
            there = ~np.isin(images.request.rows, list(images.unreadable))
            if there.any():
                logits = [teacher.logits_of_batch(v, batch).cpu() for v in images.pixels_GBHWC]
                own = torch.from_numpy(there)
                yield images.request.rows[there], [logits_BC[own] for logits_BC in logits]


def poor_limit(class_count: int) -> float:
    """The top-1 below which a teacher is taken for one of other classes: little above chance."""
    chance = 1 / class_count
    return chance + min(4 * chance, 0.1 * (1 - chance))


def require_good(
    sample: TeacherSample, recipe: CacheRecipe, index: ImageIndex, classes: int
) -> None:
    """Refuse a trained teacher that knows hardly any of the sample's labels.

    Raises:
        TeacherError: with its top-1, the limit, and the likeliest cause.
    """
    section = recipe.teacher
    is_trained = any(each.pretrained or each.checkpoint for each in (section, *section.ensemble))
    limit = poor_limit(classes)
    if not is_trained or section.allow_poor or sample.top1 >= limit:
        return
    raise TeacherError(
        f"teacher {section.name} names the label of {sample.top1:.1%} of {len(sample.rows)} "
        f"sampled images (mean probability {sample.mean_probability:.3g}), expected {limit:.1%} "
        f"or more of a teacher of these {classes} classes: {_likely_cause(sample, index, classes)}"
        "; teacher.allow_poor = true fills the cache all the same"
    )


def disagreement(
    sample: TeacherSample, index: ImageIndex, teacher: Teacher, recipe: CacheRecipe
) -> str | None:
    """Ask a cache's sample again; what is too different, in words, or None.

    Raises:
        ImageUnavailable: an image that cannot be read.
    """
    column = int(np.argmin([abs(tau - 1) for tau in recipe.topk.temperatures]))
    tau = recipe.topk.temperatures[column]
    kl, agree = [], []
    for asked, (logits_BC,) in answers_of(index, teacher, recipe, sample.rows):
        own = np.searchsorted(sample.rows, asked)
        ids_BK = torch.from_numpy(sample.ids_NK[own])
        tail_B1 = torch.from_numpy(sample.tail_NT[own, column : column + 1]).double()
        logp_BK = torch.from_numpy(sample.logp_NK[own]).double()
        log_p_BC = logits_BC.double().log_softmax(1)
        kl += kl_of_records(log_p_BC, ids_BK, logp_BK, tail_B1, tau).tolist()
        agree += (logits_BC.argmax(1) == ids_BK[:, 0]).tolist()
    if np.mean(kl) <= KL_LIMIT and np.mean(agree) >= TOP1_LIMIT:
        return None
    return (
        f"asked again for {len(kl)} images, the teacher's answers differ by {np.mean(kl):.2g} nats "
        f"of KL (at most {KL_LIMIT:g}), and {np.mean(agree):.1%} of its best classes are the same "
        f"(at least {TOP1_LIMIT:.0%})"
    )


def _likely_cause(sample: TeacherSample, index: ImageIndex, classes: int) -> str:
    best = sample.ids_NK[:, 0]
    natural = {index.class_ids[name]: n for n, name in enumerate(natural_order(index.class_ids))}
    reordered = float(np.mean([natural[label] for label in sample.labels.tolist()] == best))
    if reordered > max(2 * sample.top1, poor_limit(classes)):
        return (
            f"the classes are numbered in another order: in timm's natural order of the class "
            f'folders it would be {reordered:.1%}: set images.class_order = "timm"'
        )
    chance = 1 / classes
    best_probability = float(np.exp(sample.logp_NK[:, 0].astype(np.float64)).mean())
    if best_probability < chance + min(2 * chance, 0.1 * (1 - chance)):
        return (
            "its answers are nearly uniform: its head was never trained (is it in the checkpoint?)"
        )
    common = [np.bincount(best[sample.labels == c]).max() for c in np.unique(sample.labels)]
    several = len(sample.labels) >= 2 * len(common)
    if several and (agreed := float(np.sum(common)) / len(best)) > 0.5:
        return (
            f"images of one class mostly get one answer ({agreed:.0%}), but under another number: "
            "the class order differs: set images.class_map, or images.class_order"
        )
    return (
        "look at the class order (images.class_map, images.class_order), at the normalisation "
        "(mean and std of the model's data config), and at the head (is it in the checkpoint?)"
    )
