"""distillation_loss: the dense KL where it must be, a bound elsewhere, never NaN."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.losses.criterion import TAILS, Criterion
from student.losses.distillation import Loss, distillation_loss
from student.losses.divergences import kl
from student.losses.target import SparseTarget
from teacher_cache.record import Tail
from teacher_cache.teacher.answers import top_k
from teacher_cache.verification.fidelity import at_temperature, drawn_to, gradient

seeds = st.integers(0, 2**31)
taus = st.sampled_from([1.0, 2.0, 4.0])


def random_case(
    seed: int, rows: int, classes: int, kept: int, tau: float
) -> tuple[Tensor, Tensor, Tensor, SparseTarget]:
    """Student logits, labels, the dense teacher's log-probabilities, its k best in any order."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    teacher = torch.log_softmax(
        3.0 * torch.randn(rows, classes, generator=generator).double(), dim=1
    )
    order = teacher.argsort(dim=1, descending=True)
    best, rest = order[:, :kept], order[:, kept:]
    best = best[:, torch.randperm(kept, generator=generator)]
    target = SparseTarget(
        ids_BK=best,
        logp_BK=teacher.gather(1, best).float(),
        tail_B=torch.logsumexp(teacher.gather(1, rest) / tau, dim=1).float(),
    )
    return logits, labels, teacher, target


def kd_and_gradient(
    logits: Tensor, labels: Tensor, target: SparseTarget, tau: float, tail: Tail
) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = distillation_loss(logits, labels, target, alpha=1.0, temperature=tau, tail=tail)
    (gradient,) = torch.autograd.grad(loss.kd, logits)
    return loss.kd.detach(), gradient


def dense_and_gradient(logits: Tensor, log_q: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """tau^2 KL by torch on dense probabilities, in float64."""
    logits = logits.double().requires_grad_()
    log_s = torch.log_softmax(logits / tau, dim=1)
    kd = tau**2 * F.kl_div(log_s, log_q.exp(), reduction="batchmean")
    (gradient,) = torch.autograd.grad(kd, logits)
    return kd.detach(), gradient


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tau: float) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6 * tau**2)


@given(seeds, st.integers(1, 5), st.integers(1, 40), taus, st.sampled_from(Tail))
@settings(deadline=None)
def test_with_every_class_kept_it_is_the_dense_kl_and_its_gradient(
    seed: int, rows: int, classes: int, tau: float, tail: Tail
) -> None:
    logits, labels, teacher, target = random_case(seed, rows, classes, classes, tau)
    assert target.tail_B.isneginf().all()
    expected = dense_and_gradient(logits, torch.log_softmax(teacher / tau, dim=1), tau)
    assert_same(kd_and_gradient(logits, labels, target, tau, tail), expected, tau)


@given(seeds, st.integers(2, 40), taus, st.sampled_from(Tail), st.data())
@settings(deadline=None)
def test_its_gradient_is_the_one_whose_direction_a_cache_measures(
    seed: int, classes: int, tau: float, tail: Tail, data: st.DataObject
) -> None:
    """`teacher_cache.verification.fidelity` knows the gradients in closed form."""
    kept = data.draw(st.integers(1, classes - 1))
    logits, _, teacher, target = random_case(seed, 3, classes, kept, tau)
    leaf = logits.double().requires_grad_()
    log_s = torch.log_softmax(leaf / tau, dim=1)
    (got,) = torch.autograd.grad(kl(log_s, target, tau, tail).sum(), leaf, retain_graph=True)
    log_q = at_temperature(target.logp_BK.double(), target.tail_B.double()[:, None], tau)
    drawn = drawn_to(log_s.detach(), target.ids_BK, log_q, tail)
    torch.testing.assert_close(got * tau, gradient(log_s.detach(), drawn))
    dense = gradient(log_s.detach(), torch.log_softmax(teacher / tau, dim=1))
    (expected,) = torch.autograd.grad(
        F.kl_div(log_s, torch.softmax(teacher / tau, dim=1), reduction="sum"), leaf
    )
    torch.testing.assert_close(dense, expected * tau)


