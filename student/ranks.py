"""The processes that train one run together: who takes which rows, and how they agree.

torchrun starts them and says who is who (RANK, WORLD_SIZE, LOCAL_RANK). Every rank walks the same
global batches in the same order and takes its own share of each.

W ranks.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from traceback import clear_frames
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from teacher_cache.errors import UserError

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others to reach the same point; a dead one is noticed at once."""

T = TypeVar("T")


class RanksError(UserError):
    """Ranks that cannot work together."""


class RankLost(RanksError):
    """Another rank has ended in the middle of the work."""


@dataclass(slots=True, eq=False)
class Control:
    """Carries what is agreed on, over gloo on the host: no device waits for it."""

    group: "dist.ProcessGroup | None"
    """None once this rank has given up."""

    @property
    def line(self) -> "dist.ProcessGroup":
        """The group.

        Raises:
            RankLost: this rank has given up.
        """
        if self.group is None:
            raise RankLost("this rank has ended its part of the run: see what it said before")
        return self.group

    def close(self) -> None:
        """Let the other ranks notice at once; they wait for nothing else to go wrong."""
        group, self.group = self.group, None
        if group is not None:
            dist.destroy_process_group(group)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number among those that train together; alone by default."""

    number: int = 0
    count: int = 1
    control: Control | None = None
    """None for a process alone."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.number == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This rank's rows [..., B / W] of global batches [..., B]: one of W runs of neighbours."""
        size = rows.shape[-1] // self.count
        return rows[..., self.number * size : (self.number + 1) * size]

    def micro_batch(self, *, batch_size: int, micro_batch: int | None) -> int:
        """Images per forward pass of a rank; None: a rank's whole share at once.

        Raises:
            RanksError: the batch cannot be cut so that all ranks do the same.
        """
        unit = (micro_batch or 1) * self.count
        if batch_size % unit:
            passes = f" in micro-batches of {micro_batch}" if micro_batch else ""
            raise RanksError(
                f"optimizer.batch_size = {batch_size} cannot be shared by {self.count} ranks"
                f"{passes}, expected a multiple of {unit}: change optimizer.batch_size, "
                "optimizer.micro_batch or torchrun's --nproc-per-node"
            )
        return micro_batch or batch_size // self.count

    def agree(self, *, stop: bool = False, save: bool = False) -> tuple[bool, bool]:
        """Whether any rank wants to stop, and whether any wants to save; all ranks ask together.

        Raises:
            RankLost: another rank has ended.
        """
        if self.control is None:
            return stop, save
        wanted = torch.tensor([stop, save], dtype=torch.uint8)
        with self.errors_in_words():
            dist.all_reduce(wanted, dist.ReduceOp.MAX, group=self.control.line)
        return bool(wanted[0]), bool(wanted[1])

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank; all ranks ask together. Raises like `agree`."""
        if self.control is None:
            return [value]
        values: list[T | None] = [None] * self.count
        with self.errors_in_words():
            dist.all_gather_object(values, value, group=self.control.line)
        return values  # type: ignore[return-value]

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace tensors on the device by their means over the ranks, in place."""
        if self.control is None or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self.errors_in_words():
            dist.all_reduce(flat)
        flat /= self.count
        means = flat.split([tensor.numel() for tensor in tensors])
        # a network has hundreds: one kernel each would take longer to launch than to run
        torch._foreach_copy_(
            tensors, [mean.view_as(t) for t, mean in zip(tensors, means, strict=True)]
        )

    @contextmanager
    def errors_in_words(self) -> Iterator[None]:
        """Turn what the transport says of a lost rank into words.

        Raises:
            RankLost: another rank has ended, or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_of_transport(error):
                raise
            clear_frames(error.__traceback__)  # they still hold the line that is closed now
            self.give_up()
            if "Duplicate GPU" in str(error):  # NCCL's words
                raise RanksError(
                    "two ranks of this host share a GPU, expected one each: start torchrun with "
                    f"--nproc-per-node {torch.cuda.device_count()} or less"
                ) from error
            raise RankLost(
                f"another rank of this run has ended or does not answer ({_first_line(error)}): "
                "its own message, above or on its host, says why; what was saved last is kept, and "
                "the same command continues from it"
            ) from error

    def give_up(self) -> None:
        """Take part no longer: end what the device was told to exchange with the other ranks.

        Where one of them is gone that would never end by itself, and neither would waiting for the
        device, as page-locked memory and the process group do when they are done with. NCCL ends
        it once all ranks of a host want that, so they are let know first. gloo, on CPUs, notices a
        lost rank by itself and has nothing to end.
        """
        if self.control is not None and self.control.group is not None:
            self.control.close()
            dist.group.WORLD.abort()  # type: ignore[union-attr]


ALONE = Ranks()


@contextmanager
def joined(device: torch.device, environment: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """Meet the other ranks that torchrun started; alone without torchrun.

    Args:
        device: this rank's own; CUDA ranks talk over NCCL, others over gloo.
        environment: in place of `os.environ`.

    Raises:
        RanksError: WORLD_SIZE without the rest of torchrun's variables, or ranks that never came.
    """
    found = os.environ if environment is None else environment
    count = int(found.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in found]
    if missing:
        raise RanksError(
            f"WORLD_SIZE is {count} and {', '.join(missing)} not set, expected torchrun's "
            "variables: start with 'torchrun --nproc-per-node N cli.py train-student ...', or "
            "unset WORLD_SIZE to train in one process"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, number, _ = next(rendezvous("env://", timeout=PATIENCE))
        # These processes may have met before, and the addresses of then are still in the store.
        meeting = store.add(f"meetings of rank {number}", 1)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"meeting {meeting}", store),
            rank=number,
            world_size=count,
            timeout=PATIENCE,
        )
        del store
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # dist.DistError is a RuntimeError
        raise RanksError(
            f"rank {found['RANK']} of {count} cannot meet the others at {found['MASTER_ADDR']}:"
            f"{found['MASTER_PORT']} ({_first_line(error)}): check the network between the hosts, "
            "and that all were started"
        ) from error
    assert isinstance(control, dist.ProcessGroup)  # every rank is in it
    ranks = Ranks(number=dist.get_rank(), count=count, control=Control(control))
    del control  # the last reference is the one that can be closed
    try:
        yield ranks
    except Exception:
        ranks.give_up()
        raise
    finally:
        dist.destroy_process_group()


def _is_of_transport(error: RuntimeError) -> bool:
    words = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _first_line(error: Exception) -> str:
    """The transport's first sentence, without the place in its source."""
    lines = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip()).splitlines()
    return lines[0].partition(". ")[0].rstrip(".") if lines else type(error).__name__
