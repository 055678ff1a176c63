"""Each loss to the teacher: that of whole answers where all classes are kept, in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.losses.criterion import TAILS, Criterion, mismatch
from student.losses.distillation import criterion_mean, distillation_loss
from student.losses.standardized import _of_moments, standardized
from student.losses.target import SparseTarget
from student.recipe import DistillSection
from teacher_cache.record import Tail

seeds = st.integers(0, 2**31)
taus = st.sampled_from([1.0, 2.0, 4.0])
choices = st.sampled_from([(c, tail) for c in Criterion for tail in TAILS[c]])


def case(
    seed: int, rows: int, classes: int, kept: int, tau: float
) -> tuple[Tensor, Tensor, SparseTarget]:
    """Student logits, the teacher's log-probabilities, its k best in any order, in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (
        3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    teacher = torch.log_softmax(teacher, dim=1)
    ids = teacher.topk(kept, dim=1).indices[:, torch.randperm(kept, generator=generator)]
    rest = (teacher / tau).scatter(1, ids, -torch.inf)
    return logits, teacher, SparseTarget(ids, teacher.gather(1, ids), rest.logsumexp(1))


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Row by row, by torch's covariance matrices."""
    return torch.stack(
        [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(one, other, strict=True)]
    )


def labels_of(logits: Tensor) -> Tensor:
    """A label a row."""
    return torch.arange(len(logits)) % logits.shape[1]


def whole(criterion: Criterion, log_s: Tensor, log_q: Tensor, tau: float) -> Tensor:
    """The loss on whole answers, written with what torch has."""
    s, q = log_s.exp(), log_q.exp()
    if criterion is Criterion.KL:
        return F.kl_div(log_s, q, reduction="batchmean")
    if criterion is Criterion.REVERSE_KL:
        return F.kl_div(log_q, s, reduction="batchmean")
    if criterion is Criterion.JSD:
        log_m = ((s + q) / 2).log()
        return (
            F.kl_div(log_m, q, reduction="batchmean") + F.kl_div(log_m, s, reduction="batchmean")
        ) / 2
    if criterion is Criterion.HARD:
        return F.cross_entropy(log_s, log_q.argmax(dim=1))
    if criterion is Criterion.DKD:
        rows, label = torch.arange(len(s)), labels_of(s)
        pairs, others = [], []
        for p in (q, s):
            of_label = p[rows, label]
            pairs.append(torch.stack([of_label, 1 - of_label], 1).log())
            rest = p[F.one_hot(label, p.shape[1]) == 0].reshape(len(p), -1)
            others.append((rest / rest.sum(1, keepdim=True)).log())
        kl = partial(F.kl_div, reduction="batchmean", log_target=True)
        return kl(pairs[1], pairs[0]) + 2 * kl(others[1], others[0])
    if criterion is Criterion.STANDARDIZED:
        log_q, log_s = (
            torch.log_softmax(
                (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0) / tau, dim=1
            )
            for x in (log_q, log_s)
        )
        return F.kl_div(log_s, log_q.exp(), reduction="batchmean")
    return 2 - pearson(s, q).mean() - pearson(s.T, q.T).mean()


