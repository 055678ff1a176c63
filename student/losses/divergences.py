"""Divergences between the teacher's records and the student, row by row.

q is the teacher's distribution at temperature tau and s the student's. Each function takes the
student's log-probabilities at tau [B, C], whatever their float type, and returns nats [B].

Shapes: B rows, K kept classes, L = K + 1 with the tail, C classes.
"""

import math

import torch
from torch import Tensor

from student.losses.target import SparseTarget, same_events, with_bucket
from teacher_cache.record import Tail


def kl(log_s_BC: Tensor, target: SparseTarget, temperature: float, tail: Tail) -> Tensor:
    """Sum q (log q - log s): GhostNetV3's (arXiv 2404.11202, eq. 4), after Hinton et al. 2015.

    No [B, C] matrix of the teacher is built.
    """
    kept = target.ids_BK.shape[1]
    others = log_s_BC.shape[1] - kept
    log_s_BK = log_s_BC.gather(1, target.ids_BK)
    if others == 0 or tail is Tail.RENORMALIZE:
        return _expectation(target.kept_at(temperature, log_s_BC), log_s_BK)
    log_q_BL = target.all_at(temperature, log_s_BC)
    if tail is Tail.DROP:
        return _expectation(log_q_BL[:, :kept], log_s_BK)
    if tail is Tail.BUCKET:
        return _expectation(log_q_BL, with_bucket(log_s_BC, target.ids_BK))
    # UNIFORM: C - k equal terms q/n (log q - log n - log s_c) = q (log q - log n - mean log s_c).
    mean_log_s_B = log_s_BC.scatter(1, target.ids_BK, 0.0).sum(dim=1) / others
    log_s_even_B1 = (mean_log_s_B + math.log(others))[:, None]
    return _expectation(log_q_BL, torch.cat([log_s_BK, log_s_even_B1], dim=1))


def reverse_kl(log_s_BC: Tensor, target: SparseTarget, temperature: float, tail: Tail) -> Tensor:
    """Sum s (log s - log q), as MiniLLM distils (arXiv 2306.08543).

    `tail` is bucket or uniform.
    """
    log_q, log_s = same_events(log_s_BC, target, temperature, tail)
    return _expectation(log_s, log_q)


def jsd(log_s_BC: Tensor, target: SparseTarget, temperature: float, tail: Tail) -> Tensor:
    """(KL(q || m) + KL(s || m)) / 2 with m = (q + s) / 2 (Lin 1991; in GKD, arXiv 2306.13649).

    `tail` is bucket or uniform.
    """
    log_q, log_s = same_events(log_s_BC, target, temperature, tail)
    log_m = torch.logaddexp(log_q, log_s) - math.log(2)
    return (_expectation(log_q, log_m) + _expectation(log_s, log_m)) / 2


def hard(log_s_BC: Tensor, target: SparseTarget) -> Tensor:
    """-log s of the teacher's best class: DeiT's hard distillation (arXiv 2012.12877).

    `log_s_BC` is at temperature 1.
    """
    best_B1 = target.ids_BK.gather(1, target.logp_BK.argmax(dim=1, keepdim=True))
    return -log_s_BC.gather(1, best_B1)[:, 0]


def _expectation(log_q_BL: Tensor, log_s_BL: Tensor) -> Tensor:
    return (log_q_BL.exp() * (log_q_BL - log_s_BL)).sum(dim=1)
