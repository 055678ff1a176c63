"""Memory that a device, or the host, does not give to a network: one sentence for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from teacher_cache.errors import UserError


class OutOfMemory(UserError):
    """A network needs more memory than its device has left."""


@contextmanager
def out_of_memory_in_words(what: str, advice: str) -> Iterator[None]:
    """Turn an allocation that fails into words.

    Args:
        what: needs the memory, such as `a training step of 256 images`.
        advice: which keys to change, and what else that changes.

    Raises:
        OutOfMemory: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise OutOfMemory(
            f"{what} does not fit into memory ({first}): {advice}, or end what else uses the "
            "device; what was saved or committed before is kept"
        ) from None