def with_gradient(loss: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def spread(teacher: Tensor, target: SparseTarget, tau: float) -> Tensor:
    """The teacher's log-probabilities at tau with its tail in equal parts."""
    q = torch.softmax(teacher / tau, dim=1)
    kept = q.gather(1, target.ids_BK)
    rest = (1 - kept.sum(1, keepdim=True)) / (q.shape[1] - kept.shape[1])
    return rest.expand_as(q).scatter(1, target.ids_BK, kept).log()


@given(seeds, st.integers(3, 6), st.integers(3, 30), taus, choices)
@settings(deadline=None)
def test_with_every_class_kept_each_loss_and_treatment_is_that_of_whole_answers(
    seed: int, rows: int, classes: int, tau: float, choice: tuple[Criterion, Tail]
) -> None:
    criterion, tail = choice
    tau = 1.0 if criterion is Criterion.HARD else tau
    logits, teacher, target = case(seed, rows, classes, classes, tau)
    assert target.tail_B.isneginf().all()
    leaf = logits.requires_grad_()
    log_s = torch.log_softmax(leaf / tau, dim=1)
    got = with_gradient(criterion_mean(log_s, target, labels_of(log_s), tau, tail, criterion), leaf)
    log_s = torch.log_softmax(leaf / tau, dim=1)
    expected = with_gradient(
        whole(criterion, log_s, torch.log_softmax(teacher / tau, 1), tau), leaf
    )
    torch.testing.assert_close(got, expected)


@given(
    seeds,
    st.integers(4, 30),
    taus,
    st.sampled_from([c for c in Criterion if c not in (Criterion.HARD, Criterion.STANDARDIZED)]),
    st.data(),
)
@settings(deadline=None)
def test_an_even_tail_is_a_whole_teacher_whose_other_classes_are_alike(
    seed: int, classes: int, tau: float, criterion: Criterion, data: st.DataObject
) -> None:
    logits, teacher, target = case(seed, 4, classes, data.draw(st.integers(1, classes - 1)), tau)
    leaf = logits.requires_grad_()
    log_s = torch.log_softmax(leaf / tau, dim=1)
    got = with_gradient(
        criterion_mean(log_s, target, labels_of(log_s), tau, Tail.UNIFORM, criterion), leaf
    )
    log_s = torch.log_softmax(leaf / tau, dim=1)
    expected = with_gradient(whole(criterion, log_s, spread(teacher, target, tau), tau), leaf)
    torch.testing.assert_close(got, expected)


@given(seeds, st.integers(3, 30), taus, st.sampled_from([Criterion.REVERSE_KL, Criterion.JSD]))
@settings(deadline=None)
def test_a_bucket_is_one_more_class_for_both(
    seed: int, classes: int, tau: float, criterion: Criterion
) -> None:
    logits, teacher, target = case(seed, 4, classes, 2, tau)
    merged = []
    leaf = logits.requires_grad_()
    for log_all in (torch.log_softmax(leaf / tau, 1), torch.log_softmax(teacher / tau, 1)):
        kept = log_all.gather(1, target.ids_BK)
        merged.append(torch.cat([kept, torch.log1p(-kept.exp().sum(1, keepdim=True))], 1))
    expected = with_gradient(whole(criterion, *merged, tau), leaf)
    log_s = torch.log_softmax(leaf / tau, dim=1)
    got = with_gradient(
        criterion_mean(log_s, target, labels_of(log_s), tau, Tail.BUCKET, criterion), leaf
    )
    torch.testing.assert_close(got, expected)


@given(seeds, st.integers(2, 30), st.data())
@settings(deadline=None)
def test_the_hard_loss_needs_one_class(seed: int, classes: int, data: st.DataObject) -> None:
    logits, teacher, target = case(seed, 4, classes, data.draw(st.integers(1, classes)), 1.0)
    log_s = torch.log_softmax(logits, dim=1)
    got = criterion_mean(log_s, target, labels_of(log_s), 1.0, Tail.UNIFORM, Criterion.HARD)
    torch.testing.assert_close(got, F.cross_entropy(logits, teacher.argmax(dim=1)))


@given(seeds, taus, choices)
@settings(deadline=None)
def test_a_student_that_says_what_the_teacher_says_has_nothing_to_lose(
    seed: int, tau: float, choice: tuple[Criterion, Tail]
) -> None:
    criterion, tail = choice
    if criterion is Criterion.HARD:
        return
    _, teacher, target = case(seed, 4, 12, 12, tau)
    log_s = torch.log_softmax(teacher / tau, dim=1)
    assert abs(criterion_mean(log_s, target, labels_of(log_s), tau, tail, criterion).item()) < 1e-12


def test_of_one_row_dist_compares_classes_alone() -> None:
    logits, teacher, target = case(0, 1, 8, 8, 1.0)
    log_s = torch.log_softmax(logits, dim=1)
    got = criterion_mean(log_s, target, labels_of(log_s), 1.0, Tail.UNIFORM, Criterion.DIST)
    expected = 2 - pearson(log_s.exp(), teacher.exp()).mean()
    torch.testing.assert_close(got, expected)


def test_the_jensen_shannon_divergence_is_at_most_log_2() -> None:
    certain = torch.tensor([[0.0, -1e4]], dtype=torch.float64)
    target = SparseTarget(torch.tensor([[1, 0]]), certain, torch.tensor([-math.inf]))
    got = criterion_mean(certain, target, labels_of(certain), 1.0, Tail.UNIFORM, Criterion.JSD)
    assert got.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("criterion", "tail", "tau", "words"),
    [
        ("reverse_kl", "renormalize", 1.0, 'distill.tail = "renormalize" .*"uniform" or "bucket"'),
        ("jsd", "drop", 1.0, 'distill.tail = "drop" with distill.loss = "jsd"'),
        ("dist", "bucket", 4.0, 'distill.loss = "dist", expected "uniform"'),
        ("hard", "uniform", 4.0, 'distill.temperature = 4.0 with distill.loss = "hard"'),
    ],
)
def test_what_a_loss_cannot_be_computed_from_is_refused_by_name(
    criterion: str, tail: str, tau: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        DistillSection(loss=Criterion(criterion), tail=Tail(tail), temperature=tau)
    logits, _, target = case(0, 2, 8, 3, tau)
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=words):
        distillation_loss(
            logits, labels, target, alpha=0.5, temperature=tau,
            tail=Tail(tail), criterion=Criterion(criterion),
        )  # fmt: skip
    assert mismatch(Criterion(criterion), TAILS[Criterion(criterion)][0], 1.0) is None


