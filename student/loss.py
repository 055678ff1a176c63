"""Knowledge distillation on a sparse teacher, plus cross-entropy. Pure.

    L = (1 - alpha) CE(z, y) + alpha tau^2 KL(q_tau || s_tau)

GhostNetV3 (arXiv 2404.11202), eq. 3 and 4, with the teacher's q known on its k best
classes and in total (`teacher_cache.teacher.answers`). No [B, C] matrix of the teacher is built.

Shapes: B rows, K kept classes, C classes.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

# Far below any log-probability that a run can recover from, and far above float32's range: every
# product and sum below stays finite, so that 0 * log 0 is 0 and not NaN.
_FLOOR = -1e30


class Tail(StrEnum):
    """What the loss does with the teacher's mass outside its k best classes."""

    BUCKET = "bucket"
    """One (k+1)-th class for teacher and student: a proper KL, a lower bound of the dense one."""
    UNIFORM = "uniform"
    """Spread evenly over the C - k other classes: the guess of most entropy."""
    RENORMALIZE = "renormalize"
    """Ignored, the k best rescaled to 1: pushes the other classes to 0. For comparison only."""
    DROP = "drop"
    """Ignored, the k best as they are: no KL, can be negative. For comparison only."""


@dataclass(frozen=True, slots=True)
class SparseTarget:
    """The teacher's records of B rows, on the student's device."""

    ids_BK: Tensor
    """int64 class ids, all different in a row."""
    logp_BK: Tensor
    """float32 log-probabilities at temperature 1, in nats, finite."""
    tail_B: Tensor
    """float32 log-mass of the other classes at the loss's own temperature; -inf for none."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A batch's mean loss and its two parts, 0-d float32 tensors in nats."""

    total: Tensor
    ce: Tensor
    kd: Tensor
    """tau^2 KL, before alpha; 0 without a target."""


def distillation_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    target: SparseTarget | None,
    *,
    alpha: float,
    temperature: float,
    tail: Tail = Tail.BUCKET,
) -> Loss:
    """The paper's loss (eq. 3 and 4), computed in float32 whatever the student's precision.

    Finite logits give a finite loss and finite gradients, however extreme they are; NaN and
    infinite logits give NaN, so that a diverged run shows.

    Args:
        logits_BC: the student's logits [B, C], any float type.
        labels_B: int64 class ids [B].
        target: the teacher's records; None is plain cross-entropy and needs alpha = 0.
        alpha: the weight of the KD term, 0 to 1.
        temperature: tau, above 0; `target.tail_B` must be the tail at this temperature.
        tail: what stands for the teacher's other classes.

    Raises:
        ValueError: alpha or temperature out of range, no target with alpha > 0, shapes that do
            not fit together.
    """
    _check(logits_BC, target, alpha=alpha, temperature=temperature)
    logits_BC = logits_BC.float()
    # The best logit becomes 0, lest dividing by a temperature below 1 overflow to infinity.
    logits_BC = logits_BC - logits_BC.detach().amax(dim=1, keepdim=True)
    log_s1_BC = torch.log_softmax(logits_BC, dim=1).clamp(min=_FLOOR)
    ce = -log_s1_BC.gather(1, labels_B[:, None]).mean()
    if target is None:
        return Loss(total=ce, ce=ce, kd=ce.new_zeros(()))
    if temperature == 1.0:
        log_s_BC = log_s1_BC
    else:
        log_s_BC = torch.log_softmax(logits_BC / temperature, dim=1).clamp(min=_FLOOR)
    # tau^2 keeps the gradient's size when tau changes (Hinton et al. 2015, sec. 2).
    kd = temperature**2 * _divergence(log_s_BC, target, temperature, tail).mean()
    return Loss(total=(1.0 - alpha) * ce + alpha * kd, ce=ce, kd=kd)


def _divergence(log_s_BC: Tensor, target: SparseTarget, temperature: float, tail: Tail) -> Tensor:
    kept = target.ids_BK.shape[1]
    others = log_s_BC.shape[1] - kept
    log_s_BK = log_s_BC.gather(1, target.ids_BK)
    scaled_BK = target.logp_BK.float() / temperature
    if others == 0 or tail is Tail.RENORMALIZE:
        return _expectation(_log_q(scaled_BK), log_s_BK)
    # [B, K+1]: renormalised, since float16 records sum to 1 only to three digits.
    log_q_BL = _log_q(torch.cat([scaled_BK, target.tail_B.float()[:, None]], dim=1))
    if tail is Tail.DROP:
        return _expectation(log_q_BL[:, :kept], log_s_BK)
    if tail is Tail.BUCKET:
        # Never log(1 - sum of the kept): that cancels to log 0 for a confident student.
        rest_BC = log_s_BC.scatter(1, target.ids_BK, -torch.inf)
        log_s_tail_B = torch.logsumexp(rest_BC, dim=1)
        return _expectation(log_q_BL, torch.cat([log_s_BK, log_s_tail_B[:, None]], dim=1))
    # UNIFORM: C - k equal terms q/n (log q - log n - log s_c) = q (log q - log n - mean log s_c).
    mean_log_s_B = log_s_BC.scatter(1, target.ids_BK, 0.0).sum(dim=1) / others
    log_s_even_B = mean_log_s_B + math.log(others)
    return _expectation(log_q_BL, torch.cat([log_s_BK, log_s_even_B[:, None]], dim=1))


def _log_q(scores_BL: Tensor) -> Tensor:
    return torch.log_softmax(scores_BL, dim=1).clamp(min=_FLOOR)


def _expectation(log_q_BL: Tensor, log_s_BL: Tensor) -> Tensor:
    return (log_q_BL.exp() * (log_q_BL - log_s_BL)).sum(dim=1)


def _check(
    logits_BC: Tensor, target: SparseTarget | None, *, alpha: float, temperature: float
) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}, expected 0 to 1: change distill.alpha")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(
            f"temperature is {temperature}, expected above 0: change distill.temperature"
        )
    if target is None:
        if alpha != 0.0:
            raise ValueError(
                f"alpha is {alpha} without a teacher, expected 0: give a cache or set "
                "distill.alpha = 0"
            )
        return
    rows, classes = logits_BC.shape
    shapes = tuple(tuple(t.shape) for t in (target.ids_BK, target.logp_BK, target.tail_B))
    kept = target.ids_BK.shape[-1]
    if shapes != ((rows, kept), (rows, kept), (rows,)) or not 1 <= kept <= classes:
        raise ValueError(
            f"the target's ids, logp and tail are {shapes}, expected [{rows}, K], [{rows}, K] and "
            f"[{rows}] with K from 1 to {classes}: student, data and cache must have the same "
            "classes"
        )
