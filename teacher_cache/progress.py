"""What a running job says of itself: the one type that every job yields."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a job, yielded by `fill` and `train`.

    A job is an iterator of `Progress`: whoever drains it prints and records it, and stops the job
    by closing the iterator; the job then finishes its step or block, saves, and returns.
    """

    done: int
    """How much of `total` is finished, work of earlier runs included."""
    total: int
    unit: str
    """What `done` counts: `records` (one view of one image) or `steps`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last measured figures by name; empty between logging intervals."""
    resumed: int = 0
    """How much of `done` was there before this run, so that rates leave it out."""
    own: int | None = None
    """How much of `done` this process did itself; None: all that was not there before."""
    saved: int | None = None
    """How much was done in the state that has just been saved: from there a restart goes on."""
