"""Which convolutions of a model are followed by a BatchNorm and nothing else.

Attribute names do not tell (each model family has its own), so a forward pass is traced.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, slots=True)
class Pair:
    """A convolution and the BatchNorm that alone takes its output, by dotted names."""

    conv: str
    norm: str


def find_pairs(model: nn.Module, example: Tensor) -> tuple[list[Pair], dict[str, str]]:
    """Trace `model` on `example` and match its convolutions with their BatchNorms.

    The model is not changed: the pass runs in eval mode, without gradients, and every module's
    mode is put back.

    Args:
        model: any model that maps a batch of images to anything.
        example: an input [B, 3, H, W] on the model's device and of its dtype; B = 1 will do.

    Returns:
        The pairs in the model's order, and by name every other Conv2d with the reason why it
        cannot be one half of a pair.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        trace = _Trace(model.eval())
        trace.run(example)
    finally:
        for module, training in modes.items():
            module.training = training
    names = {module: name for name, module in model.named_modules()}
    pairs, reasons = [], {}
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            norm = trace.taker(conv)
            reason = _why_not(conv) or trace.why_not(conv) or _why_not_norm(norm)
            if reason is None and norm is not None:
                pairs.append(Pair(conv=name, norm=names[norm]))
            else:
                reasons[name] = str(reason)
    return pairs, reasons


class _Trace(TorchFunctionMode):
    """Who makes which tensor, and who takes it, in one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._names = Counter(m for _, m in model.named_modules(remove_duplicate=False))
        self._calls: Counter[nn.Module] = Counter()
        self._outputs: dict[nn.Module, Tensor] = {}  # kept alive, so that their ids stay theirs
        self._uses: Counter[int] = Counter()
        self._takers: dict[int, nn.Module] = {}

    def run(self, example: Tensor) -> None:
        with ExitStack() as hooks, torch.no_grad():
            for module in self._model.modules():
                if isinstance(module, nn.Conv2d):
                    hooks.enter_context(module.register_forward_hook(self._made))
                elif _is_norm(module):
                    hooks.enter_context(module.register_forward_pre_hook(self._taken))
            with self:
                self._model(example)

    def taker(self, conv: nn.Module) -> nn.Module | None:
        return self._takers.get(id(self._outputs.get(conv)))

    def why_not(self, conv: nn.Module) -> str | None:
        norm = self.taker(conv)
        if self._calls[conv] == 0:
            return "the forward pass does not call it"
        if self._calls[conv] > 1 or self._names[conv] > 1:
            return "it is used more than once"
        if norm is None:
            return "no BatchNorm follows"
        if self._calls[norm] > 1 or self._names[norm] > 1:
            return "its BatchNorm is used more than once"
        if self._uses[id(self._outputs[conv])] != 1:
            return "its output goes elsewhere too, not only into the BatchNorm"
        return None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(True for _ in _tensors(result)):  # asking for a shape is no use of the values
            self._uses.update(id(tensor) for tensor in _tensors((args, tuple(kwargs.values()))))
        return result

    def _made(self, conv: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._calls[conv] += 1
        self._outputs[conv] = output
        # An id may have been another tensor's before.
        self._uses[id(output)] = 0
        self._takers.pop(id(output), None)

    def _taken(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls[module] += 1
        for tensor in _tensors(args):
            self._takers[id(tensor)] = module


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _why_not(conv: nn.Conv2d) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, not a plain Conv2d"
    if conv.bias is not None:
        return "it has a bias"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"its padding is {conv.padding_mode} {conv.padding}, not a number of zeros"
    return None


def _why_not_norm(norm: nn.Module | None) -> str | None:
    if type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
        return f"a {type(norm).__name__} follows, not a BatchNorm2d"
    assert isinstance(norm, nn.BatchNorm2d)
    if not norm.affine or not norm.track_running_stats:
        return "its BatchNorm has no weights or no running statistics"
    return None
