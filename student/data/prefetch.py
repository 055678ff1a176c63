"""Batches from the host to the device, ahead of the step that needs them.

B images of a micro-batch, K kept classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from student.data.batches import MicroBatch
from teacher_cache.stopwatch import Stopwatch

StepBatches = Sequence[MicroBatch]


def on_device(
    stream: Iterator[StepBatches], device: torch.device, watch: Stopwatch
) -> Iterator[StepBatches]:
    """The stream's batches on the device, in order.

    On CUDA a separate stream copies a batch while the device still computes the step before it: the
    host launches steps and does not wait for them, so it asks for the next batch long before the
    device is free. On the CPU batches are handed on as they are. The tensors of a batch are valid
    until the next batch is asked for.

    Args:
        stream: from `student.data.batches.batches`; empty lists, while images or records are waited
            for, are handed on.
        device: the student's.
        watch: counts under `data_wait` how long the stream was waited for, under `copy` how long
            it took to pin memory and to start the copies.
    """
    copier = torch.cuda.Stream(device) if device.type == "cuda" else None
    while True:
        # The loader writes to released memory again when the current CUDA stream has reached this
        # point. The copying stream is made the current one, since it waits for no training step.
        with watch.during("data_wait"), _current(copier):
            batches = next(stream, None)
        if batches is None:
            return
        if copier is None:
            yield batches
            continue
        with watch.during("copy"):
            copied = _copied(batches, device, copier)
        torch.cuda.current_stream(device).wait_stream(copier)
        del batches
        yield copied


def _current(copier: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if copier is None else torch.cuda.stream(copier)


def _copied(
    batches: StepBatches, device: torch.device, copier: torch.cuda.Stream
) -> list[MicroBatch]:
    consumer = torch.cuda.current_stream(device)

    def sent(tensor: Tensor) -> Tensor:
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        there = pinned.to(device, non_blocking=True)
        there.record_stream(consumer)  # its memory is not used again before the step has used it
        return there

    with torch.cuda.stream(copier):
        return [
            replace(
                batch,
                pixels_BHWC=sent(batch.pixels_BHWC),
                labels_B=sent(batch.labels_B),
                target=batch.target and batch.target.mapped(sent),
            )
            for batch in batches
        ]
