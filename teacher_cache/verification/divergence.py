"""How far a teacher's whole answer is from what a record says of it. Pure.

B rows, K kept classes, C classes.
"""

import torch
from torch import Tensor


def kl_of_records(
    log_p_BC: Tensor, ids_BK: Tensor, logp_BK: Tensor, tail_B1: Tensor, tau: float
) -> Tensor:
    """KL(live || record) at a temperature, the tail as one class: nats, float64 [B].

    Args:
        log_p_BC: float64, the live teacher's log-probabilities at temperature 1.
        ids_BK: int64, the record's classes.
        logp_BK: float64, their recorded log-probabilities at temperature 1.
        tail_B1: float64, the recorded tail at `tau`: -inf where all classes are kept.
        tau: the temperature.
    """
    live_BL = bucketed((log_p_BC / tau).log_softmax(1), ids_BK)
    return kl(live_BL, torch.cat([logp_BK / tau, tail_B1], 1).log_softmax(1)).clamp(min=0)


def bucketed(log_p_BC: Tensor, ids_BK: Tensor) -> Tensor:
    """The kept classes, and all others as one more: log-probabilities [B, K + 1]."""
    rest_B1 = log_p_BC.scatter(1, ids_BK, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([log_p_BC.gather(1, ids_BK), rest_B1], 1)


def kl(log_p_BL: Tensor, log_q_BL: Tensor) -> Tensor:
    """The sum of p (log p - log q), where 0 log 0 is 0."""
    terms_BL = log_p_BL.exp() * (log_p_BL - log_q_BL)
    return torch.where(log_p_BL.isneginf(), 0.0, terms_BL).sum(dim=1)
