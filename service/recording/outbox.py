"""What a job says of itself, in memory, on its way to the thread that stores it."""

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.jobs import State
from service.records.events import EventKind

_log = logging.getLogger(__name__)

REPORTS_KEPT = 1024
"""Reports of progress kept in memory; a further one drops the oldest."""
EVENTS_KEPT = 1000
"""Warnings and checkpoints kept in memory, for a database that is deleted and made again."""
LINES_KEPT = 200
"""Lines of the log that a record holds."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a job's record is written and how long is waited for it, in seconds."""

    write_s: float = 1.0
    """Progress is written at most this often; a state change is written at once."""
    heartbeat_s: float = 10.0
    retry_s: float = 5.0
    """After a failure, the next attempt comes no sooner."""
    close_s: float = 5.0
    """Closing waits no longer than this for what is not stored yet."""


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What never changes about a process of a job."""

    id: str
    """The job's id; that of a rank other than 0 names nothing, it finds its job by `target`."""
    kind: str
    unit: str
    host: str
    pid: int
    config: Mapping[str, object]
    environment: Mapping[str, str | bool | None] = field(default_factory=dict)
    rank: int = 0
    attempt: int = 0
    target: str | None = None
    """The digest of what the job works on."""
    images_per_unit: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One report of progress, at an instant of the job's monotonic clock."""

    done: int
    total: int
    resumed: int
    metrics: Mapping[str, float]
    at_s: float
    own: int | None = None
    """How much of `done` this process did itself; None: all that was not there before."""


@dataclass(frozen=True, slots=True)
class Change:
    """One state that the job reached, at an instant of its monotonic clock."""

    state: State
    reason: str | None
    at_s: float


@dataclass(frozen=True, slots=True)
class Remark:
    """One warning or checkpoint, at an instant of the job's monotonic clock."""

    number: int
    kind: EventKind
    text: str
    at_s: float


class Outbox:
    """What the job's side leaves in memory for the writing thread; appending never waits."""

    def __init__(self) -> None:
        # full: the oldest is dropped
        self.reports: deque[Report] = deque(maxlen=REPORTS_KEPT)
        self.remarks: deque[Remark] = deque(maxlen=EVENTS_KEPT)
        self.changes: list[Change] = []
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        """The end of the log."""
        self.lines_said = 0
        """How many lines there have been."""
        self.traceback: str | None = None
        self.artifacts: list[dict[str, object]] = []
        self.wake = threading.Event()
        self.closing = threading.Event()
        self.cancel_requested = threading.Event()
        """Set by the writing thread: the stored state asks the job to stop."""
        self._not_warned = threading.Lock()

    def warn_once(self, job_id: str, cause: object) -> None:
        """Log the first failure of this job's recording; the later ones are silent."""
        # a lock that is never released: whichever thread takes it is the one that warns
        if self._not_warned.acquire(blocking=False):
            _log.warning(
                "job %s goes on, but its status is not recorded: %s (no more is said of it)",
                job_id,
                cause,
            )
