"""DIST: the student's answers correlate with the teacher's, whatever their scale.

Shapes: B rows, C classes.
"""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from student.losses.target import SparseTarget, spread_evenly


def dist(log_s_BC: Tensor, target: SparseTarget, temperature: float) -> Tensor:
    """DIST (arXiv 2205.10536): 1 - correlation over classes, plus the same over images.

    The first is the mean over rows of 1 - Pearson's correlation of the row's C probabilities, the
    second the mean over classes of that of the class's B probabilities. Both weigh the same (its
    authors' code has beta = gamma = 1, too). The teacher's other classes share the tail evenly.

    Args:
        log_s_BC: the student's log-probabilities at `temperature`.
        target: the teacher's records.
        temperature: of both.

    Returns:
        0 to 4, 0-d. Of one row there is no correlation over images: that part is 1 there, and
        draws the student nowhere.
    """
    q, s = spread_evenly(log_s_BC, target, temperature).exp(), log_s_BC.exp()
    return (1 - _correlation(s, q, dim=1)).mean() + (1 - _correlation(s, q, dim=0)).mean()


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's, 0 where one of them does not vary."""
    return cosine_similarity(
        one - one.mean(dim, keepdim=True), other - other.mean(dim, keepdim=True), dim=dim, eps=1e-8
    )
