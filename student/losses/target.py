"""The teacher's records of a batch, at a temperature, and the student's answer to the same.

Shapes: B rows, K kept classes, L = K + 1 with the tail, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from teacher_cache.record import Tail

# Far below any log-probability that a run can recover from, and far above float32's range: every
# product and sum below stays finite, so that 0 * log 0 is 0 and not NaN.
FLOOR = -1e30


@dataclass(frozen=True, slots=True)
class SparseTarget:
    """The teacher's records of B rows, on the student's device."""

    ids_BK: Tensor
    """int64 class ids, all different in a row."""
    logp_BK: Tensor
    """float32 log-probabilities at temperature 1, in nats, finite."""
    tail_B: Tensor
    """float32 log-mass of the other classes at the loss's own temperature; -inf for none."""
    moments_B2: Tensor | None = None
    """float32 mean and standard deviation of all classes' log-probabilities, where recorded."""

    @classmethod
    def of_all(cls, logp_BC: Tensor) -> Self:
        """Records of every class: whole answers, from log-probabilities at temperature 1."""
        ids_BC = torch.arange(logp_BC.shape[1], device=logp_BC.device).expand_as(logp_BC)
        return cls(ids_BC, logp_BC, torch.full_like(logp_BC[:, 0], -torch.inf))

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Self:
        """The same records after `move`, such as to another device."""
        moments = None if self.moments_B2 is None else move(self.moments_B2)
        return type(self)(move(self.ids_BK), move(self.logp_BK), move(self.tail_B), moments)

    def kept_at(self, temperature: float, log_s_BC: Tensor) -> Tensor:
        """[B, K] log-probabilities of the kept classes among themselves, in the student's type."""
        return floored(self.logp_BK.to(log_s_BC) / temperature)

    def all_at(self, temperature: float, log_s_BC: Tensor) -> Tensor:
        """[B, L] log-probabilities at a temperature, the tail last, in the student's type.

        They are renormalised, since float16 records sum to 1 only to three digits.
        """
        scaled_BK = self.logp_BK.to(log_s_BC) / temperature
        return floored(torch.cat([scaled_BK, self.tail_B.to(log_s_BC)[:, None]], dim=1))


def floored(scores_BL: Tensor) -> Tensor:
    """Log-softmax, at least FLOOR."""
    return torch.log_softmax(scores_BL, dim=1).clamp(min=FLOOR)


def with_bucket(log_s_BC: Tensor, ids_BK: Tensor) -> Tensor:
    """[B, L] the student's log-probabilities of the kept classes and of all others together."""
    # Never log(1 - sum of the kept): that cancels to log 0 for a confident student.
    rest_BC = log_s_BC.scatter(1, ids_BK, -torch.inf)
    log_s_tail_B1 = torch.logsumexp(rest_BC, dim=1, keepdim=True)
    return torch.cat([log_s_BC.gather(1, ids_BK), log_s_tail_B1], dim=1)


def spread_evenly(log_s_BC: Tensor, target: SparseTarget, temperature: float) -> Tensor:
    """[B, C] the teacher's log-probabilities at a temperature, its tail in equal parts."""
    kept, classes = target.ids_BK.shape[1], log_s_BC.shape[1]
    if kept == classes:
        kept_BK = target.kept_at(temperature, log_s_BC)
        return torch.zeros_like(log_s_BC).scatter(1, target.ids_BK, kept_BK)
    log_q_BL = target.all_at(temperature, log_s_BC)
    even_B1 = log_q_BL[:, kept:] - math.log(classes - kept)
    return even_B1.expand_as(log_s_BC).scatter(1, target.ids_BK, log_q_BL[:, :kept])


def same_events(
    log_s_BC: Tensor, target: SparseTarget, temperature: float, tail: Tail
) -> tuple[Tensor, Tensor]:
    """Teacher's and student's log-probabilities of the same events.

    Of the kept classes and one bucket, [B, L], or of every class, [B, C].

    Args:
        log_s_BC: the student's log-probabilities at `temperature`.
        target: the teacher's records.
        temperature: of both.
        tail: `Tail.BUCKET`; or anything else for an even tail.
    """
    if tail is Tail.BUCKET and target.ids_BK.shape[1] < log_s_BC.shape[1]:
        return target.all_at(temperature, log_s_BC), with_bucket(log_s_BC, target.ids_BK)
    return spread_evenly(log_s_BC, target, temperature), log_s_BC
