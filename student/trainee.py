"""What a step changes: the network, its average and the optimizer.

B images of a micro-batch, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from student.batches import MicroBatch
from student.loss import SparseTarget, distillation_loss
from student.models import ModelError, build_student
from student.order import step_seed
from student.recipe import OptimizerSection, StudentRecipe
from teacher_cache.normalize import Normalization


@dataclass(slots=True, eq=False)
class Trainee:
    """The networks and the optimizer that a step changes, and how it feeds them."""

    recipe: StudentRecipe
    network: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    normalization: Normalization

    @classmethod
    def build(
        cls, recipe: StudentRecipe, class_count: int, size: int, device: torch.device
    ) -> Self:
        """Initialise from the run's seed."""
        torch.manual_seed(recipe.run.seed)
        layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
        network = build_student(
            recipe.student.model,
            num_classes=class_count,
            image_size=size,
            reparam=recipe.reparam,
            kwargs=recipe.student.kwargs,
        ).to(device, memory_format=layout)  # type: ignore[call-overload]
        optimizer = _optimizer(network, recipe.optimizer)
        ema = None
        if recipe.ema.decay is not None:
            ema = ModelEmaV3(network, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup)
        normalization = Normalization.of(network, device, channels_last=recipe.run.channels_last)
        return cls(recipe, network, ema, optimizer, normalization)

    @property
    def judged_by(self) -> str:
        """The metric that decides which checkpoint is best: of the weights that are exported."""
        return "ema_top1" if self.ema else "top1"

    @property
    def exported(self) -> nn.Module:
        """The averaged network, or the network itself where no average is kept."""
        averaged: nn.Module = self.ema.module if self.ema else self.network
        return averaged

    def step(self, step_batches: Sequence[MicroBatch], *, lr: float, step: int) -> Tensor:
        """One optimizer step over one batch.

        Args:
            step_batches: the micro-batches whose mean gradient is applied.
            lr: this step's learning rate.
            step: optimizer steps done before.

        Returns:
            float32 [3] mean total loss, CE and KD, left on the device.
        """
        distill = self.recipe.distill
        torch.manual_seed(step_seed(seed=self.recipe.run.seed, step=step, rank=0))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        device = self.normalization.mean.device
        losses = torch.zeros(3, device=device)
        for batch in step_batches:
            images = self.normalization.images(batch.pixels_BHWC)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits_BC = self.network(images)
            loss = distillation_loss(
                logits_BC,
                batch.labels_B.to(device),
                _on(batch.target, device) if batch.target else None,
                alpha=distill.alpha,
                temperature=distill.temperature,
                tail=distill.tail,
            )
            (loss.total / len(step_batches)).backward()
            losses += torch.stack((loss.total, loss.ce, loss.kd)).detach() / len(step_batches)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network, step=step)
        return losses


def _optimizer(network: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(
            network,
            opt=section.name,
            lr=section.lr,
            weight_decay=section.weight_decay,
            **section.kwargs,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise ModelError(
            f"optimizer.name = {section.name!r}, kwargs {section.kwargs}: timm makes no such "
            f"optimizer ({error}): use a name of timm.optim.list_optimizers(), such as lamb"
        ) from None


def _on(target: SparseTarget, device: torch.device) -> SparseTarget:
    return SparseTarget(
        target.ids_BK.to(device, non_blocking=True),
        target.logp_BK.to(device, non_blocking=True),
        target.tail_B.to(device, non_blocking=True),
    )
