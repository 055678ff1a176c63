"""Logit standardization: the student follows the teacher's order and spacing, not its scale.

Shapes: B rows, C classes.
"""

from torch import Tensor
from torch.nn.functional import layer_norm

from student.losses.target import SparseTarget, floored, spread_evenly


def standardized(log_s_BC: Tensor, target: SparseTarget, temperature: float) -> Tensor:
    """KL(softmax(Z(teacher) / tau) || softmax(Z(student) / tau)) (arXiv 2403.01427), nats [B].

    Z(z) = (z - mean) / standard deviation, over a row's classes. It is the same for logits and for
    log-probabilities at any temperature. Mean and deviation are those of all classes: a guess for
    some of them is no substitute.

    Args:
        log_s_BC: the student's log-probabilities at `temperature`.
        target: the teacher's records of every class.
        temperature: tau.
    """
    log_q_BC = floored(_standard(spread_evenly(log_s_BC, target, temperature)) / temperature)
    log_s_BC = floored(_standard(log_s_BC) / temperature)
    return (log_q_BC.exp() * (log_q_BC - log_s_BC)).sum(dim=1)


def _standard(scores_BC: Tensor) -> Tensor:
    """Z, which no scale changes: so scores are made small first, lest their squares overflow."""
    scale_B1 = scores_BC.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-6)
    return layer_norm(scores_BC / scale_B1, scores_BC.shape[1:], eps=1e-12)