@given(seeds, st.integers(2, 40), taus, st.data())
@settings(deadline=None)
def test_bucket_is_the_kl_of_k_classes_and_one_more_for_teacher_and_student(
    seed: int, classes: int, tau: float, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, classes - 1))
    logits, labels, teacher, target = random_case(seed, 3, classes, kept, tau)
    q = torch.softmax(teacher / tau, dim=1)
    q_best = q.gather(1, target.ids_BK)
    q_merged = torch.cat([q_best, 1.0 - q_best.sum(dim=1, keepdim=True)], dim=1)
    leaf = logits.double().requires_grad_()
    s = torch.softmax(leaf / tau, dim=1)
    s_best = s.gather(1, target.ids_BK)
    s_merged = torch.cat([s_best, 1.0 - s_best.sum(dim=1, keepdim=True)], dim=1)
    kd = tau**2 * F.kl_div(s_merged.log(), q_merged, reduction="batchmean")
    (gradient,) = torch.autograd.grad(kd, leaf)
    got = kd_and_gradient(logits, labels, target, tau, Tail.BUCKET)
    assert_same(got, (kd.detach(), gradient), tau)


@given(seeds, st.integers(2, 40), taus, st.data())
@settings(deadline=None)
def test_bucket_is_between_zero_and_the_dense_kl(
    seed: int, classes: int, tau: float, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, classes))
    logits, labels, teacher, target = random_case(seed, 3, classes, kept, tau)
    bucket, _ = kd_and_gradient(logits, labels, target, tau, Tail.BUCKET)
    dense, _ = dense_and_gradient(logits, torch.log_softmax(teacher / tau, dim=1), tau)
    assert -1e-5 <= bucket <= dense + 1e-5


@given(seeds, st.integers(2, 40), taus, st.data())
@settings(deadline=None)
def test_uniform_is_the_dense_kl_to_a_teacher_with_its_tail_spread_evenly(
    seed: int, classes: int, tau: float, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, classes - 1))
    logits, labels, teacher, target = random_case(seed, 3, classes, kept, tau)
    q = torch.softmax(teacher / tau, dim=1)
    q_best = q.gather(1, target.ids_BK)
    rest = (1.0 - q_best.sum(dim=1, keepdim=True)) / (classes - kept)
    spread = rest.expand(-1, classes).scatter(1, target.ids_BK, q_best)
    expected = dense_and_gradient(logits, spread.log(), tau)
    assert_same(kd_and_gradient(logits, labels, target, tau, Tail.UNIFORM), expected, tau)


@given(seeds, taus)
@settings(deadline=None, max_examples=20)
def test_renormalize_and_drop_are_what_the_docs_say(seed: int, tau: float) -> None:
    logits, labels, teacher, target = random_case(seed, 3, 20, 6, tau)
    log_s = torch.log_softmax(logits.double() / tau, dim=1).gather(1, target.ids_BK)
    log_q = torch.log_softmax(teacher / tau, dim=1).gather(1, target.ids_BK)
    dropped = tau**2 * (log_q.exp() * (log_q - log_s)).sum(dim=1).mean()
    log_q = torch.log_softmax(log_q, dim=1)
    renormalized = tau**2 * (log_q.exp() * (log_q - log_s)).sum(dim=1).mean()
    for tail, expected in ((Tail.DROP, dropped), (Tail.RENORMALIZE, renormalized)):
        kd, _ = kd_and_gradient(logits, labels, target, tau, tail)
        torch.testing.assert_close(kd.double(), expected, rtol=1e-5, atol=1e-5)


@given(seeds, st.floats(0.0, 1.0), taus)
@settings(deadline=None)
def test_the_total_is_the_papers_equation_3(seed: int, alpha: float, tau: float) -> None:
    logits, labels, _, target = random_case(seed, 4, 20, 5, tau)
    loss = distillation_loss(logits, labels, target, alpha=alpha, temperature=tau)
    torch.testing.assert_close(loss.ce, F.cross_entropy(logits, labels))
    torch.testing.assert_close(loss.total, (1.0 - alpha) * loss.ce + alpha * loss.kd)


extreme_logit = st.sampled_from([0.0, 1.0, -50.0, 1e4, -1e4, 3e38, -3e38])
extreme_logp = st.sampled_from([0.0, -1e-4, -30.0, -65504.0])


