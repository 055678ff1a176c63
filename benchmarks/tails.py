"""How near top-k records come to the whole teacher, by k, temperature, tail and loss.

    python -m benchmarks.tails IMAGES MODEL CHECKPOINT CLASS_MAP [VIEWS]

Asks a real teacher about seeded views of real images, as a cache would show them, and compares the
gradient of each loss on records with the gradient on whole answers: the cosine of the angle, its
mean and 5% quantile over the views, at a fresh student (every class alike) and a trained-like one
(the teacher's logits of the next view of the image). IMAGES are class folders, CLASS_MAP is
`images.class_map`. The low-rank tail, which Retort does not store, keeps principal components of
the logits besides the top k; they are fitted on the other half of the images.

B rows, K kept classes, C classes, V views, N images.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.records import cache_of, fill
from student.data.batches import target_of
from student.losses.criterion import TAILS, Criterion
from student.losses.distillation import criterion_mean
from student.losses.target import SparseTarget
from teacher_cache.images.index import ImageIndex, index_images, read_class_map
from teacher_cache.loading.queue import render_here
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.record import Tail, TopK
from teacher_cache.teacher.answers import top_k
from teacher_cache.teacher.networks import Teacher, load_teacher
from teacher_cache.verification.divergence import kl
from teacher_cache.verification.fidelity import (
    Fidelity,
    Student,
    at_temperature,
    cosine,
    drawn_to,
    gradient,
)

KEPT = (5, 10, 20, 50, 100, 200, 400)
TEMPERATURES = (1.0, 2.0, 4.0)
COMPONENTS = (16, 64)
ARRAYS = ("ids", "logp", "tail")
OTHERS = {
    **{each: TAILS[each] for each in Criterion if each not in (Criterion.KL, Criterion.HARD)},
    Criterion.STANDARDIZED: (Tail.UNIFORM,),  # which takes none
}
BATCH = 50


def answers_of(teacher: Teacher, index: ImageIndex, recipe: CacheRecipe, views: int) -> Tensor:
    """float32 logits [V, N, C], on the host."""
    renderer = ViewRenderer.of(index, recipe.views)
    parts = []
    for at in range(0, len(index), BATCH):
        rows = np.arange(at, min(at + BATCH, len(index)))
        images = render_here(renderer, Request(rows, tuple(range(views))))
        parts.append(torch.stack([teacher.logits(view) for view in images.pixels_GBHWC]))
    return torch.cat(parts, 1)


def students(logits_VNC: Tensor) -> Iterator[tuple[Student, Tensor]]:
    """Each student's logits [B, C] for the views of `flat`."""
    trained_BC = flat(logits_VNC.roll(-1, 0))
    yield Student.FRESH, torch.zeros_like(trained_BC)
    yield Student.TRAINED, trained_BC


def flat(logits_VNC: Tensor) -> Tensor:
    """float64 [B, C]: view by view."""
    return logits_VNC.flatten(0, 1).double()


def kept(topk: TopK, column: int) -> tuple[Tensor, Tensor]:
    """A record's ids [B, K] and its log-probabilities [B, K + 1] at a temperature."""
    ids_BK = torch.from_numpy(topk.ids_BK.astype(np.int64))
    tail_B1 = torch.from_numpy(topk.tail_BT[:, column : column + 1]).double()
    logp_BK = torch.from_numpy(topk.logp_BK).double()
    return ids_BK, at_temperature(logp_BK, tail_B1, TEMPERATURES[column])


def cosines(logits_VNC: Tensor, topk: TopK, column: int, tail: Tail) -> dict[Student, Fidelity]:
    """By student, of the records of these logits at one temperature."""
    tau = TEMPERATURES[column]
    log_dense_BC = (flat(logits_VNC) / tau).log_softmax(1)
    ids_BK, log_q_BL = kept(topk, column)
    found = {}
    for student, student_BC in students(logits_VNC):
        log_s_BC = (student_BC / tau).log_softmax(1)
        sparse_BC = gradient(log_s_BC, drawn_to(log_s_BC, ids_BK, log_q_BL, tail))
        found[student] = measured(sparse_BC, gradient(log_s_BC, log_dense_BC))
    return found


def measured(sparse_BC: Tensor, dense_BC: Tensor) -> Fidelity:
    found = Fidelity.of(cosine(sparse_BC, dense_BC).numpy())
    assert found is not None
    return found


def lost(logits_VNC: Tensor, topk: TopK, column: int) -> float:
    """Mean KL(dense || the record with an even tail), nats."""
    log_p_BC = (flat(logits_VNC) / TEMPERATURES[column]).log_softmax(1)
    ids_BK, log_q_BL = kept(topk, column)
    return float(kl(log_p_BC, drawn_to(log_p_BC, ids_BK, log_q_BL, Tail.UNIFORM)).mean())


