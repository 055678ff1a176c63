"""A job's record, its states, and what can be told from it: pure, no clock, no database.

States are stored; that a job is stale or crashed is never stored but derived on read from the age
of its heartbeat. So a SIGKILL needs no cooperation, a late heartbeat heals a wrong guess, and no
sweeper has to run.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

WARM_UP_S = 5.0
"""Below this span of work a rate is noise, so neither a rate nor an ETA is given."""
RATE_WINDOW_S = 300.0
"""The rate is that of the last five minutes: past the start-up, smooth over an evaluation."""


class State(StrEnum):
    """A job's stored state; each member lists the states it may become."""

    _successors: tuple[str, ...]

    PENDING = "pending", "running", "cancelling"
    RUNNING = "running", "succeeded", "failed", "cancelling"
    # the end that a job reaches first stands: it may finish before it sees the request
    CANCELLING = "cancelling", "cancelled", "succeeded", "failed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    def __new__(cls, word: str, *successors: str) -> Self:
        """Make the member for `word`, which may become any of `successors`."""
        member = str.__new__(cls, word)
        member._value_ = word
        member._successors = successors
        return member

    @property
    def successors(self) -> frozenset["State"]:
        """The states that this one may become; empty when it is final."""
        return frozenset(State(word) for word in self._successors)

    @property
    def predecessors(self) -> frozenset["State"]:
        """The states that may become this one."""
        return frozenset(state for state in State if self in state.successors)

    @property
    def is_final(self) -> bool:
        """Whether a job in this state has ended."""
        return not self._successors


FINAL_STATES = tuple(state for state in State if state.is_final)


class Status(StrEnum):
    """What a reader is told: the stored state, or `stale` or `crashed` where it stopped beating."""

    PENDING = "pending"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STALE = "stale"
    CRASHED = "crashed"


class IllegalTransitionError(ValueError):
    """A job was asked to become what its present state does not allow."""

    def __init__(self, job_id: str, current: State, target: State) -> None:
        may = ", ".join(sorted(current.successors)) or "nothing: it has ended"
        super().__init__(
            f"job {job_id} is {current} and cannot become {target}; it may become {may}"
        )
        self.current = current
        self.target = target


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as it is stored. Instants are aware UTC datetimes of the database's clock."""

    id: str
    kind: str
    """What the job does: `cache-teacher`, `train-student`."""
    unit: str
    """What `done` and `total` count: `records`, `steps`."""
    created: datetime
    heartbeat: datetime
    """When the job last said that it lives."""
    state: State = State.PENDING
    reason: str | None = None
    """Why it ended so, where that is not plain; absolute paths cut to their last part."""
    done: int = 0
    """Units finished, those of earlier runs included."""
    total: int | None = None
    resumed: int = 0
    """How much of `done` was there before this run."""
    rate: float | None = None
    """Units a second over the last five minutes; None while it warms up."""
    eta_s: float | None = None
    """Seconds to go at that rate; None while it warms up and once it has ended."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """The last value of each metric; None where it is not finite, for which JSON has no word."""
    host: str = ""
    pid: int = 0
    config: Mapping[str, object] = field(default_factory=dict)
    """The part of the recipe that the job chose to show."""
    started: datetime | None = None
    ended: datetime | None = None
    progress_at: datetime | None = None
    """When `done` last moved: a hung step still beats, but this stands still."""
    attempt: int = 0
    """How often torchrun had restarted the job's processes before."""
    resumed_from: str | None = None
    """The job before it of the same --out."""
    bytes: int | None = None
    """What the job has written of its own, as it reports; None where it does not say."""
    artifacts: Sequence[Mapping[str, object]] = ()
    """What it left behind: name, size in bytes, SHA-256."""
    environment: Mapping[str, object] = field(default_factory=dict)
    """Git commit, library versions, device."""
    version: int = 0
    """Grows with every write to the record."""
    ranks: int = 0
    """How many processes have said that they work on it."""


@dataclass(frozen=True, slots=True)
class Periods:
    """Seconds without a heartbeat after which a job that has not ended reads as stale, crashed."""

    stale_s: float = 30.0
    crashed_s: float = 120.0

    def status(self, state: State, heartbeat_age_s: float) -> Status:
        """Return the stored state, or `stale` or `crashed` when the heartbeat is too old."""
        if state.is_final or heartbeat_age_s < self.stale_s:
            return Status(state.value)
        return Status.CRASHED if heartbeat_age_s >= self.crashed_s else Status.STALE


@dataclass(frozen=True, slots=True)
class Observed:
    """A record and the instant of the database's clock at which it was read, for its age."""

    record: JobRecord
    now: datetime

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the last heartbeat, never below zero."""
        return max(0.0, (self.now - self.record.heartbeat).total_seconds())

    @property
    def progress_age_s(self) -> float | None:
        """Seconds since `done` last moved; None before it first did."""
        return seconds_since(self.record.progress_at, self.now)

    def status(self, periods: Periods) -> Status:
        """Return the stored state, or `stale` or `crashed` when the heartbeat is too old."""
        return periods.status(self.record.state, self.heartbeat_age_s)


def seconds_since(instant: datetime | None, now: datetime) -> float | None:
    """Return the seconds from `instant` to `now`, never below zero; None without an instant."""
    return None if instant is None else max(0.0, (now - instant).total_seconds())


@dataclass(frozen=True, slots=True)
class Sample:
    """How much was done at one instant of the job's own monotonic clock, in seconds."""

    done: int
    at_s: float


def windowed(
    samples: Sequence[Sample], new: Sample, window_s: float = RATE_WINDOW_S
) -> tuple[Sample, ...]:
    """Return `samples` with `new` at the end and without what lies before the window.

    The youngest sample at or before the window's start is kept, so that the window is always
    spanned, however slow the job is. Work that goes backwards starts a new window.
    """
    if samples and (new.done < samples[-1].done or new.at_s < samples[-1].at_s):
        return (new,)
    kept = (*samples, new)
    start_s = new.at_s - window_s
    first = max((i for i, sample in enumerate(kept) if sample.at_s <= start_s), default=0)
    return kept[first:]


def rate_per_s(samples: Sequence[Sample], warm_up_s: float = WARM_UP_S) -> float | None:
    """Return the units done a second between the first and the last sample.

    The first sample of a job that resumes holds the work done before, which is so left out.
    None until something was done over at least `warm_up_s`.
    """
    if not samples:
        return None
    done = samples[-1].done - samples[0].done
    span_s = samples[-1].at_s - samples[0].at_s
    return done / span_s if done > 0 and span_s >= warm_up_s and span_s > 0 else None


def eta_s(done: int, total: int | None, rate: float | None) -> float | None:
    """Return the seconds to go at `rate` units a second; None without a total or a rate."""
    if total is None or rate is None or rate <= 0:
        return None
    remaining_s = max(0, total - done) / rate
    return remaining_s if math.isfinite(remaining_s) else None


def job_id(unix_ms: int, entropy: bytes) -> str:
    """Return 32 hex digits that sort by time: 12 of milliseconds, 20 of `entropy` (10 bytes)."""
    if len(entropy) != 10:
        raise ValueError(f"got {len(entropy)} bytes of entropy, expected 10")
    return f"{unix_ms & 0xFFFF_FFFF_FFFF:012x}{entropy.hex()}"


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of a job's id."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None
