"""What a running job says of itself: the one type that every job yields."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a job, yielded by `fill` and `train`.

    A job is a generator of `Progress`: whoever drains it prints and records it, and stops the job
    by closing it; the job then finishes its step or block, saves, and returns where that left it.
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


Job = Generator[Progress, None, Progress | None]
"""Returns where it stands if it was closed before its end."""
