"""Decoupled distillation: the label against all others, and the others among themselves.

Shapes: B rows, C classes.
"""

import torch
from torch import Tensor

from student.losses.target import FLOOR, SparseTarget, spread_evenly

BETA = 2.0
"""The weight of the other classes; that of the label is 1. The authors' for MobileNetV1 from
ResNet-50 on ImageNet, at temperature 1; for ResNet-18 from ResNet-34 they take 0.5."""


def dkd(log_s_BC: Tensor, target: SparseTarget, labels_B: Tensor, temperature: float) -> Tensor:
    """DKD (arXiv 2203.08679, eq. 7): KL(b_q || b_s) + BETA KL(q' || s'), nats [B].

    b is (p of the label, p of the others), and q', s' are the others among themselves. KL(q || s)
    is the same with 1 - q of the label in BETA's place. The teacher's other classes, the label
    among them where it is not kept, share the tail evenly.

    Args:
        log_s_BC: the student's log-probabilities at `temperature`.
        target: the teacher's records.
        labels_B: int64 class ids.
        temperature: of both.
    """
    label_B1 = labels_B[:, None]
    log_q_B2, log_q_BC = _decoupled(spread_evenly(log_s_BC, target, temperature), label_B1)
    log_s_B2, log_s_BC = _decoupled(log_s_BC, label_B1)
    others_BC = (log_q_BC.exp() * (log_q_BC - log_s_BC)).scatter(1, label_B1, 0.0)
    label_B = (log_q_B2.exp() * (log_q_B2 - log_s_B2)).sum(dim=1)
    return label_B + BETA * others_BC.sum(dim=1)


def _decoupled(log_p_BC: Tensor, label_B1: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2] of the label and of the others; [B, C] of the others among themselves."""
    # never log(1 - p): that cancels to log 0 for a certain teacher or student
    log_rest_B1 = log_p_BC.scatter(1, label_B1, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_rest_B1 = log_rest_B1.clamp(min=FLOOR)
    return torch.cat([log_p_BC.gather(1, label_B1), log_rest_B1], dim=1), log_p_BC - log_rest_B1
