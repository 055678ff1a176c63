"""The frozen teacher: networks, their weights' digest, each with its own normalisation.

B images, C classes, M members of an ensemble.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from teacher_cache.networks.checkpoints import WeightsError, read_checkpoint
from teacher_cache.networks.device_memory import out_of_memory_in_words
from teacher_cache.networks.libraries import (
    GHOSTNETV3,
    construct,
    ghostnetv2_of,
    is_known,
    similar_names,
)
from teacher_cache.networks.weights import class_count_of, fitted, has_branches
from teacher_cache.recipes.cache_recipe import Precision, TeacherMember, TeacherSection
from teacher_cache.teacher.member import (
    Member,
    TeacherError,
    class_count_of_answers,
    first_line,
)
from teacher_cache.teacher.normalize import Normalization


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

        Raises:
            OutOfMemory: the device has no room for a batch.
        """
        padding = batch_size - len(pixels_BHWC)
        full = pad(pixels_BHWC, (0, 0, 0, 0, 0, 0, 0, padding)) if padding else pixels_BHWC
        what = f"the teacher's answer to a batch of {batch_size} images"
        advice = "lower teacher.batch_size (it makes another cache) or set teacher.precision = bf16"
        with out_of_memory_in_words(what, advice):
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
    members = [
        _member(each, section.precision, class_count=class_count, size=size, device=device)
        for each in (section, *section.ensemble)
    ]
    for each in members:
        known = each.class_count
        if known != class_count and not (has_class_map and known > class_count):
            raise TeacherError(
                f"teacher {each.model} knows {known} classes, the data has {class_count}: use a "
                "teacher of the data's classes, set images.class_map to a JSON file from class "
                "folder to the teacher's class id, or set teacher.pretrained = false"
            )
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


def _member(
    section: TeacherMember,
    precision: Precision,
    *,
    class_count: int,
    size: int,
    device: torch.device,
) -> Member:
    network = _build(section, class_count, size).requires_grad_(requires_grad=False).eval()
    digest = weights_sha256(network)
    network = network.to(device)
    normalization = Normalization.of(network, device)
    member = Member(network, normalization, section.model, 0, digest, precision)
    return replace(member, class_count=class_count_of_answers(member, section, size))


def weights_sha256(network: nn.Module) -> str:
    """SHA-256, in hexadecimal, of names, shapes and bytes of every parameter and buffer."""
    sha = hashlib.sha256()
    for name, value in network.state_dict().items():
        sha.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def _build(section: TeacherMember, class_count: int, size: int) -> nn.Module:
    if not is_known(section.model):
        similar = ", ".join(similar_names(section.model))
        raise TeacherError(
            f"teacher.model {section.model!r} is no timm model, and none of torchvision's after "
            f"'torchvision/'; similar: {similar}"
        )
    if section.checkpoint is None:
        kwargs = {} if section.pretrained else {"num_classes": class_count}
        return _create(section, section.model, kwargs)
    try:
        state = read_checkpoint(section.checkpoint, use_ema=section.use_ema)
        name, kwargs = section.model, {}
        if name.startswith(GHOSTNETV3) and has_branches(state):
            name, kwargs = ghostnetv2_of(name)
        kwargs["num_classes"] = class_count_of(name, state) or class_count
        return fitted(
            _create(section, name, kwargs),
            name,
            state,
            source=f"teacher.checkpoint {section.checkpoint}",
            example=torch.zeros(1, 3, size, size),
        )
    except WeightsError as error:
        raise TeacherError(str(error)) from None


def _create(section: TeacherMember, name: str, kwargs: dict[str, Any]) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(section.seed)
            return construct(name, {**kwargs, **section.kwargs}, pretrained=section.pretrained)
    except Exception as error:  # hub, network and constructor errors have no common type
        raise TeacherError(
            f"teacher {section.model} (pretrained = {section.pretrained}) could not be built: "
            f"{first_line(error)}: check the network or the hub's cache and teacher.kwargs, name "
            "a local teacher.checkpoint, or set teacher.pretrained = false"
        ) from error