def low_rank(logits_VNC: Tensor, k: int, components: int, column: int) -> dict[Student, Fidelity]:
    """The k best and the tail's mass as they are, the tail's shape from principal components."""
    tau, images = TEMPERATURES[column], torch.arange(logits_VNC.shape[1])
    guesses_VNC = torch.empty_like(logits_VNC)
    for half in (0, 1):
        own, other = images % 2 == half, images % 2 != half
        fitted_BC = logits_VNC[:, other].flatten(0, 1)
        mean_C = fitted_BC.mean(0)
        basis_CR = torch.linalg.svd(fitted_BC - mean_C, full_matrices=False).Vh[:components].T
        guesses_VNC[:, own] = (logits_VNC[:, own] - mean_C) @ basis_CR @ basis_CR.T + mean_C
    log_p_BC = (flat(logits_VNC) / tau).log_softmax(1)
    ids_BK = log_p_BC.topk(k, dim=1).indices
    log_tail_B1 = log_p_BC.scatter(1, ids_BK, -torch.inf).logsumexp(1, keepdim=True)
    guessed_BC = (flat(guesses_VNC) / tau).scatter(1, ids_BK, -torch.inf).log_softmax(1)
    log_q_BC = (guessed_BC + log_tail_B1).scatter(1, ids_BK, log_p_BC.gather(1, ids_BK))
    found = {}
    for student, student_BC in students(logits_VNC):
        log_s_BC = (student_BC / tau).log_softmax(1)
        dense_BC = gradient(log_s_BC, log_p_BC)
        found[student] = measured(gradient(log_s_BC, log_q_BC), dense_BC)
    return found


def record_bytes(topk: TopK, classes: int) -> float:
    """Of ids, log-probabilities and one tail, as the default encoding writes them.

    Few records of many classes in one chunk: a cache of many images, sorted by class, has less.
    """
    one_tail = TopK(topk.ids_BK, topk.logp_BK, topk.tail_BT[:, :1])
    with TemporaryDirectory(prefix="retort-tails-") as folder:
        cache = fill(cache_of(Path(folder) / "cache", one_tail, classes=classes), one_tail)
        files = [file for name in ARRAYS for file in (cache.place.root / name).glob("c.*")]
        return sum(file.stat().st_size for file in files) / len(topk.ids_BK)


def criterion_cosines(
    logits_VNC: Tensor,
    labels_B: Tensor,
    topk: TopK,
    column: int,
    criterion: Criterion,
    tail: Tail,
) -> dict[Student, Fidelity]:
    """By student, of another loss than KL: records against whole answers in the same loss."""
    tau, logits_BC = TEMPERATURES[column], flat(logits_VNC)
    records, whole = target_of(topk, column), SparseTarget.of_all(logits_BC.log_softmax(1))
    found = {}
    for student, student_BC in students(logits_VNC):
        gradients = []
        for target in (records, whole):
            leaf_BC = student_BC.clone().requires_grad_()
            log_s_BC = (leaf_BC / tau).log_softmax(1)
            loss = criterion_mean(log_s_BC, target, labels_B, tau, tail, criterion)
            gradients += torch.autograd.grad(loss, leaf_BC)
        found[student] = measured(*gradients)
    return found


def row(name: str, cells: list[dict[Student, Fidelity]]) -> str:
    """Mean (5%), fresh / trained-like, a cell a temperature."""
    words = (" / ".join(f"{f.mean:.3f} ({f.low:.3f})" for f in cell.values()) for cell in cells)
    return f"| {name} | " + " | ".join(words) + " |"


def report(logits_VNC: Tensor, labels_N: Tensor) -> None:
    labels_B = labels_N.repeat(len(logits_VNC))
    classes = logits_VNC.shape[2]
    columns = range(len(TEMPERATURES))
    logits_BC = flat(logits_VNC).float()
    print("| kept | " + " | ".join(f"tau {tau:g}" for tau in TEMPERATURES) + " |")
    for k in KEPT:
        topk = top_k(logits_BC, k=k, temperatures=TEMPERATURES)
        size = record_bytes(topk, classes)
        outside = np.exp(topk.tail_BT[:, 0].astype(np.float64))
        nats = ", ".join(f"{lost(logits_VNC, topk, column):.4f}" for column in columns)
        print(
            f"k = {k}: {size:.1f} bytes; mass outside {np.median(outside):.3f} (90%: "
            f"{np.quantile(outside, 0.9):.3f}); KL(dense || uniform) {nats} nats"
        )
        for tail in Tail:
            cells = [cosines(logits_VNC, topk, column, tail) for column in columns]
            print(row(f"k = {k}, {tail}", cells))
    for criterion, tails in OTHERS.items():
        for k in (10, 20, 50, 200):
            topk = top_k(logits_BC, k=k, temperatures=TEMPERATURES, moments=True)
            for tail in tails:
                cells = [
                    criterion_cosines(logits_VNC, labels_B, topk, column, criterion, tail)
                    for column in columns
                ]
                print(row(f"{criterion}, k = {k}, {tail}", cells))
    for components in COMPONENTS:
        cells = [low_rank(logits_VNC, 10, components, column) for column in columns]
        print(row(f"k = 10 and {components} principal components", cells))


def main(images: Path, model: str, checkpoint: Path, class_map: Path, views: int) -> None:
    document = {
        "teacher": {"model": model, "checkpoint": str(checkpoint), "batch_size": BATCH},
        "views": {"count": views},
        "images": {"class_map": str(class_map)},
    }
    recipe = parse_recipe(document, CacheRecipe, source="benchmark")
    index = index_images(str(images), class_ids=read_class_map(class_map))
    teacher = load_teacher(
        recipe.teacher,
        class_count=index.class_count,
        has_class_map=True,
        size=recipe.views.size,
        device=torch.device("cpu"),
    )
    logits_VNC = answers_of(teacher, index, recipe, views)
    top1 = float((logits_VNC.argmax(2).numpy() == index.labels).mean())
    print(f"tails: {model}, {len(index)} images x {views} views, top-1 of the views {top1:.1%}")
    report(logits_VNC, torch.from_numpy(index.labels))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(describe())
    source, name, weights, names = sys.argv[1:5]
    main(Path(source), name, Path(weights), Path(names), int(sys.argv[5]) if sys.argv[5:] else 4)
