"""What a step changes: the network, its average and the optimizer.

B images of a micro-batch, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Self, cast

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from student.data.batches import MicroBatch
from student.data.shuffle import step_seed
from student.losses.distillation import distillation_loss
from student.models.build import build_student, without_start
from student.models.trial import ModelError, require_trainable
from student.ranks import ALONE, Ranks
from student.recipe import OptimizerSection, StudentRecipe
from teacher_cache.networks.device_memory import out_of_memory_in_words
from teacher_cache.teacher.normalize import Normalization

# torch 2.15 gave the parameter another name. Buffers are averaged after a step instead, so that a
# step of several micro-batches keeps every rank's statistics.
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


@dataclass(slots=True, eq=False)
class Trainee:
    """The networks and the optimizer that a step changes, and how it feeds them."""

    recipe: StudentRecipe
    network: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    normalization: Normalization
    ranks: Ranks
    forward: Callable[[Tensor], Tensor]
    """What a step calls: the network, or what compiles it and shares its gradients."""
    statistics: list[Tensor]
    """BatchNorm's running means and variances, which ranks average after a step."""

    @classmethod
    def build(
        cls,
        recipe: StudentRecipe,
        class_count: int,
        size: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        *,
        continues: bool = False,
    ) -> Self:
        """Initialise from the run's seed, alike on all ranks.

        A trainee that `continues` a saved state is given its weights later: neither hub nor
        checkpoint, from which the run began, is needed again.

        Raises:
            ModelError: no such model or optimizer, or settings that this device cannot do.
        """
        torch.manual_seed(recipe.run.seed)
        layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
        student = recipe.student
        network = build_student(
            student.model,
            num_classes=class_count,
            image_size=size,
            reparam=recipe.reparam,
            kwargs=without_start(student.kwargs) if continues else student.kwargs,
            checkpoint=None if continues else student.checkpoint,
            use_ema=student.use_ema,
        )
        rows = ranks.micro_batch(
            batch_size=recipe.optimizer.batch_size, micro_batch=recipe.optimizer.micro_batch
        )
        require_trainable(network, student.model, image_size=size, rows=rows)
        network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        ema = None
        if recipe.ema.decay is not None:
            ema = ModelEmaV3(network, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup)
        normalization = Normalization.of(network, device, channels_last=recipe.run.channels_last)
        if recipe.run.sync_batchnorm and ranks.count > 1:
            network = _synchronised(network, device)
        optimizer = _optimizer(network, recipe.optimizer)
        statistics = [
            buffer
            for module in network.modules()
            if isinstance(module, _BatchNorm)
            for buffer in module.buffers()
            if buffer.is_floating_point()
        ]
        trainee = cls(recipe, network, ema, optimizer, normalization, ranks, network, statistics)
        trainee._wrap(device, size)
        return trainee

    def _wrap(self, device: torch.device, size: int) -> None:
        """Compile the network, and share its gradients with the other ranks, where asked for."""
        if self.recipe.run.compile:
            self.forward = torch.compile(self.network)  # evaluation stays with the network itself
        if self.ranks.count == 1:
            return
        with self.ranks.errors_in_words():  # DDP compares the ranks' parameters when it is built
            self.forward = DistributedDataParallel(
                cast("nn.Module", self.forward),
                device_ids=[device] if device.type == "cuda" else None,
                **_OWN_BUFFERS,
            )
        # After its first backward pass DDP lays out its buckets anew, and another layout may add
        # the ranks' gradients in another order. One pass that does not count makes the first step
        # of a run, and of a continued one, like all others.
        rows = 2
        if self.recipe.run.compile:
            rows = self.ranks.micro_batch(
                batch_size=self.recipe.optimizer.batch_size,
                micro_batch=self.recipe.optimizer.micro_batch,
            )
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        nothing = torch.zeros(rows, size, size, 3, dtype=torch.uint8)
        self.network.train()
        with self._compiling(), self.ranks.errors_in_words():
            self._logits(nothing).float().sum().backward()
        self.network.load_state_dict(before)
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def selection_metric(self) -> str:
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
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        losses = self.gradient(step_batches, step=step)
        self.optimizer.step()
        self.ranks.average_(self.statistics)
        if self.ema is not None:
            self.ema.update(self.network, step=step)
        return losses

    def gradient(self, step_batches: Sequence[MicroBatch], *, step: int) -> Tensor:
        """Leave the mean gradient over one batch in the parameters; the losses as `step` does."""
        torch.manual_seed(step_seed(seed=self.recipe.run.seed, step=step, rank=self.ranks.number))
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(3, device=self.normalization.mean.device)
        for number, batch in enumerate(step_batches, start=1):
            last = number == len(step_batches)
            with (
                out_of_memory_in_words(
                    f"a training step of {len(batch.rows)} images at once",
                    "lower optimizer.micro_batch (the batch is then added up over more passes) or "
                    'set run.precision = "bf16" (either makes another run)',
                ),
                self._shared(gradients=last),
                self._compiling(),
                self.ranks.errors_in_words(),
            ):
                losses += self._backward(batch, passes=len(step_batches))
        return losses

    def _backward(self, batch: MicroBatch, *, passes: int) -> Tensor:
        """Add a micro-batch's gradient, and return its part of the step's three mean losses."""
        distill = self.recipe.distill
        device = self.normalization.mean.device
        loss = distillation_loss(
            self._logits(batch.pixels_BHWC),
            batch.labels_B.to(device, non_blocking=True),
            batch.target and batch.target.mapped(lambda each: each.to(device, non_blocking=True)),
            alpha=distill.alpha,
            temperature=distill.temperature,
            tail=distill.tail,
            criterion=distill.loss,
        )
        (loss.total / passes).backward()
        return torch.stack((loss.total, loss.ce, loss.kd)).detach() / passes

    def _logits(self, pixels_BHWC: Tensor) -> Tensor:
        device = self.normalization.mean.device
        precision = self.recipe.run.precision or ("bf16" if device.type == "cuda" else "fp32")
        images = self.normalization.images(pixels_BHWC)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.forward(images)

    @contextmanager
    def _shared(self, *, gradients: bool) -> Iterator[None]:
        """Only a step's last backward pass adds up the ranks' gradients."""
        if isinstance(self.forward, DistributedDataParallel) and not gradients:
            with self.forward.no_sync():
                yield
        else:
            yield

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Say what torch.compile lacks."""
        if not self.recipe.run.compile:
            yield
            return
        from torch._dynamo.exc import TorchDynamoException  # a second of imports

        try:
            yield
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(
                f"run.compile = true: torch.compile failed ({reason}): it needs a C++ compiler "
                "(g++, or the one that CXX names) and a model that it understands; install one, "
                "or leave run.compile out"
            ) from error


def _synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "cpu":
        raise ModelError(
            "run.sync_batchnorm = true on the CPU, expected GPUs: torch synchronises BatchNorm "
            "only there; leave it out, and each rank takes its own images' statistics"
        )
    synchronised: nn.Module = convert_sync_batchnorm(network)
    return synchronised


def _optimizer(network: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    if section.name.startswith("kron"):
        raise ModelError(
            f"optimizer.name = {section.name!r}: timm's compiles itself for each shape of weight, "
            "so that a run hangs in its first step, and draws from a random state that no "
            "checkpoint holds: use another name of timm.optim.list_optimizers(), such as lamb"
        )
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
