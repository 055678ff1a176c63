"""Logit standardization: the student follows the teacher's order and spacing, not its scale.

Shapes: B rows, K kept classes, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from student.losses.target import SparseTarget, floored, spread_evenly

LEAST_DEVIATION = 1e-2
"""In nats. Below it a teacher says nothing, and float16 records of it are rounding."""


def standardized(log_s_BC: Tensor, target: SparseTarget, temperature: float) -> Tensor:
    """KL(softmax(Z(teacher) / tau) || softmax(Z(student) / tau)) (arXiv 2403.01427), nats [B].

    Z(z) = (z - mean) / standard deviation, over a row's classes. It is the same for logits and for
    log-probabilities at any temperature. Where some classes are kept, their Z is exact by the
    recorded mean and deviation; these also tell mean and variance of the other classes' Z, which
    share exp(mean + variance / 2) of Z / tau, as if they were normal.

    Args:
        log_s_BC: the student's log-probabilities at `temperature`.
        target: the teacher's records of every class, or with moments.
        temperature: tau.
    """
    if target.ids_BK.shape[1] == log_s_BC.shape[1]:
        z_BC = _standard(spread_evenly(log_s_BC, target, temperature)) / temperature
    else:
        z_BC = _of_moments(log_s_BC, target, temperature)
    log_q_BC = floored(z_BC)
    log_s_BC = floored(_standard(log_s_BC) / temperature)
    return (log_q_BC.exp() * (log_q_BC - log_s_BC)).sum(dim=1)


def _of_moments(log_s_BC: Tensor, target: SparseTarget, temperature: float) -> Tensor:
    """[B, C] Z / tau of the teacher, the other classes' all alike."""
    assert target.moments_B2 is not None
    kept, classes = target.ids_BK.shape[1], log_s_BC.shape[1]
    others = classes - kept
    mean_B1, deviation_B1 = target.moments_B2.to(log_s_BC).split(1, dim=1)
    z_BK = (target.logp_BK.to(log_s_BC) - mean_B1) / deviation_B1.clamp(min=LEAST_DEVIATION)
    # All C sum to 0 and their squares to C.
    mean_z_B1 = -z_BK.sum(dim=1, keepdim=True) / others
    squares_B1 = classes - (z_BK**2).sum(dim=1, keepdim=True)
    variance_B1 = (squares_B1 / others - mean_z_B1**2).clamp(min=0.0)
    even_B1 = mean_z_B1 / temperature + variance_B1 / (2 * temperature**2)
    # no other class is likelier than the last kept one
    even_B1 = torch.minimum(even_B1, z_BK.amin(dim=1, keepdim=True) / temperature)
    return even_B1.expand_as(log_s_BC).scatter(1, target.ids_BK, z_BK / temperature)


def _standard(scores_BC: Tensor) -> Tensor:
    """Z, which no scale changes: so scores are made small first, lest their squares overflow."""
    scale_B1 = scores_BC.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-6)
    return layer_norm(scores_BC / scale_B1, scores_BC.shape[1:], eps=1e-12)
