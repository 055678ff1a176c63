"""Teacher logits -> the top-k records that the cache stores. Pure.

Shapes: B rows, K kept classes, C classes, T temperatures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teacher_cache.record import FILL_ID, LOWEST_LOGP, TopK


@dataclass(frozen=True, slots=True)
class Answers:
    """What `TopK` is made of, still on the teacher's device and perhaps not computed yet."""

    class_count: int
    ids_BK: Tensor
    """int64."""
    logp_BK: Tensor
    """float64."""
    tail_BT: Tensor
    """float64."""
    finite_B: Tensor
    """bool: whether all logits of a row are."""
    moments_B2: Tensor | None = None
    """float64, where asked for."""

    def fetch(self) -> TopK:
        """Wait for the device.

        Raises:
            ValueError: non-finite logits (the message names the rows).
        """
        finite_B = self.finite_B.cpu().numpy()
        if not finite_B.all():
            raise ValueError(_not_finite(np.flatnonzero(~finite_B).tolist(), len(finite_B)))
        return TopK(
            ids_BK=self.ids_BK.cpu()
            .numpy()
            .astype(np.uint16 if self.class_count <= FILL_ID else np.uint32),
            logp_BK=_float16(self.logp_BK),
            tail_BT=_float16(self.tail_BT),
            moments_B2=None if self.moments_B2 is None else _float16(self.moments_B2),
        )


def top_k(
    logits_BC: Tensor, *, k: int, temperatures: Sequence[float], moments: bool = False
) -> TopK:
    """Keep the k best classes of every row and, per temperature, the log-mass of all others.

    With the tail, `softmax([logp / tau, tail_tau])` is the teacher's softmax at tau: exact on the
    kept classes and in total (GhostNetV3, arXiv 2404.11202, eq. 4, on k classes and one bucket).

    Args:
        logits_BC: float32 [B, C] on any device, finite.
        k: how many classes to keep, 1 to C.
        temperatures: the T temperatures whose tails are kept, each above 0.
        moments: keep mean and standard deviation of all log-probabilities, too.

    Returns:
        ids [B, k], logp [B, k], tail [B, T]. The tail is -inf where k = C and only there: finite
        values below float16's range are stored as -65504.

    Raises:
        ValueError: k or a temperature out of range, logits that are not [B, C] float32, or
            non-finite logits (the message names the rows).
    """
    return answers(logits_BC, k=k, temperatures=temperatures, moments=moments).fetch()


def answers(
    logits_BC: Tensor, *, k: int, temperatures: Sequence[float], moments: bool = False
) -> Answers:
    """`top_k` without waiting for the device; it takes and raises the same, but for what only
    `fetch` can tell: whether the logits are finite.
    """
    _check(logits_BC, k=k, temperatures=temperatures)
    logits_BC = logits_BC.detach()
    kept_BC = _kept(logits_BC, k)
    ids_BK = _ids(kept_BC, k)
    # they are listed upwards, so a stable sort leaves equal logits by lower id
    order_BK = logits_BC.gather(1, ids_BK).sort(dim=1, descending=True, stable=True).indices
    ids_BK = ids_BK.gather(1, order_BK)
    # float64, since the tails sum up to tens of thousands of small terms.
    logp_BC = logits_BC.double()
    # the largest becomes 0 first: near 10^13 the logarithm of a sum of two has three digits
    logp_BC -= logp_BC.amax(dim=1, keepdim=True)
    logp_BC -= torch.logsumexp(logp_BC, dim=1, keepdim=True)
    logp_BK = logp_BC.gather(1, ids_BK)
    moments_B2 = None
    if moments:
        deviation_B, mean_B = torch.std_mean(logp_BC, dim=1, correction=0)
        moments_B2 = torch.stack([mean_B, deviation_B], dim=1).clamp(max=-LOWEST_LOGP)
    logp_BC.masked_fill_(kept_BC, -torch.inf)
    tail_BT = logp_BC.new_empty(len(logp_BC), len(temperatures))
    for column, tau in enumerate(temperatures):
        tail_BT[:, column] = torch.logsumexp(logp_BC / tau, dim=1)
    finite_B = logits_BC.isfinite().all(dim=1)
    return Answers(logits_BC.shape[1], ids_BK, logp_BK, tail_BT, finite_B, moments_B2)


def _kept(logits_BC: Tensor, k: int) -> Tensor:
    """Which classes are among the k best, bool [B, C], exactly k a row."""
    # torch.topk does not say which of several equal logits it takes, so it only gives the limit.
    limit_B1 = torch.topk(logits_BC, k, dim=1, sorted=True).values[:, -1:]
    above_BC = logits_BC > limit_B1
    equal_BC = logits_BC == limit_B1
    places_B1 = k - above_BC.sum(dim=1, keepdim=True)
    return above_BC | (equal_BC & (equal_BC.cumsum(dim=1) <= places_B1))


def _ids(kept_BC: Tensor, k: int) -> Tensor:
    """Each row's kept ids upwards, int64 [B, K]; `nonzero` would make the host wait."""
    classes = kept_BC.shape[1]
    down_C = torch.arange(classes, 0, -1, dtype=torch.int32, device=kept_BC.device)
    ids_BK = classes - torch.where(kept_BC, down_C, 0).topk(k, dim=1).values
    return ids_BK.clamp(max=classes - 1).long()  # of a row that is not finite fewer are kept


def _float16(values: Tensor) -> np.ndarray:
    # The sum over no classes is exactly zero and stays -inf; a finite logarithm stays finite.
    clamped = torch.where(values.isneginf(), values, values.clamp(min=LOWEST_LOGP))
    return clamped.cpu().numpy().astype(np.float16)


def _check(logits_BC: Tensor, *, k: int, temperatures: Sequence[float]) -> None:
    if logits_BC.ndim != 2 or logits_BC.dtype != torch.float32:
        raise ValueError(
            f"logits are {logits_BC.dtype} {tuple(logits_BC.shape)}, expected torch.float32 [B, C]:"
            " run the teacher's classifier head in float32 (half-precision logits tie)"
        )
    classes = logits_BC.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(
            f"k is {k}, expected 1 to {classes} (the teacher's classes): change topk.k"
        )
    bad_temperatures = [tau for tau in temperatures if not (tau > 0 and math.isfinite(tau))]
    if bad_temperatures:
        raise ValueError(
            f"temperatures hold {bad_temperatures}, expected finite numbers above 0: "
            "change topk.temperatures"
        )


def _not_finite(rows: list[int], count: int) -> str:
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return (
        f"logits are not finite in rows {', '.join(map(str, rows[:8]))}{more} of {count}, expected "
        "finite ones: check the teacher's weights and precision"
    )
