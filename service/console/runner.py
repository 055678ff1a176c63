"""Runs a job: shows and records its progress, and stops it between two steps when it is asked to.

A job is a generator of its progress. Whoever drains it stops it by closing it: it then finishes its
step or block, saves, and returns where that left it.
"""

import math
import os
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Protocol

from service.console.stop import StopSignal
from service.console.terminal import Progress, ProgressDisplay, spell
from service.recording.recorder import Recorder


class JobProgress(Progress, Protocol):
    """What is shown of a job, and what only its record holds."""

    @property
    def own(self) -> int | None:
        """How much this process did itself; None: all that is new."""

    @property
    def saved(self) -> int | None:
        """How much the state that was saved last holds."""


_LOG_S = 10.0
Job = Generator[JobProgress, None, JobProgress | None]


def run_job(
    job: Job,
    recorder: Recorder,
    artifacts: Mapping[str, Path],
    *,
    shown: bool,
    stopped_together: type[Exception],
) -> int | None:
    """Drain a job into its record; None when it has reached its end, else the exit code.

    Args:
        job: yields its progress.
        recorder: of its record, not entered yet.
        artifacts: what the job leaves behind, by name.
        shown: whether its progress and its saves are this process's to tell.
        stopped_together: what a job raises that stopped because another of its processes did.
    """
    run = _Run(job, recorder, shown=shown)
    stop = StopSignal()
    with recorder:
        try:
            with stop:
                stopped_by = run.drain(stop)
        except stopped_together:  # the rank that was reached first knows why; so does the record
            stopped_by = "request" if recorder.was_cancelled(within_s=2.0) else "another rank"
        for name, file in artifacts.items():
            recorder.artifact(name, file)
        if stopped_by is None:
            recorder.finish("succeeded", run.remark)
            return None
        recorder.finish("cancelled", f"stopped by {stopped_by}; saved")
    _say(f"stopped by {stopped_by}; saved: the same command continues")
    return _cancelled() if stop.signal is None else 128 + stop.signal


class _Run:
    """A job that is being drained, and where it was when it last said so."""

    def __init__(self, job: Job, recorder: Recorder, *, shown: bool) -> None:
        self._job = job
        self._recorder = recorder
        self._shown = shown
        self._last: JobProgress | None = None
        self._logged_s = -math.inf

    @property
    def remark(self) -> str | None:
        """What is unusual about the job's end: that all was done before, or is not done yet."""
        last = self._last
        if last is None:
            return None
        if last.done == last.resumed == last.total:
            return f"nothing to do: all {last.total:,} {last.unit} were done before"
        if last.done < last.total:
            left = last.total - last.done
            return f"{left:,} of {last.total:,} {last.unit} were still with other processes"
        return None

    def drain(self, stop: StopSignal) -> str | None:
        """Show and record progress; return what stopped the job before its end."""
        with ProgressDisplay(self._recorder.kind) if self._shown else nullcontext() as display:
            for progress in self._job:
                self._tell(progress, display)
                if stop.signal is not None or self._recorder.cancel_requested:
                    _say("stopping after this step or block ...")
                    if (left := _closed(self._job)) is not None:
                        self._tell(left, display)
                    return "request" if stop.signal is None else stop.signal.name
        if self._shown and self.remark:
            _say(self.remark)
        return None

    def _tell(self, progress: JobProgress, display: ProgressDisplay | None) -> None:
        self._last = progress
        self._log(progress)
        if display is not None:
            display.show(progress)
        self._recorder.progress(
            progress.done,
            progress.total,
            progress.metrics,
            progress.resumed,
            own=progress.own,
            saved=progress.saved if self._shown else None,  # the first rank's alone to tell
        )

    def _log(self, progress: JobProgress) -> None:
        """Keep where the job is with the end of its log, now and then."""
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_S:
            self._logged_s = now_s
            place = f"{progress.done:,}/{progress.total:,} {progress.unit}"
            self._recorder.log(f"{place}  {spell(progress.metrics)}".rstrip())


def _closed(job: Job) -> JobProgress | None:
    """Close a job, and return what it returns: `close()` itself does so from Python 3.13 on."""
    try:
        job.throw(GeneratorExit)
    except StopIteration as end:
        left: JobProgress | None = end.value
        return left
    except GeneratorExit:
        return None
    raise RuntimeError("the job goes on although it was closed")


def _cancelled() -> int:
    """Return the exit code of a job that was cancelled by request.

    Under torchrun it is 0: of any other code torchrun makes 1, and whoever starts failed jobs again
    (torchrun itself, Docker's on-failure) would start one that is not to go on.
    """
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else 12


def _say(text: str) -> None:
    with suppress(OSError):  # nobody reads it any more; the job goes on
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the one who tells the user