@given(
    st.lists(extreme_logit, min_size=6, max_size=6),
    st.lists(extreme_logp, min_size=3, max_size=3),
    st.sampled_from([-math.inf, -65504.0, -20.0, 0.0, 3.0]),
    st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from([(c, tail) for c in Criterion for tail in TAILS[c]]),
)
@settings(deadline=None, max_examples=1000)
def test_loss_and_gradient_are_finite_however_extreme_the_logits(
    logits: list[float],
    logp: list[float],
    tail_mass: float,
    tau: float,
    alpha: float,
    choice: tuple[Criterion, Tail],
) -> None:
    criterion, tail = choice
    tau = 1.0 if criterion is Criterion.HARD else tau
    leaf = torch.tensor([logits]).requires_grad_()
    ids, mass = [4, 0, 2], tail_mass
    if criterion is Criterion.STANDARDIZED:  # it needs every class
        ids, logp, mass = [4, 0, 2, 1, 5, 3], [*logp, *reversed(logp)], -math.inf
    target = SparseTarget(
        ids_BK=torch.tensor([ids]),
        logp_BK=torch.tensor([logp]),
        tail_B=torch.tensor([mass]),
    )
    labels = torch.tensor([1])
    loss = distillation_loss(
        leaf, labels, target, alpha=alpha, temperature=tau, tail=tail, criterion=criterion
    )
    (slope,) = torch.autograd.grad(loss.total, leaf)
    for value in (loss.total, loss.ce, loss.kd, slope):
        assert value.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_show(bad: float) -> None:
    logits, labels, _, target = random_case(0, 2, 10, 3, 1.0)
    logits[1, 4] = bad
    assert distillation_loss(logits, labels, target, alpha=0.9, temperature=1.0).total.isnan()


def test_the_tail_of_a_certain_student_is_not_lost_to_cancellation() -> None:
    logits = torch.zeros(1, 1001)
    logits[0, 7] = 60.0
    target = SparseTarget(
        ids_BK=torch.tensor([[7]]),
        logp_BK=torch.tensor([[math.log(0.5)]]),
        tail_B=torch.tensor([math.log(0.5)]),
    )
    loss = distillation_loss(logits, torch.tensor([7]), target, alpha=1.0, temperature=1.0)
    expected = math.log(0.5) - 0.5 * (math.log(1000.0) - 60.0)
    assert loss.kd.item() == pytest.approx(expected, rel=1e-6)


def test_a_tail_of_no_mass_is_a_tail_of_very_little() -> None:
    logits, labels, _, target = random_case(3, 4, 20, 5, 2.0)
    none, little = (
        SparseTarget(target.ids_BK, target.logp_BK, torch.full((4,), mass))
        for mass in (-math.inf, -80.0)
    )
    for tail in (Tail.BUCKET, Tail.UNIFORM):
        got = kd_and_gradient(logits, labels, none, 2.0, tail)
        expected = kd_and_gradient(logits, labels, little, 2.0, tail)
        torch.testing.assert_close(got, expected)


def test_without_a_teacher_it_is_cross_entropy() -> None:
    logits, labels, _, target = random_case(1, 4, 10, 3, 2.0)
    alone = distillation_loss(logits, labels, None, alpha=0.0, temperature=2.0)
    assert alone.total.item() == alone.ce.item()
    assert alone.kd.item() == 0.0
    torch.testing.assert_close(alone.ce, F.cross_entropy(logits, labels))
    watched = distillation_loss(logits, labels, target, alpha=0.0, temperature=2.0)
    assert watched.total.item() == alone.total.item()
    assert watched.kd.item() > 0.0


def test_half_precision_students_get_a_float32_loss() -> None:
    logits, labels, _, target = random_case(2, 4, 50, 10, 2.0)
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(half, labels, target, alpha=0.9, temperature=2.0)
    assert {loss.total.dtype, loss.ce.dtype, loss.kd.dtype} == {torch.float32}
    assert loss.total.shape == loss.ce.shape == loss.kd.shape == ()
    loss.total.backward()
    assert half.grad is not None
    full: Loss = distillation_loss(
        half.detach().float(), labels, target, alpha=0.9, temperature=2.0
    )
    assert loss.total.item() == full.total.item()


