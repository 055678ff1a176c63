"""DIST: the student's answers correlate with the teacher's, whatever their scale.

Shapes: B rows, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from student.losses.target import SparseTarget, same_events
from teacher_cache.record import Tail


def dist(log_s_BC: Tensor, target: SparseTarget, temperature: float) -> Tensor:
    """DIST (arXiv 2205.10536, eq. 8 to 10): 1 - correlation over classes, plus that over images.

    The first is the mean over rows of 1 - Pearson's correlation of the row's C probabilities, the
    second the mean over classes of that of the class's B probabilities. Both weigh the same (the
    paper's beta = gamma = 1 for ImageNet). The teacher's other classes share the tail evenly.

    Args:
        log_s_BC: the student's log-probabilities at `temperature`.
        target: the teacher's records.
        temperature: of both.

    Returns:
        0 to 4, 0-d. Of one row there is no correlation over images: that part is 1 there, and
        draws the student nowhere.
    """
    log_q, log_s = same_events(log_s_BC, target, temperature, Tail.UNIFORM)
    q, s = log_q.exp(), log_s.exp()
    if log_q.shape[1] == target.ids_BK.shape[1]:  # every class is kept: back into their order
        q, s = torch.zeros_like(q).scatter(1, target.ids_BK, q), log_s_BC.exp()
    return (1 - _correlation(s, q, dim=1)).mean() + (1 - _correlation(s, q, dim=0)).mean()


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's, 0 where one of them does not vary."""
    return cosine_similarity(
        one - one.mean(dim, keepdim=True), other - other.mean(dim, keepdim=True), dim=dim, eps=1e-8
    )
