"""A folded network as an ONNX model, and the proof that onnxruntime computes the same.

B images, C classes.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from teacher_cache.errors import UserError

BATCHES = (1, 2, 7)
"""The batch sizes that the written model is tried on: the batch is dynamic, and 1 is special."""


class OnnxError(UserError):
    """A network that cannot be written as ONNX, or packages that are missing for it."""


def require_onnx() -> None:
    """Say now, and not after minutes, that a package is missing.

    Raises:
        OnnxError: onnx, onnxscript or onnxruntime cannot be imported.
    """
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(package)
    except ImportError as error:
        raise OnnxError(
            f"ONNX needs onnx, onnxscript and onnxruntime ({error}): "
            "pip install 'retort-distill[export]', or export to a .safetensors file"
        ) from None


def onnx_bytes(network: nn.Module, *, size: int, metadata: Mapping[str, str]) -> bytes:
    """Write a network as ONNX: `images` float32 [B, 3, size, size] -> `logits` [B, C], any B.

    Args:
        network: in evaluation mode, on the CPU; folded.
        size: pixels a side.
        metadata: the model's properties.

    Raises:
        OnnxError: torch's exporter knows no ONNX form of an operator of the network.
    """
    require_onnx()
    import onnx

    example = (torch.zeros(2, 3, size, size),)
    try:
        program: Any = torch.onnx.export(
            network,
            example,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    except Exception as error:  # the exporter's stages have no common type
        raise OnnxError(
            f"torch's exporter cannot write {type(network).__name__} as ONNX "
            f"({_first_words(error)}): nothing was written; export to a .safetensors file, or "
            "choose a model without this operator"
        ) from error
    model = program.model_proto
    _forget_sources(model.graph)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


def onnx_difference(model: bytes, network: nn.Module, *, size: int) -> float:
    """The largest difference between onnxruntime's logits and torch's, at several batch sizes.

    Relative to the largest logit where that is above 1.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in BATCHES:
        images = torch.randn((batch, 3, size, size), generator=generator)
        with torch.inference_mode():
            expected_BC: Tensor = network(images)
        (found,) = session.run(None, {"images": images.numpy()})
        difference = (torch.from_numpy(found) - expected_BC).abs().max()
        worst = max(worst, float(difference / expected_BC.abs().max().clamp_min(1.0)))
    return worst


def _forget_sources(graph: Any) -> None:
    """Drop the exporter's notes: stack traces with the paths of this machine."""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]


def _first_words(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:  # the exporter wraps the reason in what it was doing
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"
