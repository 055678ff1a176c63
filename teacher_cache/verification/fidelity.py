"""How near training on records comes to training on the teacher's whole answer. Pure, float64.

A student with softmax s that learns from a distribution q by tau^2 KL(q || s) gets the gradient
tau (s - q) in its logits. A record leaves out how the tail's mass lies on the C - K classes that it
does not name, and a tail treatment stands for that: so the student is drawn to another q than the
teacher's. The measure is the cosine between the two gradients, at two students: one that gives
every class the same logit, and one as good as a student gets, which gives the teacher's logits of
another view of the same image.

B rows, K kept classes, L = K + 1 with the tail, C classes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from teacher_cache.record import Tail
from teacher_cache.verification.divergence import kl

LEAST_COSINE = 0.95
"""A mean below this is another loss than the one that is named, and training warns of it."""
PROPER = (Tail.UNIFORM, Tail.BUCKET)
"""The treatments that are a KL."""
STATISTICS = ("mean", "5%", "least")


class Student(StrEnum):
    """Whose gradients are compared."""

    FRESH = "fresh"
    """Every class has the same logit."""
    TRAINED = "trained-like"
    """The teacher's logits of another view of the image."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Cosines of many rows, or another measure of each of them."""

    mean: float
    low: float
    """The 5% quantile."""
    least: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Fidelity | None":
        """Of rows that have a value; None where none has."""
        there = values[~np.isnan(values)]
        if not len(there):
            return None
        return cls(float(there.mean()), float(np.quantile(there, 0.05)), float(there.min()))

    def spelt(self) -> dict[str, float]:
        """By the names of its statistics, to four digits."""
        values = (self.mean, self.low, self.least)
        return {name: round(value, 4) for name, value in zip(STATISTICS, values, strict=True)}


def at_temperature(logp_BK: Tensor, tail_B1: Tensor, tau: float) -> Tensor:
    """A record's log-probabilities [B, L] at a temperature, the tail last, as the loss sees them.

    Args:
        logp_BK: at temperature 1.
        tail_B1: the tail's log-mass at `tau`; -inf where all classes are kept.
        tau: the temperature.
    """
    return torch.cat([logp_BK / tau, tail_B1], 1).log_softmax(1)


def drawn_to(log_s_BC: Tensor, ids_BK: Tensor, log_q_BL: Tensor, tail: Tail) -> Tensor:
    """The log-probabilities [B, C] that a record, so treated, draws a student to.

    Args:
        log_s_BC: the student's log-probabilities at the record's temperature.
        ids_BK: int64, the record's classes.
        log_q_BL: from `at_temperature`.
        tail: what stands for the other classes. Those of `drop` do not sum to 1.
    """
    kept = ids_BK.shape[1]
    log_q_BK, log_tail_B1 = log_q_BL[:, :kept], log_q_BL[:, kept:]
    if tail is Tail.RENORMALIZE:
        log_q_BK = log_q_BK.log_softmax(1)
    if tail is Tail.BUCKET:  # its gradient moves the other classes in proportion to the student
        log_rest_BC = log_s_BC.scatter(1, ids_BK, -torch.inf)
        others_BC = log_tail_B1 + log_s_BC - log_rest_BC.logsumexp(1, keepdim=True)
    elif tail is Tail.UNIFORM:
        others = max(log_s_BC.shape[1] - kept, 1)
        others_BC = (log_tail_B1 - math.log(others)).expand_as(log_s_BC)
    else:
        others_BC = torch.full_like(log_s_BC, -torch.inf)
    return others_BC.scatter(1, ids_BK, log_q_BK)


def gradient(log_s_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """Of sum q (log q - log s) in the student's logits, times tau: [B, C]."""
    q_BC = log_q_BC.exp()
    return q_BC.sum(1, keepdim=True) * log_s_BC.exp() - q_BC


def cosine(one_BC: Tensor, other_BC: Tensor) -> Tensor:
    """[B] the cosine of the angle between rows; NaN where one of them has no direction."""
    norms_B = one_BC.norm(dim=1) * other_BC.norm(dim=1)
    cosines_B = ((one_BC * other_BC).sum(1) / norms_B).clamp(-1, 1)
    return torch.where(norms_B > 0, cosines_B, torch.nan)


def fidelities(
    log_p_BC: Tensor,
    another_BC: Tensor,
    ids_BK: Tensor,
    logp_BK: Tensor,
    tail_B1: Tensor,
    tau: float,
) -> Iterator[tuple[Student, Tail, Tensor, Tensor]]:
    """For either student and treatment: cosines [B], and KL(dense || drawn to) [B] in nats.

    Args:
        log_p_BC: float64, the teacher's log-probabilities at temperature 1.
        another_BC: float64, the same of other views of the images.
        ids_BK: int64, the records' classes.
        logp_BK: float64, their log-probabilities at temperature 1.
        tail_B1: float64, their tail at `tau`.
        tau: the temperature.
    """
    log_dense_BC = (log_p_BC / tau).log_softmax(1)
    log_q_BL = at_temperature(logp_BK, tail_B1, tau)
    for student in Student:
        logits_BC = another_BC if student is Student.TRAINED else torch.zeros_like(another_BC)
        log_s_BC = (logits_BC / tau).log_softmax(1)
        dense_BC = gradient(log_s_BC, log_dense_BC)
        for tail in PROPER:
            log_q_BC = drawn_to(log_s_BC, ids_BK, log_q_BL, tail)
            cosine_B = cosine(gradient(log_s_BC, log_q_BC), dense_BC)
            yield student, tail, cosine_B, kl(log_dense_BC, log_q_BC).clamp(min=0)


def measure_name(tau: float, tail: Tail, student: Student, statistic: str) -> str:
    """Under which a cache keeps a statistic of the cosines with its teacher's sample."""
    return f"gradient cosine, tau {tau:g}, {tail}, {student}, {statistic}"


def to_measures(found: Mapping[tuple[float, Tail, Student], Fidelity | None]) -> dict[str, float]:
    """As a cache keeps them; nothing of what has no value."""
    return {
        measure_name(*key, statistic): value
        for key, each in found.items()
        if each is not None
        for statistic, value in zip(STATISTICS, (each.mean, each.low, each.least), strict=True)
    }


def expected(
    measures: Mapping[str, float], tau: float, tail: Tail
) -> dict[Student, Fidelity] | None:
    """What a cache's sample says of a temperature and treatment; None where it was not measured.

    Numbers that are no cosines are taken for none: a stranger may have written them.
    """
    found = {}
    for student in Student:
        names = [measure_name(tau, tail, student, statistic) for statistic in STATISTICS]
        if all(-1 <= measures.get(name, math.nan) <= 1 for name in names):
            found[student] = Fidelity(*(measures[name] for name in names))
    return found or None
