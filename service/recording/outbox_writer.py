"""When a process's outbox is stored, and what happens where that fails: retried, kept from the job.

Whatever is stored may be stored twice without harm: creating is idempotent, a state change that
was already made, or that the stored state no longer allows, is left alone, and points and events
have names of their own. So after any failure a writer simply begins anew: the record of a database
that was deleted comes back.
"""

import time

from service.jobs import State
from service.recording.outbox import Change, JobIdentity, Outbox, Pace
from service.recording.tally import Tally
from service.records.connections.engines import DatabaseRefusedError
from service.records.events import Said
from service.records.job_store import JobStore, NoSuchJobError
from service.records.rank_rows import Rank


class OutboxWriter:
    """Stores one process's outbox, in one thread: when to, and what to do where it fails."""

    def __init__(self, store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
        self._store = store
        self._job = job
        self._outbox = outbox
        self._pace = pace
        self._tally = Tally()
        self._stored = True
        self._remarks_stored = -1
        self._failing = False
        self._too_early: str | None = None
        """Why there is nowhere to store yet, though nothing fails."""
        self._attempted_s = float("-inf")
        self._written_s = float("-inf")

    def run(self) -> None:
        """Store until the outbox closes, then once more; return early if the store is refused."""
        try:
            self._store_until_closed()
        finally:
            self._release()

    def _store_until_closed(self) -> None:
        while not self._outbox.closing.is_set():
            self._outbox.wake.wait(self._pace.write_s)
            self._outbox.wake.clear()
            resting = self._failing and time.monotonic() - self._attempted_s < self._pace.retry_s
            if not resting and not self._attempt():
                return
        # A database that failed before is tried once more; one that fails only now may be busy.
        was_failing = self._failing
        # a little less than the job waits: it does not know what is amiss
        deadline_s = time.monotonic() + 0.8 * self._pace.close_s
        while self._attempt() and (self._too_early or (self._failing and not was_failing)):
            if time.monotonic() > deadline_s:
                if self._too_early:
                    self._outbox.warn_once(self._job.id, self._too_early)
                return
            time.sleep(0.1)

    def _attempt(self) -> bool:
        """Store what is not stored yet; return False if no later attempt can succeed."""
        self._attempted_s = time.monotonic()
        try:
            self._store_pending()
        except DatabaseRefusedError as error:
            self._outbox.warn_once(self._job.id, error)
            return False
        except Exception as error:  # noqa: BLE001 - nothing that fails here may concern the job
            if not isinstance(error, NoSuchJobError):  # a deleted record: stored anew, no failure
                self._outbox.warn_once(self._job.id, error)
            self._failing = True
            self._begin_anew()
        else:
            self._failing = False
        return True

    def _store_pending(self) -> None:
        raise NotImplementedError

    def _begin_anew(self) -> None:
        self._stored = self._tally.latest is None
        self._remarks_stored = -1
        self._release()

    def _release(self) -> None:
        """Let go of what is kept open."""

    def _is_due(self) -> bool:
        return time.monotonic() - self._written_s >= self._pace.heartbeat_s

    def _rank(self, changes: list[Change]) -> Rank:
        job = self._job
        ends = [change.state for change in changes if change.state.is_final]
        return Rank(job.rank, job.host, job.pid, (ends or [State.RUNNING])[0], self._tally.own)

    def _said(self) -> list[Said]:
        now_s = time.monotonic()
        return [
            Said(remark.number, remark.kind, remark.text, now_s - remark.at_s)
            for remark in tuple(self._outbox.remarks)
            if remark.number > self._remarks_stored
        ]

    def _obey(self, state: State) -> None:
        # to another rank than the first the whole cancellation may have passed between two beats
        if state in (State.CANCELLING, State.CANCELLED):
            self._outbox.cancel_requested.set()
