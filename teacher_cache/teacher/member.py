"""One network of a teacher: its logits, and whether it has any.

B images, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.backends import cudnn

from teacher_cache.errors import UserError
from teacher_cache.recipes.cache_recipe import Precision, TeacherMember
from teacher_cache.teacher.normalize import Normalization


class TeacherError(UserError):
    """A teacher that cannot be built, or that does not fit the data."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One network in evaluation mode on its device."""

    network: nn.Module
    normalization: Normalization
    model: str
    class_count: int
    weights_sha256: str
    precision: Precision

    def logits(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 [B, size, size, 3] pixels -> float32 [B, C] logits.

        The features run in the recipe's precision, on every device alike; the head always in
        float32, since bfloat16 logits tie within the top 21 in most rows, and so do those of TF32,
        which cuDNN takes for convolutions by default.
        """
        logits: Tensor = self.answer(pixels_BHWC)
        return logits.float()

    def answer(self, pixels_BHWC: Tensor) -> Any:
        """What the network says, logits or not."""
        images = self.normalization.images(pixels_BHWC)
        network: Any = self.network
        with torch.inference_mode(), cudnn.flags(cudnn.enabled, cudnn.benchmark, allow_tf32=False):
            if hasattr(network, "forward_head"):
                with self._reduced(images):
                    features = network.forward_features(images)
                return network.forward_head(_float32(features))
            if self.precision == "fp32":
                return network(images)
            return self._answer_of_torchvisions(images)

    def _answer_of_torchvisions(self, images: Tensor) -> Tensor:
        """Their last linear layer, which `load_teacher` has found to be the head, in float32."""
        head, taken = _last_linear(self.network), []
        assert head is not None
        with self._reduced(images), head.register_forward_pre_hook(lambda _, x: taken.append(x[0])):
            self.network(images)
        logits: Tensor = head(taken[0].float())
        return logits

    def _reduced(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, self.precision == "bf16")

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as JSON; mean and std in units of [0, 1]."""
        mean, std = (
            [round(value / 255, 6) for value in values.flatten().tolist()]
            for values in (self.normalization.mean.double(), self.normalization.std.double())
        )
        digest = self.weights_sha256
        return {"model": self.model, "weights_sha256": digest, "mean": mean, "std": std}


def class_count_of_answers(member: Member, section: TeacherMember, size: int) -> int:
    """The class count of one image's logits, on the path that all images take.

    Raises:
        TeacherError: the network does not take images of this size, or its answer is no logits.
    """
    try:
        if not hasattr(member.network, "forward_head") and member.precision != "fp32":
            _require_linear_head(member.network, section, size)
        answer = member.answer(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise TeacherError(_does_not_run(member.network, section, size, error)) from None
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise TeacherError(
            f"teacher {section.model} maps an image to {got}, expected logits [1, C]: leave "
            "features_only and global_pool out of teacher.kwargs, and name a classifier"
        )
    return answer.shape[1]


def _does_not_run(network: nn.Module, section: TeacherMember, size: int, error: Exception) -> str:
    channels, _, takes = resolve_model_data_config(network)["input_size"]
    channels = section.kwargs.get("in_chans", channels)
    if channels != 3:
        return (
            f"teacher {section.model} takes images of {channels} channels, expected 3, since all "
            "images are rendered in RGB: leave teacher.kwargs.in_chans out"
        )
    return (
        f"teacher {section.model} does not run on views.size = {size} ({first_line(error)}): "
        f"set views.size = {takes}, or teacher.kwargs.img_size = {size} where it allows that"
    )


def _require_linear_head(network: nn.Module, section: TeacherMember, size: int) -> None:
    """What torchvision's networks compute last must be linear, so that it can be in float32."""
    head = _last_linear(network)
    taken: list[Tensor] = []
    if head is not None:
        image = torch.zeros(1, 3, size, size).to(head.weight)
        with torch.inference_mode(), head.register_forward_hook(lambda _, x, y: taken.append(y)):
            taken.append(network(image))
    if len(taken) != 2 or not torch.equal(*taken):
        raise TeacherError(
            f"teacher {section.model} ends in something else than a linear layer, got "
            "teacher.precision = 'bf16', expected 'fp32' for it: its head cannot be told apart"
        )


def _last_linear(network: nn.Module) -> nn.Linear | None:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def _float32(features: Any) -> Any:
    """Features are a tensor, or several of them (crossvit, coat, efficientvim)."""
    if isinstance(features, Tensor):
        return features.float()
    if isinstance(features, list | tuple):
        return type(features)(map(_float32, features))
    return features


def first_line(error: Exception) -> str:
    """An error's type and the begin of its message."""
    return (
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    )
