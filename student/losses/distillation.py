"""The paper's loss: cross-entropy, and knowledge distillation on a sparse teacher. Pure.

    L = (1 - alpha) CE(z, y) + alpha tau^2 KL(q_tau || s_tau)

GhostNetV3 (arXiv 2404.11202), eq. 3 and 4, with the teacher's q known on its k best
classes and in total (`teacher_cache.teacher.answers`), or with another criterion in KL's place.

Shapes: B rows, K kept classes, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from student.losses.criterion import Criterion, lack, mismatch
from student.losses.decoupled import dkd
from student.losses.divergences import hard, jsd, kl, reverse_kl
from student.losses.relations import dist
from student.losses.standardized import standardized
from student.losses.target import FLOOR, SparseTarget
from teacher_cache.record import Tail


@dataclass(frozen=True, slots=True)
class Loss:
    """A batch's mean loss and its two parts, 0-d float32 tensors in nats."""

    total: Tensor
    ce: Tensor
    kd: Tensor
    """tau^2 KL, or another criterion, before alpha; 0 without a target."""


def distillation_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    target: SparseTarget | None,
    *,
    alpha: float,
    temperature: float,
    tail: Tail = Tail.UNIFORM,
    criterion: Criterion = Criterion.KL,
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
        criterion: what draws the student to the teacher.

    Raises:
        ValueError: alpha or temperature out of range, no target with alpha > 0, shapes that do
            not fit together, a tail, a temperature or records that the criterion does not take.
    """
    _check(logits_BC, target, alpha=alpha, temperature=temperature)
    if wrong := mismatch(criterion, tail, temperature):
        raise ValueError(wrong)
    logits_BC = logits_BC.float()
    # The best logit becomes 0, lest dividing by a temperature below 1 overflow to infinity.
    logits_BC = logits_BC - logits_BC.detach().amax(dim=1, keepdim=True)
    log_s1_BC = torch.log_softmax(logits_BC, dim=1).clamp(min=FLOOR)
    ce = -log_s1_BC.gather(1, labels_B[:, None]).mean()
    if target is None:
        return Loss(total=ce, ce=ce, kd=ce.new_zeros(()))
    if wrong := lack(
        criterion,
        target.ids_BK.shape[1],
        logits_BC.shape[1],
        has_moments=target.moments_B2 is not None,
    ):
        raise ValueError(wrong)
    if temperature == 1.0:
        log_s_BC = log_s1_BC
    else:
        log_s_BC = torch.log_softmax(logits_BC / temperature, dim=1).clamp(min=FLOOR)
    # tau^2 keeps the gradient's size when tau changes (Hinton et al. 2015, sec. 2).
    kd = temperature**2 * criterion_mean(log_s_BC, target, labels_B, temperature, tail, criterion)
    return Loss(total=(1.0 - alpha) * ce + alpha * kd, ce=ce, kd=kd)


def criterion_mean(
    log_s_BC: Tensor,
    target: SparseTarget,
    labels_B: Tensor,
    temperature: float,
    tail: Tail,
    criterion: Criterion,
) -> Tensor:
    """A criterion's mean over the rows, without tau^2: 0-d, in the student's float type.

    Args:
        log_s_BC: the student's log-probabilities at `temperature`, finite.
        target: the teacher's records.
        labels_B: int64 class ids.
        temperature: tau.
        tail: one that the criterion takes.
        criterion: which.
    """
    match criterion:
        case Criterion.KL:
            return kl(log_s_BC, target, temperature, tail).mean()
        case Criterion.REVERSE_KL:
            return reverse_kl(log_s_BC, target, temperature, tail).mean()
        case Criterion.JSD:
            return jsd(log_s_BC, target, temperature, tail).mean()
        case Criterion.HARD:
            return hard(log_s_BC, target).mean()
        case Criterion.DIST:
            return dist(log_s_BC, target, temperature)
        case Criterion.DKD:
            return dkd(log_s_BC, target, labels_B, temperature).mean()
        case Criterion.STANDARDIZED:
            return standardized(log_s_BC, target, temperature).mean()


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