@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0])
def test_records_of_the_cache_give_the_dense_loss(tau: float) -> None:
    generator = torch.Generator().manual_seed(5)
    teacher, logits = (3.0 * torch.randn(8, 100, generator=generator) for _ in range(2))
    records = top_k(teacher, k=100, temperatures=[tau])
    target = SparseTarget(
        ids_BK=torch.from_numpy(records.ids_BK.astype("int64")),
        logp_BK=torch.from_numpy(records.logp_BK.astype("float32")),
        tail_B=torch.from_numpy(records.tail_BT[:, 0].astype("float32")),
    )
    labels = torch.zeros(8, dtype=torch.int64)
    kd, gradient = kd_and_gradient(logits, labels, target, tau, Tail.BUCKET)
    log_q = torch.log_softmax(teacher.double() / tau, dim=1)
    dense, dense_gradient = dense_and_gradient(logits, log_q, tau)
    torch.testing.assert_close(kd.double(), dense, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(gradient.double(), dense_gradient, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("alpha", "temperature", "has_target", "message"),
    [
        (1.1, 1.0, True, "alpha is 1.1, expected 0 to 1"),
        (math.nan, 1.0, True, "alpha is nan"),
        (0.5, 0.0, True, "temperature is 0.0, expected above 0"),
        (0.5, math.inf, True, "temperature is inf"),
        (0.5, 1.0, False, "alpha is 0.5 without a teacher, expected 0"),
    ],
)
def test_arguments_out_of_range_are_refused(
    alpha: float, temperature: float, has_target: bool, message: str
) -> None:
    logits, labels, _, target = random_case(0, 2, 10, 3, 1.0)
    with pytest.raises(ValueError, match=message):
        distillation_loss(
            logits, labels, target if has_target else None, alpha=alpha, temperature=temperature
        )


def test_a_target_of_other_rows_or_classes_is_refused() -> None:
    logits, labels, _, target = random_case(0, 2, 10, 3, 1.0)
    wider = SparseTarget(torch.zeros(2, 11, dtype=torch.int64), torch.zeros(2, 11), torch.zeros(2))
    fewer = SparseTarget(target.ids_BK[:1], target.logp_BK[:1], target.tail_B[:1])
    untold = SparseTarget(target.ids_BK, target.logp_BK, target.tail_B[:, None])
    for bad in (wider, fewer, untold):
        with pytest.raises(ValueError, match=r"expected \[2, K\], \[2, K\] and \[2\]"):
            distillation_loss(logits, labels, bad, alpha=0.5, temperature=1.0)


@pytest.mark.parametrize(
    ("tau", "least", "most"),
    [(0.01, 0.0, 1e-2), (1.0, 0.0, 1e-3), (4.0, 0.0, 1e-2), (100.0, 0.0, 0.05), (1e3, 0.15, 1.0)],
)
def test_a_recipes_temperatures_are_those_at_which_the_gradient_is_the_losss(
    tau: float, least: float, most: float
) -> None:
    """Of float16 records of a teacher of 1,000 classes, against bucket KL in float64."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1000, (64,), generator=generator)
    teacher = 2.0 * torch.randn(64, 1000, generator=generator)
    teacher[torch.arange(64), labels] += 8.0
    logits = 0.7 * teacher + 2.0 * torch.randn(64, 1000, generator=generator)
    record = top_k(teacher, k=20, temperatures=[tau])
    ids = torch.from_numpy(record.ids_BK.astype("int64"))
    target = SparseTarget(
        ids_BK=ids,
        logp_BK=torch.from_numpy(record.logp_BK).float(),
        tail_B=torch.from_numpy(record.tail_BT[:, 0]).float(),
    )
    _, found = kd_and_gradient(logits, labels, target, tau, Tail.BUCKET)
    kept = torch.zeros(64, 1000, dtype=torch.bool).scatter_(1, ids, value=True)

    def bucket(scores: Tensor) -> Tensor:
        log = torch.log_softmax(scores / tau, dim=1)
        tail = log.masked_fill(kept, -torch.inf).logsumexp(dim=1, keepdim=True)
        return torch.cat([log.gather(1, ids), tail], dim=1)

    exact = logits.double().requires_grad_()
    log_q, log_s = bucket(teacher.double()), bucket(exact)
    loss = tau**2 * (log_q.exp() * (log_q - log_s)).sum(dim=1).mean()
    (expected,) = torch.autograd.grad(loss, exact)
    assert least < float((found - expected).norm() / expected.norm()) < most
