"""What a job's reports add up to: its last figures, its rate, the points not stored yet."""

from collections import deque
from collections.abc import Sequence

from service.jobs import Sample, State, eta_s, rate_per_s, windowed
from service.recording.outbox import Change, Outbox, Report
from service.recording.redaction import public_metrics
from service.records.series import Point

POINTS_KEPT = 10_000
"""Points of metrics kept while the database cannot be written; a further one drops the oldest."""
NO_SERIES = frozenset({"step", "epoch", "bytes", "waiting_for_view"})
"""Figures that are places, not measurements over the steps."""


class Tally:
    """The sum of a job's reports; one thread's."""

    def __init__(self) -> None:
        self.latest: Report | None = None
        self.metrics: dict[str, float | None] = {}
        self.bytes: int | None = None
        self._samples: tuple[Sample, ...] = ()
        self._points: deque[tuple[str, int, float | None, float]] = deque(maxlen=POINTS_KEPT)

    def absorb(self, outbox: Outbox) -> bool:
        """Take the reports out of the outbox: the last one counts, and the last of each metric.

        Returns whether there was any.
        """
        report = None
        while outbox.reports:
            report = outbox.reports.popleft()
            if not self._samples:
                self._samples = (_beginning(report, outbox.changes),)
            self.latest = report
            if report.metrics:
                self._absorb_metrics(report)
        if report is not None:
            self._samples = windowed(self._samples, Sample(report.done, report.at_s))
        return report is not None

    @property
    def own(self) -> int:
        """Units that this process did itself."""
        if self.latest is None:
            return 0
        if self.latest.own is not None:
            return self.latest.own
        return max(0, self.latest.done - self.latest.resumed)

    @property
    def rate(self) -> float | None:
        """Units a second; None while it warms up."""
        return rate_per_s(self._samples)

    @property
    def eta_s(self) -> float | None:
        """Seconds to go; None while it warms up."""
        return (
            None if self.latest is None else eta_s(self.latest.done, self.latest.total, self.rate)
        )

    def points(self, now_s: float) -> list[Point]:
        """Return the points that are not stored yet, aged by the job's clock."""
        return [Point(name, step, value, now_s - at_s) for name, step, value, at_s in self._points]

    def points_are_stored(self, count: int) -> None:
        """Forget the oldest `count` points."""
        for _ in range(count):
            self._points.popleft()

    def _absorb_metrics(self, report: Report) -> None:
        values = public_metrics(report.metrics)
        written = values.pop("bytes", None)
        self.bytes = self.bytes if written is None else int(written)
        self.metrics |= values
        for name, value in values.items():
            if name not in NO_SERIES:
                self._points.append((name, report.done, value, report.at_s))


def _beginning(first: Report, changes: Sequence[Change]) -> Sample:
    """Return where the rate's window begins.

    A job that reports before its first unit begins there; one that reports only after its first,
    perhaps long, unit began when it started running.
    """
    running_s = [change.at_s for change in changes if change.state is State.RUNNING]
    if first.done == first.resumed or not running_s:
        return Sample(first.done, first.at_s)
    return Sample(first.resumed, running_s[0])
