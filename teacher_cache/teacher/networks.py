"""The frozen teacher: timm networks, their weights' digest, each with its own normalisation.

B images, C classes, M members of an ensemble.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn.functional import pad

from teacher_cache.errors import UserError
from teacher_cache.networks.weights import WeightsError, load_weights, read_weights
from teacher_cache.recipes.cache_recipe import Precision, TeacherMember, TeacherSection
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
        images = self.normalization.images(pixels_BHWC)
        network: Any = self.network
        reduced = self.precision == "bf16"
        with torch.inference_mode(), cudnn.flags(cudnn.enabled, cudnn.benchmark, allow_tf32=False):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
                features = network.forward_features(images)
            logits: Tensor = network.forward_head(features.float())
        return logits.float()

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as JSON; mean and std in units of [0, 1]."""
        mean, std = (
            [round(value / 255, 6) for value in values.flatten().tolist()]
            for values in (self.normalization.mean.double(), self.normalization.std.double())
        )
        digest = self.weights_sha256
        return {"model": self.model, "weights_sha256": digest, "mean": mean, "std": std}


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """One network or several."""

    members: tuple[Member, ...]
    class_count: int
    weights_sha256: str
    device: torch.device

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as a cache's manifest holds it."""
        return {
            "weights_sha256": self.weights_sha256,
            "precision": self.members[0].precision,
            "members": [member.identity() for member in self.members],
        }

    def logits_of_batch(self, pixels_BHWC: Tensor, batch_size: int) -> Tensor:
        """The logits [B, C] of at most `batch_size` images, computed in a batch of that size.

        Another batch size changes the last bits of the logits, so a batch that is short of images
        is padded with black ones.
        """
        padding = batch_size - len(pixels_BHWC)
        full = pad(pixels_BHWC, (0, 0, 0, 0, 0, 0, 0, padding)) if padding else pixels_BHWC
        return self.logits(full)[: len(pixels_BHWC)]

    def logits(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 [B, size, size, 3] pixels -> float32 [B, C] logits.

        Those of an ensemble are the mean of its members' log-probabilities: their softmax is the
        members' normalised geometric mean, the distribution of least summed KL(teacher || member).
        """
        if len(self.members) == 1:
            return self.members[0].logits(pixels_BHWC)
        with torch.inference_mode():
            logp_MBC = torch.stack(
                [member.logits(pixels_BHWC).log_softmax(dim=1) for member in self.members]
            )
            return logp_MBC.mean(dim=0)


def load_teacher(
    section: TeacherSection,
    *,
    class_count: int,
    has_class_map: bool,
    size: int,
    device: torch.device,
) -> Teacher:
    """Build the recipe's teacher with its weights.

    Args:
        section: the recipe's `[teacher]`.
        class_count: classes of the data; a teacher with random weights gets as many.
        has_class_map: the data's labels are the teacher's ids already, so it may know more classes.
        size: pixels a side of the views.
        device: where it runs.

    Raises:
        TeacherError: unknown model, weights that cannot be fetched or read or do not fit, another
            input size, a class count that disagrees with the data's, or members that disagree.
    """
    members = []
    for each in (section, *section.ensemble):
        network = _build(each, class_count)
        known = int(network.num_classes)  # type: ignore[arg-type]
        if known != class_count and not (has_class_map and known > class_count):
            raise TeacherError(
                f"teacher {each.model} knows {known} classes, the data has {class_count}: use a "
                "teacher of the data's classes, set images.class_map to a JSON file from class "
                "folder to the teacher's class id, or set teacher.pretrained = false"
            )
        network.requires_grad_(requires_grad=False).eval()
        _try(network, each, size)
        digest = weights_sha256(network)
        network = network.to(device)
        normalization = Normalization.of(network, device)
        members.append(Member(network, normalization, each.model, known, digest, section.precision))
    _require_same_classes(section, members)
    digests = [member.weights_sha256 for member in members]
    return Teacher(
        members=tuple(members),
        class_count=members[0].class_count,
        weights_sha256=digests[0] if len(digests) == 1 else _digest_of_all(digests),
        device=device,
    )


def _require_same_classes(section: TeacherSection, members: Sequence[Member]) -> None:
    counts = [member.class_count for member in members]
    if len(set(counts)) > 1:
        raise TeacherError(
            f"the members of teacher {section.name} know {', '.join(map(str, counts))} classes, "
            "expected the same ones of all: leave out or replace the teacher.ensemble that differs"
        )


def _digest_of_all(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _try(network: nn.Module, section: TeacherMember, size: int) -> None:
    """One image through the network: not every architecture takes every size."""
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        takes = resolve_model_data_config(network)["input_size"][-1]
        raise TeacherError(
            f"teacher {section.model} does not run on views.size = {size} ({_first_line(error)}): "
            f"set views.size = {takes}, or teacher.kwargs.img_size = {size} where it allows that"
        ) from None


def weights_sha256(network: nn.Module) -> str:
    """SHA-256, in hexadecimal, of names, shapes and bytes of every parameter and buffer."""
    sha = hashlib.sha256()
    for name, value in network.state_dict().items():
        sha.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def _build(section: TeacherMember, class_count: int) -> nn.Module:
    if not timm.is_model(section.model):
        close = get_close_matches(section.model, timm.list_models(), n=5, cutoff=0.4)
        raise TeacherError(
            f"teacher.model {section.model!r} is no timm model; similar: {', '.join(close)}"
        )
    if section.checkpoint is None:
        kwargs = {} if section.pretrained else {"num_classes": class_count}
        return _create(section, pretrained=section.pretrained, kwargs=kwargs)
    try:
        state = read_weights(section.checkpoint)
        kwargs = {"num_classes": _classes_of(section.model, state) or class_count}
        network = _create(section, pretrained=False, kwargs=kwargs)
        load_weights(network, state, source=f"teacher.checkpoint {section.checkpoint}")
    except WeightsError as error:
        raise TeacherError(str(error)) from None
    return network


def _create(section: TeacherMember, *, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(section.seed)
            network: nn.Module = timm.create_model(
                section.model, pretrained=pretrained, **{**kwargs, **section.kwargs}
            )
    except Exception as error:  # hub, network and constructor errors have no common type
        raise TeacherError(
            f"teacher {section.model} (pretrained = {pretrained}) could not be built: "
            f"{_first_line(error)}: check the network or the hub's cache and teacher.kwargs, name "
            "a local teacher.checkpoint, or set teacher.pretrained = false"
        ) from error
    return network


def _classes_of(model: str, state: Mapping[str, Tensor]) -> int | None:
    """The class count that saved weights were trained for, read off the classifier's shape."""
    config = timm.get_pretrained_cfg(model)
    name = config.classifier if config else None
    head = state.get(f"{name}.weight") if isinstance(name, str) else None
    return None if head is None else head.shape[0]


def _first_line(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    )
