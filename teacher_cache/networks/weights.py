"""State dicts fitted to a network: names and shapes all fit, or nothing is loaded.

B images.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping

import timm
import torch
from torch import Tensor, nn

from teacher_cache.networks.branches import Folded
from teacher_cache.networks.checkpoints import WeightsError
from teacher_cache.networks.reparam import (
    ReparamError,
    ReparamSpec,
    expand,
    fold,
    is_reparameterized_by_timm,
)

logger = logging.getLogger(__name__)

# What only the training form of a re-parameterized network has: ours, and timm's GhostNetV3.
_PART = re.compile(r"(.+)\.(convs\.\d+(?=\.conv|\.norm)|scale(?=\.conv|\.norm)|identity)\.")
_BRANCH = re.compile(r"\.convs\.\d+\.(conv|norm)\.|_rpr_(conv|scale|skip)\.")


def load_weights(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict whose names and shapes all fit.

    Raises:
        WeightsError: naming what is missing, unknown, or of another shape.
    """
    if _problems(network, state):
        raise WeightsError(_misfit(network, state, source))
    network.load_state_dict(dict(state))


def fitted(
    network: nn.Module, name: str, state: Mapping[str, Tensor], *, source: str, example: Tensor
) -> nn.Module:
    """The network with weights as others name and shape them, in the form that they have.

    Tried in turn: the weights as they are; in the deployed form, where the network has one; in the
    training form of this project's runs, which is folded; and after timm's own filter for this
    network, which knows the names of the official code and resizes position embeddings. A prefix
    that all names share is dropped, and BatchNorm's counters of batches may be missing.

    Args:
        network: newly built; it may be changed.
        name: its name, as timm or torchvision (after `torchvision/`) has it.
        state: as `read_checkpoint` gives it.
        source: what to call the weights in errors.
        example: images [B, 3, H, W] that the network takes, for the trace of `expand`.

    Returns:
        The network itself, or its deployed form where the weights are of that.

    Raises:
        WeightsError: naming what is missing, unknown, or of another shape.
    """
    for convert in (_unchanged, _filtered):
        converted = convert(network, name, state)
        for form in (_itself, _deployed, _expanded):
            found = form(network, converted, example)
            if found is None:
                continue
            named = _named_for(found, converted)
            if not _problems(found, named):
                _say_what_was_resized(converted, state)
                found.load_state_dict(named)
                return fold(found) if form is _expanded else found
    raise WeightsError(_misfit(network, _named_for(network, state), source))


def has_branches(state: Mapping[str, Tensor]) -> bool:
    """Whether weights are of the training form that `expand` makes."""
    return any(".convs.0." in name and _PART.match(name) for name in state)


def class_count_of(name: str, state: Mapping[str, Tensor]) -> int | None:
    """For how many classes saved weights of a network are, read off the classifier's shape."""
    heads: str | Iterable[str] | None = None
    if timm.is_model(name):
        config = timm.get_pretrained_cfg(name)
        heads = config.classifier if config else None
    for head in [heads] if isinstance(heads, str) else heads or ():
        if f"{head}.weight" in state:
            return state[f"{head}.weight"].shape[0]
    # in other words than timm's the classifier still is what comes last
    weights = [v for key, v in state.items() if key.endswith("weight") and v.ndim in (2, 4)]
    return weights[-1].shape[0] if weights else None


def _unchanged(network: nn.Module, name: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state


def _filtered(network: nn.Module, name: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What timm's filter for a network makes of weights; the same where it has none."""
    if not timm.is_model(name):
        return state
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return state
    try:
        try:
            converted = convert(dict(state), network)
        except TypeError:  # some take the weights alone
            converted = convert(dict(state))
    except Exception:  # noqa: BLE001 - written for the files that timm knows, it fails in any way
        return state
    return {key: value for key, value in converted.items() if isinstance(value, Tensor)}


def _itself(network: nn.Module, state: Mapping[str, Tensor], example: Tensor) -> nn.Module:
    return network


def _deployed(network: nn.Module, state: Mapping[str, Tensor], example: Tensor) -> nn.Module | None:
    return fold(network) if is_reparameterized_by_timm(network) else None


def _expanded(network: nn.Module, state: Mapping[str, Tensor], example: Tensor) -> nn.Module | None:
    """The network with the branches that the weights have, all of them of one [reparam]."""
    parts = [_PART.match(name) for name in state]
    kinds = {(part[1], part[2]) for part in parts if part}
    count = max((int(kind[6:]) + 1 for _, kind in kinds if kind.startswith("convs.")), default=0)
    if not count:
        return None
    spec = ReparamSpec(
        branches=count,
        scale_1x1=any(kind == "scale" for _, kind in kinds),
        identity=any(kind == "identity" for _, kind in kinds),
        select=tuple(sorted({conv for conv, kind in kinds if kind == "convs.0"})),
    )
    has_statistics = any(name.endswith(".statistics.running_mean") for name in state)
    form = Folded.CONV_BN if has_statistics else Folded.CONV_BIAS
    try:
        with torch.random.fork_rng(devices=[]):
            return expand(network, spec, example, folded=form)[0]
    except ReparamError:
        return None


def _named_for(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the network's names, but for a prefix and BatchNorm's counters."""
    own = network.state_dict()
    named = dict(state)
    while named and not own.keys() & named.keys():
        heads = {name.partition(".")[0] for name in named}
        if len(heads) > 1 or any("." not in name for name in named):
            break
        named = {name.partition(".")[2]: value for name, value in named.items()}
    for name, value in own.items():
        if name.endswith(".num_batches_tracked"):
            named.setdefault(name, value)
    return named


def _say_what_was_resized(converted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    resized = [
        f"{name} {tuple(state[name].shape)} -> {tuple(value.shape)}"
        for name, value in converted.items()
        if name in state and state[name].shape != value.shape
    ]
    if resized:
        logger.warning("weights resized by timm's filter: %s", ", ".join(resized[:4]))


def _problems(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from being the network's own; nothing if it is."""
    own = network.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    return [
        f"{len(names)} {what} (such as {names[0]})"
        for what, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", reshaped),
        )
        if names
    ]


def _misfit(network: nn.Module, state: Mapping[str, Tensor], source: str) -> str:
    own = network.state_dict()
    mine, theirs = ([name for name in names if _BRANCH.search(name)] for names in (own, state))
    if theirs and not mine:
        return (
            f"{source} holds the training form of a re-parameterized network, with parallel "
            f"branches (such as {theirs[0]}), expected the folded form: fold it with 'cli.py "
            "export RUN --out FILE.safetensors' and load that file"
        )
    if mine and not theirs:
        return (
            f"{source} holds a folded or plain network, expected the training form with parallel "
            f"branches (such as {mine[0]}): folding cannot be undone; leave reparam.branches out, "
            "or name the run's own last.pt"
        )
    return (
        f"{source} holds the weights of another network than {type(network).__name__}: of "
        f"{len(own)} tensors {', '.join(_problems(network, state))}: name the model it was saved "
        "from"
    )
