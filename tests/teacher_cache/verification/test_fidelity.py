"""The cosine of sparse and whole gradients: against dense arithmetic, and where it must be 1."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.record import Tail
from teacher_cache.teacher.answers import top_k
from teacher_cache.verification.fidelity import (
    Fidelity,
    Student,
    at_temperature,
    cosine,
    drawn_to,
    expected,
    fidelities,
    gradient,
    to_measures,
)

taus = st.sampled_from([0.5, 1.0, 2.0, 4.0])


def case(seed, rows, classes, kept, tau):
    """Two views' log-probabilities, and exact records of the first."""
    generator = torch.Generator().manual_seed(seed)
    log_p_BC, another_BC = (
        (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).log_softmax(1)
        for _ in range(2)
    )
    logp_BK, ids_BK = log_p_BC.topk(kept, dim=1)
    tail_B1 = (log_p_BC / tau).scatter(1, ids_BK, -torch.inf).logsumexp(1, keepdim=True)
    return log_p_BC, another_BC, ids_BK, logp_BK, tail_B1


@given(st.integers(0, 2**31), st.integers(2, 30), taus, st.sampled_from(Tail), st.data())
@settings(deadline=None)
def test_a_student_is_drawn_to_the_kept_classes_as_they_are_and_to_the_tail_in_total(
    seed, classes, tau, tail, data
):
    kept = data.draw(st.integers(1, classes - 1))
    log_p_BC, another_BC, ids_BK, logp_BK, tail_B1 = case(seed, 4, classes, kept, tau)
    p_BC = (log_p_BC / tau).softmax(1)
    log_s_BC = (another_BC / tau).log_softmax(1)
    log_q_BL = at_temperature(logp_BK, tail_B1, tau)
    q_BC = drawn_to(log_s_BC, ids_BK, log_q_BL, tail).exp()
    p_BK, q_BK = p_BC.gather(1, ids_BK), q_BC.gather(1, ids_BK)
    if tail is Tail.RENORMALIZE:
        torch.testing.assert_close(q_BK, p_BK / p_BK.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(q_BK, p_BK)
    rest_BC = q_BC.scatter(1, ids_BK, 0.0)
    if tail in (Tail.UNIFORM, Tail.BUCKET):
        torch.testing.assert_close(q_BC.sum(1), torch.ones(4, dtype=torch.float64))
        s_BC = log_s_BC.exp() if tail is Tail.BUCKET else torch.ones_like(log_s_BC)
        shape_BC = s_BC.scatter(1, ids_BK, 0.0)
        shape_BC /= shape_BC.sum(1, keepdim=True)
        torch.testing.assert_close(rest_BC, shape_BC * (1 - p_BK.sum(1, keepdim=True)))
    else:
        assert not rest_BC.any()


@given(st.integers(0, 2**31), st.integers(1, 30), taus)
@settings(deadline=None)
def test_with_every_class_kept_all_cosines_are_1_and_nothing_is_lost(seed, classes, tau):
    rows = list(fidelities(*case(seed, 4, classes, classes, tau), tau))
    assert len(rows) == 4
    for _, _, cosine_B, lost_B in rows:
        there = cosine_B[~cosine_B.isnan()]  # of one class there is nothing to learn
        torch.testing.assert_close(there, torch.ones_like(there))
        assert lost_B.max() < 1e-12


@given(st.integers(0, 2**31), st.integers(2, 30), taus, st.data())
@settings(deadline=None)
def test_what_is_lost_is_the_kl_of_dense_arithmetic_and_treatments_agree_on_a_fresh_student(
    seed, classes, tau, data
):
    kept = data.draw(st.integers(1, classes - 1))
    log_p_BC, another_BC, ids_BK, logp_BK, tail_B1 = case(seed, 3, classes, kept, tau)
    found = {
        (student, tail): (cosine_B, lost_B)
        for student, tail, cosine_B, lost_B in fidelities(
            log_p_BC, another_BC, ids_BK, logp_BK, tail_B1, tau
        )
    }
    p = (log_p_BC / tau).softmax(1).numpy()
    for row, ids in enumerate(ids_BK.numpy()):
        rest = np.setdiff1d(np.arange(classes), ids)
        even = np.full(classes, p[row, rest].sum() / len(rest))
        even[ids] = p[row, ids]
        dense = (p[row] * np.log(p[row] / even)).sum()
        assert found[Student.TRAINED, Tail.UNIFORM][1][row] == pytest.approx(dense, abs=1e-9)
        one, other = 1 / classes - even, 1 / classes - p[row]
        norms = np.linalg.norm(one) * np.linalg.norm(other)
        fresh = found[Student.FRESH, Tail.UNIFORM][0][row]
        assert fresh == pytest.approx(one @ other / norms, abs=1e-9)
    for mine, theirs in zip(
        found[Student.FRESH, Tail.UNIFORM], found[Student.FRESH, Tail.BUCKET], strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_records_as_stored_are_never_nan_however_certain_the_teacher():
    logits_BC = torch.zeros(3, 50)
    logits_BC[0, 7], logits_BC[1, 7], logits_BC[2] = 90.0, 1e6, torch.arange(50.0) * 1e4
    topk = top_k(logits_BC, k=5, temperatures=(1.0,))
    log_p_BC = logits_BC.double().log_softmax(1)
    ids_BK = torch.from_numpy(topk.ids_BK.astype(np.int64))
    records = (torch.from_numpy(topk.logp_BK).double(), torch.from_numpy(topk.tail_BT).double())
    for _, _, cosine_B, lost_B in fidelities(log_p_BC, -log_p_BC, ids_BK, *records, 1.0):
        assert cosine_B.isfinite().all()
        assert cosine_B.min() > 0.999
        assert not lost_B.isnan().any()


def test_a_gradient_of_nothing_has_no_direction_and_is_left_out_of_the_statistics():
    values = cosine(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert values[0].isnan()
    found = Fidelity.of(values.numpy())
    assert found.mean == found.low == found.least == pytest.approx(math.sqrt(0.5))
    assert Fidelity.of(np.array([math.nan])) is None
    assert to_measures({(1.0, Tail.UNIFORM, Student.FRESH): None}) == {}
    log_s = torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    assert not gradient(log_s, log_s).any()


def test_what_a_cache_keeps_is_found_again_by_temperature_and_tail():
    fidelity = {student: Fidelity(0.9, 0.8, 0.1 * n) for n, student in enumerate(Student)}
    measures = to_measures({(2.0, Tail.BUCKET, s): each for s, each in fidelity.items()})
    assert expected(measures, 2.0, Tail.BUCKET) == fidelity
    assert expected(measures, 2.0, Tail.UNIFORM) is None
    assert expected(measures, 1.0, Tail.BUCKET) is None
    assert expected({}, 2.0, Tail.BUCKET) is None
    for forged in (math.nan, math.inf, 1.5):
        assert expected(dict.fromkeys(measures, forged), 2.0, Tail.BUCKET) is None