def test_standardized_logits_of_some_classes_are_refused() -> None:
    logits, _, target = case(0, 2, 8, 7, 1.0)
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"of all 8 logits, the cache keeps the best 7 classes"):
        distillation_loss(
            logits, labels, target, alpha=0.5, temperature=1.0, criterion=Criterion.STANDARDIZED
        )


def with_moments(teacher: Tensor, target: SparseTarget) -> SparseTarget:
    moments = torch.stack([teacher.mean(1), teacher.std(1, correction=0)], 1)
    return SparseTarget(target.ids_BK, target.logp_BK, target.tail_B, moments)


@given(seeds, st.integers(4, 30), taus, st.data())
@settings(deadline=None)
def test_standardized_logits_by_moments_are_exact_on_the_kept_classes(
    seed: int, classes: int, tau: float, data: st.DataObject
) -> None:
    """Among themselves: their differences of Z do not depend on what stands for the others."""
    kept = data.draw(st.integers(2, classes - 1))
    logits, teacher, target = case(seed, 4, classes, kept, tau)
    z_BC = (teacher - teacher.mean(1, keepdim=True)) / teacher.std(1, correction=0, keepdim=True)
    log_s = torch.log_softmax(logits / tau, dim=1)
    found = _of_moments(log_s, with_moments(teacher, target), tau)
    torch.testing.assert_close(
        found.gather(1, target.ids_BK), (z_BC / tau).gather(1, target.ids_BK)
    )
    others = found.scatter(1, target.ids_BK, -torch.inf).amax(1)
    assert (others <= found.gather(1, target.ids_BK).amin(1) + 1e-12).all()


def test_standardized_logits_are_whole_where_the_other_classes_are_alike() -> None:
    logits, teacher, _ = case(1, 4, 20, 3, 1.0)
    ids = teacher.topk(3, dim=1).indices
    low = teacher.gather(1, ids)[:, -1:] - 2
    teacher = torch.log_softmax(low.expand(4, 20).scatter(1, ids, teacher.gather(1, ids)), 1)
    rest = teacher.scatter(1, ids, -torch.inf)
    target = SparseTarget(ids, teacher.gather(1, ids), rest.logsumexp(1))
    leaf = logits.requires_grad_()
    for tau in (1.0, 2.0):
        pair = []
        for found in (with_moments(teacher, target), None):
            log_s = torch.log_softmax(leaf / tau, dim=1)
            loss = (
                whole(Criterion.STANDARDIZED, log_s, torch.log_softmax(teacher / tau, 1), tau)
                if found is None
                else standardized(log_s, found, tau).mean()
            )
            pair.append(with_gradient(loss, leaf))
        torch.testing.assert_close(*pair)


@given(
    st.lists(st.floats(-60_000, 0, width=16), min_size=3, max_size=3),
    st.floats(-60_000, 0, width=16),
    st.floats(0, 65_504, width=16),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8),
    taus,
)
@settings(deadline=None)
def test_standardized_logits_by_any_moments_are_finite(
    logp: list[float], mean: float, deviation: float, logits: list[float], tau: float
) -> None:
    target = SparseTarget(
        torch.tensor([[4, 0, 2]]), torch.tensor([logp]), torch.tensor([-1.0]),
        torch.tensor([[mean, deviation]]),
    )  # fmt: skip
    leaf = torch.tensor([logits]).requires_grad_()
    loss = distillation_loss(
        leaf, torch.tensor([1]), target,
        alpha=1.0, temperature=tau, criterion=Criterion.STANDARDIZED,
    ).total  # fmt: skip
    loss.backward()
    assert loss.isfinite()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
